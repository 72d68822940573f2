#!/usr/bin/env python3
"""The bench: a program in the path between clients and realms, that sees, breaks and records what passes.

The server knows nothing of it. A client connects to the bench, and the bench connects to the server; one realm calls
the other the same way. In this order:
  texts         what the bench says, in Indonesian and English; they lie in assets/texts.json
  frames        one request, reply or event as it passed; bytes -> frames
  faults        the table of what can be broken, and how a line of words becomes a fault
  connections   Stream (one direction), Flow (one connection), Hop (one listening port)
  Bench         one thread, one loop over all sockets, and all that hangs on it
  Journeys      one message from its request over both realms to its recipients
  explanations  what each word of a frame means, and why it is there
  Capture       a pcapng file for Wireshark
  diagrams      for the terminal, and as Mermaid for a report
  Lesson        a text file that predicts, observes and explains
  Console       the commands of the terminal
  the page      the bench as a person sees and breaks it in a browser; below the client's demo, or alone

  python3 ChatLab.py --local       both realms on this computer; it prints how to start them
  python3 ChatLab.py               on mesin1 of the lab
  python3 ChatLab.py --page        the same on a page
"""
from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import errno
import functools
import hashlib
import ipaddress
import itertools
import json
import queue
import random
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO

try:
    import fcntl
    import termios
except ImportError:            # Windows: there the bench can not ask how much of a connection is still unsent
    fcntl = termios = None     # type: ignore[assignment]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
from common import COMMANDS, FRAME_END, KIB, MIB, REALMS, add_option, mask, visible

CHUNK = 256 * KIB              # bytes asked of a socket at once
QUEUE_MARK = MIB               # bytes unsent of one direction: past this its source is not read
QUEUE_MOST = 4 * MIB           # the same where a fault holds bytes back, and for a frame that is gathered whole
DECIDE = 64                    # bytes of a frame that a fault waits for: enough for the command
HEAD = 4 * KIB                 # bytes of a frame that the record keeps
HEAD_READ = MIB                # bytes of a frame that the journeys read: a whole batch, a whole inbox
HEAD_LEFT = 256                # bytes of it that a message keeps once the record has let it go
EXPECTED_MOST = 100_000        # requests of one connection that may wait for their replies
RECORD_FRAMES = 20_000         # frames that are kept, the oldest go first
RECORD_BYTES = 32 * MIB        # bytes of their heads
FLOWS_MOST = 1000              # connections at once; more are refused
JOURNEYS_MOST = 5000           # messages that are followed, the oldest go first
LEGS_MOST = 500                # frames that are kept of one message
TOKENS_MOST = 20_000           # sessions whose person is known
RESET_WAIT = 2.0               # seconds that the bytes before a reset may take to arrive
TALLY_SECONDS = 0.3            # for which the counters that the pages show may be old
HOLD_SIGN = 4.0                # seconds after which the caller of a link that is held gets a sign of life
CLIENT_OFFSET, LINK_OFFSET = 10_000, 20_000    # the bench's ports: the realm's port, and so much
RESET_NOW = struct.pack("ii", 1, 0)            # SO_LINGER: `close` sends a RST
RATE_SECONDS = 0.05            # of a rate's bytes that may go at once
STALL_SECONDS, STALL_MOST = 0.2, 60.0          # that a stalled chunk waits, doubled each time up to this
STREAMS = {"0": "talk", "1": "files"}          # the streams of a link, as the diagram names them
ON, OFF, FROZEN = "on", "off", "frozen"        # a realm's process, where the bench owns it
MACHINE_STATES = {"start": ON, "thaw": ON, "freeze": FROZEN, "stop": OFF, "kill": OFF}    # what is done -> what it is

# ---- texts -------------------------------------------------------------------------------------

ASSETS = Path(__file__).resolve().parent / "assets"
TEXTS = json.loads((ASSETS / "texts.json").read_text("utf-8"))     # key: [Indonesian, English], or the text of both
INDONESIAN, ENGLISH = 0, 1
LANGUAGES = {"id": INDONESIAN, "en": ENGLISH}


def say(key: str, language: int = INDONESIAN, **fields: object) -> str:
    text = TEXTS[key]
    return (text if isinstance(text, str) else text[language]).format(**fields)


class BenchError(Exception):
    """What a person typed can not be done; `key` and `fields` name the text that says why."""

    def __init__(self, key: str, **fields: object) -> None:
        super().__init__(key)
        self.key, self.fields = key, fields

    def text(self, language: int = INDONESIAN) -> str:
        return say(self.key, language, **self.fields)

    __str__ = text


# ---- frames ------------------------------------------------------------------------------------

REQUEST, REPLY, EVENT, OPENED, FINISHED, RESET, REFUSED = (
    "request", "reply", "event", "opened", "fin", "reset", "refused")       # the kinds of a Frame
EVENT_WORD = re.compile(rb'\s*\{\s*"event"\s*:\s*"([^"]*)"')


@dataclass(slots=True, eq=False)
class Frame:
    """One request, reply or event as it passed; or what became of a connection (then it has no bytes)."""

    number: int
    when: int                              # nanoseconds since 1970: one clock for all hops
    flow: Flow
    up: bool                               # it went from who called to who was called
    kind: str
    word: str                              # the command; of a reply, that of its request; of an event, its kind
    head: bytes                            # its first bytes, at most HEAD once the journeys have read it
    size: int
    note: str = ""                         # what the bench did to it
    answers: Frame | None = None           # of a reply: its request
    answer: Frame | None = None            # of a request: its reply
    who: str = ""                          # the person or realm that called, as far as it was known
    journeys: tuple[int, ...] = ()         # the messages that it speaks of
    asks: Journey | None = None            # of a request that sends one: that message, until a reply names it

    @property
    def hop(self) -> str:
        return self.flow.hop.name

    @property
    def source(self) -> str:
        return (self.who or self.flow.name) if self.up else self.flow.hop.realm

    @property
    def target(self) -> str:
        return self.flow.hop.realm if self.up else (self.who or self.flow.name)


class Framer:
    """The bytes of one direction -> frames. Who calls sends lines, who is called sends objects, on every hop.

    Of a long frame only the head is kept. The end of a frame may lie across two chunks.
    """

    __slots__ = ("end", "size", "_head", "_keep", "_tail")

    def __init__(self, end: bytes) -> None:
        self.end, self.size = end, 0               # `size`: bytes of the unfinished frame
        self._head, self._keep, self._tail = bytearray(), HEAD, b""

    def feed(self, data: bytes) -> list[tuple[bytes, int, int]]:
        """The frames that end in `data`: (head, size, where it ends in `data`)."""
        frames, at, length = [], 0, len(self.end)
        if self._tail and (found := (self._tail + data[:length - 1]).find(self.end)) >= 0:
            at = found + length - len(self._tail)
            frames.append(self._finish(data, 0, at))
        while (found := data.find(self.end, at)) >= 0:
            stop = found + length
            frames.append(self._finish(data, at, stop) if self.size else
                          (data[at:min(stop, at + HEAD_READ)], stop - at, stop))
            at = stop
        if at < len(data):
            self._take(data, at, len(data))
        if length > 1:                             # what may be the beginning of an end
            self._tail = (self._tail + data[at:][-3:])[-3:]
        return frames

    @property
    def head(self) -> bytes:
        return bytes(self._head)

    def _take(self, data: bytes, start: int, stop: int) -> None:
        room = self._keep - len(self._head)
        if room > 0:
            self._head += data[start:min(stop, start + room)]
            if self._keep == HEAD == len(self._head) and self._worth_reading():
                self._keep = HEAD_READ
                self._head += data[start + room:min(stop, start + room + HEAD_READ - HEAD)]
        self.size += stop - start

    def _worth_reading(self) -> bool:
        """Whether the journeys will read it to its end: a batch or a list of messages, but never a file."""
        if len(self.end) > 1:
            return b'"file_content"' not in self._head
        return self._head.startswith(b"deliver ")

    def _finish(self, data: bytes, start: int, stop: int) -> tuple[bytes, int, int]:
        self._take(data, start, stop)
        frame = bytes(self._head), self.size, stop
        self._head.clear()
        self.size, self._keep, self._tail = 0, HEAD, b""
        return frame


def command_of(head: bytes) -> str:
    """The command of a request's first bytes, in lower case; empty for a blank line."""
    words = head[:200].split(None, 2)
    if words and words[0][:1] == b"@":
        words = words[1:]
    return words[0].decode(errors="replace").lower() if words else ""


# ---- faults ------------------------------------------------------------------------------------

CONNECTION, STREAM, FRAME = "connection", "stream", "frame"      # what a fault acts on


class FaultKind(NamedTuple):
    """One row of the table of faults. The text `fault.WORD` says what it does."""

    word: str
    level: str
    usage: str                             # the words behind HOP
    takes: str                             # what those words may be, as WORD names it
    needs: str = ""                        # one of these must be there

    @property
    def line(self) -> str:
        """What is typed, as `help` shows it."""
        return f"{self.word} HOP {self.usage}".rstrip()


FAULTS = {
    row.word: row
    for row in (
        FaultKind("cut", CONNECTION, "[[up|down] at BYTES | in COMMAND] [xN]", "up down place amount word left"),
        FaultKind("fin", CONNECTION, "", ""),
        FaultKind("pull", CONNECTION, "", ""),
        FaultKind("half", CONNECTION, "near|far", "near far", "near far"),
        FaultKind("oneway", STREAM, "up|down", "up down", "up down"),
        FaultKind("delay", STREAM, "[up|down] MS[±MS]", "up down amount", "amount"),
        FaultKind("rate", STREAM, "[up|down] KB/s", "up down amount", "amount"),
        FaultKind("stall", STREAM, "[up|down] P% [MS]", "up down chance amount", "chance"),
        FaultKind("slice", STREAM, "[up|down] BYTES [MS]", "up down amount", "amount"),
        FaultKind("glue", STREAM, "[up|down] MS", "up down amount", "amount"),
        FaultKind("lose", FRAME, "[up|down] [COMMAND] [xN] [P%]", "up down word left chance"),
        FaultKind("eat", FRAME, "[up|down] [COMMAND] [xN] [P%]", "up down word left chance"),
        FaultKind("double", FRAME, "[up] [COMMAND] [xN] [P%]", "up word left chance"),
        FaultKind("hold", FRAME, "[up|down] [COMMAND]", "up down word"),
    )
}


@dataclass(eq=False)
class Fault:
    """One fault that is on: the row of the table, where, and its numbers."""

    kind: FaultKind
    where: str
    text: str = ""                         # as it was typed
    up: bool | None = None                 # the direction; None is both
    near: bool = False                     # `half`: which end gets the RST
    amount: float = 0                      # milliseconds, KB/s or bytes, as the row says
    spread: float = 0                      # the second number
    word: str = ""                         # the command that it waits for; empty is every frame
    left: int | None = None                # how often it still hits; None is for ever
    chance: float = 1.0
    hits: int = 0
    free_at: dict[tuple[str, bool], float] = field(default_factory=dict)       # `rate`: when a cable has room again

    @property
    def level(self) -> str:
        """What it acts on: a `cut` with a place acts on frames or bytes."""
        if self.kind.word == "cut" and (self.word or self.amount):
            return FRAME if self.word else STREAM
        return self.kind.level

    @property
    def note(self) -> str:
        """What the record says of a frame that it delayed: `delay 300`."""
        return " ".join(word for word in self.text.split() if word.lower() != self.where)

    def matches(self, up: bool, word: str) -> bool:
        """Whether it would hit a frame of this direction and command."""
        return (self.left != 0 and (self.up is None or self.up == up)
                and (not self.word or self.word == word) and (self.kind.word != "double" or up))

    def hit(self) -> None:
        self.hits += 1
        if self.left is not None:
            self.left -= 1


WORD = re.compile(r"(?P<up>up)|(?P<down>down)|(?P<near>near)|(?P<far>far)|(?P<place>at|in)|x(?P<left>\d+)"
                  r"|(?P<chance>\d+(?:\.\d+)?)%|(?P<amount>\d+(?:\.\d+)?)(?:ms|kb/s)?|(?P<word>.+)")


def parse_fault(words: list[str]) -> Fault:
    """`lose >mesin2 down deliver x1` -> a Fault. Raises BenchError."""
    kind = FAULTS.get(words[0])
    if kind is None:
        raise BenchError("lab_no_such_command", name=words[0])
    found: dict[str, list[str]] = {}
    for word in re.split(r" |±|\+-", " ".join(words[2:]).lower()) if words[2:] else ():
        match = WORD.fullmatch(word)
        if match is None or match.lastgroup not in kind.takes.split():
            raise BenchError("lab_bad_word", word=word, usage=kind.line)
        found.setdefault(match.lastgroup, []).append(match[match.lastgroup])
    amount, spread = [*map(float, found.get("amount", ())), 0, 0][:2]
    is_complete = words[1:] and (not kind.needs or found.keys() & {*kind.needs.split()})
    if not is_complete or (kind.needs == "amount" and kind.word != "delay" and not amount):
        raise BenchError("lab_needs", usage=kind.line)
    return Fault(kind, words[1].lower(), " ".join(words), amount=amount, spread=spread, near="near" in found,
                 up=True if "up" in found else False if "down" in found else None, word=found.get("word", [""])[-1],
                 left=int(found["left"][-1]) if "left" in found else None,
                 chance=float(found["chance"][-1]) / 100 if "chance" in found else 1.0)


# ---- connections -------------------------------------------------------------------------------

PASS, WAIT, SWALLOW = "pass", "wait", "swallow"    # what becomes of a frame that no fault has hit
COPY = "a copy by the bench"                       # the note of a request that the bench sent once more
NOTES = {"lose": "lost by the bench", "eat": "eaten by the bench", "double": "sent twice by the bench",
         "hold": "held", "cut": "cut in the middle by the bench", PASS: "", WAIT: "held behind another frame",
         SWALLOW: "the answer to a copy, swallowed by the bench"}
NOT_EXPECTED = ("lose", "eat", "cut")              # who was to answer does not get such a request whole


@dataclass(slots=True)
class Held:
    """A frame that waits for `step` or `release`."""

    data: bytearray
    since: float
    frame: Frame | None = None             # None while its end has not come


class Stream:
    """One direction of a connection: what was read and not yet written, and what the faults make of it."""

    def __init__(self, flow: Flow, up: bool) -> None:
        self.flow, self.up = flow, up
        self.framer = Framer(b"\n" if up else FRAME_END)
        self.faults: list[Fault] = []              # those that act on its frames
        self.shaping: list[Fault] = []             # those that act on its bytes
        self.note = ""                             # what these do
        self.queue: deque[tuple[float, memoryview]] = deque()      # (when it may go, bytes)
        self.queued = self.size = self.passed = 0  # bytes: in the queue, ever read, passed since the faults changed
        self.blocked = False                       # the target takes no more
        self.finished = False                      # a FIN was read; nothing more comes
        self.ending = self.done = False            # a FIN goes out once the queue is empty; it has gone
        self.abandoned = False                     # nothing passes any more
        self.verdict: str | Fault | None = None    # on the frame that is coming in
        self.gathered = bytearray()                # of that frame, what waits for a verdict; all of it, to be doubled
        self.held: deque[Held] = deque()
        self.held_size = 0
        self.timer: float | None = None            # when `pump` is called next
        self.last_due = self.next_send = self.glue_until = self.stalled = 0.0
        self.listens = False, False                # what the loop waits for at its source: bytes, room for bytes

    @property
    def source(self) -> socket.socket:
        return self.flow.near if self.up else self.flow.far

    @property
    def target(self) -> socket.socket:
        return self.flow.far if self.up else self.flow.near

    @property
    def other(self) -> Stream:
        return self.flow.down if self.up else self.flow.up

    @property
    def inside(self) -> bool:
        """Whether the target has got the beginning of a frame and not its end."""
        return bool(self.queue) or bool(self.framer.size and not self.gathered and self.verdict in (None, PASS))

    @property
    def is_stopped(self) -> bool:
        return any(fault.kind.word in ("pull", "oneway") for fault in self.shaping)

    @property
    def wants_read(self) -> bool:
        if self.flow.half:
            return not any(fault.kind.word == "half" and self.flow.covered_by(fault.where)
                           for fault in self.flow.bench.faults)
        most = QUEUE_MOST if self.shaping else QUEUE_MARK
        return not (self.finished or self.abandoned or self.queued > most or self.held_size > QUEUE_MOST
                    or self.is_stopped)

    def suffer(self, faults: list[Fault]) -> None:
        """The faults that concern its connection are these now."""
        here = [fault for fault in faults if fault.up in (None, self.up)]
        shaping = [fault for fault in here if fault.level == STREAM or fault.kind.word == "pull"]
        shaping.sort(key=lambda fault: fault.kind.word != "glue")              # it comes before `slice`
        self.faults = [fault for fault in here if fault.level == FRAME]
        if shaping != self.shaping:
            self.shaping, self.passed, self.next_send = shaping, 0, 0.0
            self.note = ", ".join(fault.note for fault in shaping)
            if not shaping:                        # what was delayed goes now
                self.last_due = 0.0
                self.queue = deque((0.0, view) for _, view in self.queue)
        if self.held and not any(fault.kind.word == "hold" for fault in self.faults):
            self.release()
        if self.gathered and not self.faults and not self.held:
            self.verdict = PASS
            self.pass_on(self._take_gathered())
        if self.flow.connected and not self.flow.dead:
            self.pump()

    # -- bytes come in

    def readable(self) -> None:
        """The loop says that the source has something; an earlier event of this turn may have ended the connection."""
        if not self.flow.dead:
            self.flow.read(self)

    def writable(self) -> None:
        """The loop says that the source takes bytes; at first, that it has answered the call."""
        if not self.flow.connected and not self.flow.dead:
            self.flow.answered()
        elif not self.flow.dead:
            self.other.pump()

    def arrive(self, data: bytes) -> None:
        flow, bench = self.flow, self.flow.bench
        self.size += len(data)
        if self.ending:                            # `fin`: what still comes is thrown away
            return
        if flow.sealed is None and self.up:
            flow.sealed = data[:2] == b"\x16\x03"  # a TLS handshake: nothing can be read from here on
        if not flow.sealed and (self.faults or self.held or self.verdict or self.gathered or flow.copies):
            return self._arrive_in_parts(data)
        self.pass_on(data)
        if bench.capture:
            bench.capture.data(flow, self.up, data)
        if flow.sealed:
            return
        for head, size, _ in self.framer.feed(data):
            bench.record(self, head, size, self.note)

    def _arrive_in_parts(self, data: bytes) -> None:
        if self.verdict is None and self.framer.size and not self.gathered:
            self.verdict = PASS                    # its beginning has passed already
        at = 0
        for head, size, stop in self.framer.feed(data):
            self._part(data[at:stop], head, size)
            at = stop
            if self.flow.dying or self.flow.dead:
                return
        if at < len(data):
            self._part(data[at:], None, 0)

    def _part(self, data: bytes, head: bytes | None, size: int) -> None:
        """A part of one frame; with `head` it is the last. The verdict holds for the whole frame."""
        bench, frame = self.flow.bench, None
        if self.verdict is None:
            self.gathered += data
            if head is None and len(self.gathered) < DECIDE:
                return
            data = self._take_gathered()
            self.verdict = self._judge(data)
        action = self.verdict if isinstance(self.verdict, str) else self.verdict.kind.word
        note = NOTES[action] or self.note
        if bench.capture and action != SWALLOW:
            bench.capture.data(self.flow, self.up, data, note if len(data) == self.framer.size or head else "")
        if head is not None:
            self.verdict = None
            frame = bench.record(self, head, size, note, expect=action not in NOT_EXPECTED)
        self._carry_out(action, data, frame)

    def _take_gathered(self) -> bytes:
        data = bytes(self.gathered)
        self.gathered.clear()
        return data

    def _judge(self, first: bytes) -> str | Fault:
        """What becomes of the frame with these first bytes."""
        expected = self.flow.expected
        if self.up:
            word = command_of(first)
        elif found := EVENT_WORD.match(first):
            word = found[1].decode(errors="replace")
        else:
            if expected and expected[0].note == COPY:
                return SWALLOW
            word = expected[0].word if expected else ""
        for fault in self.faults:
            if fault.matches(self.up, word) and (fault.chance >= 1 or self.flow.bench.random.random() < fault.chance):
                fault.hit()
                return fault
        return WAIT if self.held else PASS

    def _carry_out(self, action: str, data: bytes, frame: Frame | None) -> None:
        """Does to a part of a frame what was decided; `frame` where it is the last part. Of `eat`, nothing passes."""
        if action == PASS:
            self.pass_on(data)
        elif action in ("hold", WAIT):
            self._hold(data, frame)
        elif action == "double":
            self._double(data, frame)
        elif action == SWALLOW and frame:
            self.flow.copies -= 1
        elif action == "lose" and frame:
            self.flow.lost(self, frame.note)
        elif action == "cut":
            self.pass_on(data[:max(len(data) // 2, 1)])
            self.flow.lost(self, NOTES["cut"])

    def _hold(self, data: bytes, frame: Frame | None) -> None:
        if not self.held or self.held[-1].frame:
            self.held.append(Held(bytearray(), time.monotonic()))
            self.flow.bench.sign_of_life(self)
        self.held[-1].data += data
        self.held[-1].frame = frame
        self.held_size += len(data)
        self.flow.refresh()

    def _double(self, data: bytes, frame: Frame | None) -> None:
        self.gathered += data
        if len(self.gathered) > QUEUE_MOST:        # too long to be kept: it passes, once
            if frame:
                frame.note = "too long to be sent twice"
            else:
                self.verdict = PASS
            self.pass_on(self._take_gathered())
        elif frame:
            whole = self._take_gathered()
            self.flow.copies += 1
            self.flow.bench.record(self, whole[:HEAD_READ], len(whole), COPY)
            self.pass_on(whole + whole)

    def release(self) -> None:
        """Lets the held frames go."""
        while self.held:
            self.release_one()
        self.flow.refresh()
        self.finish_if_empty()

    def release_one(self) -> None:
        entry = self.held.popleft()
        self.held_size -= len(entry.data)
        if entry.frame:
            entry.frame.note = f"held {time.monotonic() - entry.since:.1f} s"
        else:
            self.verdict = PASS                    # its rest follows it
        self.pass_on(bytes(entry.data))

    # -- bytes go out

    def pass_on(self, data: bytes) -> None:
        """Sends bytes to the target, or queues them for it."""
        if self.abandoned:
            return
        view = memoryview(data)
        if self.shaping:
            return self._pass_shaped(view)
        if not self.queue:
            try:
                sent = self.target.send(view)
            except BlockingIOError:
                sent = 0
            except OSError:
                return self.flow.write_failed(self)
            if sent == len(view):
                return
            view, self.blocked = view[sent:], True
        self._enqueue(view, 0.0)

    def _pass_shaped(self, view: memoryview) -> None:
        due = self._due()
        cut = next((fault for fault in self.shaping if fault.kind.word == "cut" and fault.left != 0), None)
        room = max(int(cut.amount) - self.passed, 0) if cut else len(view) + 1
        self.passed += len(view)
        if room:
            self._enqueue(view[:room], due)
        if room <= len(view):
            cut.hit()
            self.flow.lost(self, NOTES["cut"])

    def _due(self) -> float:
        """When bytes that have just come may go."""
        now = due = time.monotonic()
        chance = self.flow.bench.random
        for fault in self.shaping:
            word, seconds, spread = fault.kind.word, fault.amount / 1000, fault.spread / 1000
            fault.hits += word in ("delay", "rate", "slice", "glue")
            if word == "delay":
                due += seconds + chance.uniform(-spread, spread)
            elif word == "glue":
                if self.glue_until <= now:
                    self.glue_until = now + seconds
                due += self.glue_until - now
            elif word == "stall" and chance.random() < fault.chance:
                self.stalled = min(self.stalled * 2 or seconds or STALL_SECONDS, STALL_MOST)
                due += self.stalled
                fault.hits += 1
            elif word == "stall":
                self.stalled = 0
        return due

    def _enqueue(self, view: memoryview, due: float) -> None:
        self.last_due = max(due, self.last_due)
        self.queue.append((self.last_due, view))
        self.queued += len(view)
        self.pump()

    def pump(self) -> None:
        """Writes what may go now; calls itself again when the next may."""
        self.blocked, is_stopped = False, self.is_stopped
        for _ in range(200):                       # then the others' turn comes
            if not self.queue or is_stopped:
                break
            now = time.monotonic()
            view, wait = self._next(now)
            if wait > 0:
                self._pump_at(now + wait)
                break
            try:
                sent = self.target.send(view)
            except BlockingIOError:
                sent = 0
            except OSError:
                return self.flow.write_failed(self)
            self._sent(sent, now)
            if sent < len(view):
                self.blocked = True
                break
        else:
            self._pump_at(time.monotonic())
        self.flow.refresh()
        self.finish_if_empty()

    def _next(self, now: float) -> tuple[memoryview, float]:
        """What of the queue's head goes in one send, and how long that has to wait."""
        due, view = self.queue[0]
        wait = max(due, self.next_send) - now
        for fault in self.shaping if wait <= 0 else ():
            word, amount = fault.kind.word, fault.amount
            if word == "glue" and len(self.queue) > 1:         # everything that is due becomes one
                ready = list(itertools.takewhile(lambda entry: entry[0] <= now, self.queue))
                view = memoryview(b"".join([part for _, part in ready]))
                for _ in ready:
                    self.queue.popleft()
                self.queue.appendleft((0.0, view))
            elif word == "slice":
                view = view[:max(int(amount), 1)]
            elif word == "rate":
                view = view[:max(int(amount * 1000 * RATE_SECONDS), 1)]
                wait = max(wait, fault.free_at.get(self.cable, 0.0) - now)
        return view, wait

    def _sent(self, sent: int, now: float) -> None:
        due, view = self.queue.popleft()
        if sent < len(view):
            self.queue.appendleft((due, view[sent:]))
        self.queued -= sent
        for fault in self.shaping:
            if fault.kind.word == "slice":
                self.next_send = max(self.next_send, now + fault.spread / 1000)
            elif fault.kind.word == "rate":        # who has sent waits a little longer than who waits for the cable
                free = max(fault.free_at.get(self.cable, 0.0), now - RATE_SECONDS) + sent / (fault.amount * 1000)
                fault.free_at[self.cable] = free
                self.next_send = max(self.next_send, free + 0.001)

    @property
    def cable(self) -> tuple[str, bool]:
        """What it shares with the same direction of the hop's other connections."""
        return self.flow.hop.name, self.up

    def _pump_at(self, when: float) -> None:
        if self.timer is None or when < self.timer:
            self.timer = when
            self.flow.bench.at(when, self._pump_now)

    def _pump_now(self) -> None:
        self.timer = None
        if not self.flow.dead:
            self.pump()

    # -- its end

    def finish(self, by_bench: bool = False) -> None:
        """The source has sent a FIN, or the bench does: it goes out once all before it has gone."""
        self.finished |= not by_bench
        if not self.ending:
            self.ending = True
            if self.gathered:                      # a frame too short for a verdict, and without its end
                self.pass_on(self._take_gathered())
            self.record_rest("its end never came")
            self.finish_if_empty()
        self.flow.close_if_done()

    def record_rest(self, note: str) -> None:
        """The unfinished frame goes into the record."""
        if self.framer.size and not self.flow.sealed:
            self.flow.bench.record(self, self.framer.head, self.framer.size, note, expect=False)
            self.framer = Framer(self.framer.end)

    def finish_if_empty(self) -> None:
        """Passes on a FIN, or a reset, that waited for the queue."""
        if self.queue or self.held or self.flow.dead:
            return
        if self.flow.dying is self:
            self.flow.reset_when_sent()
        elif self.ending and not self.done and not self.abandoned:
            self.done = True
            try:
                self.target.shutdown(socket.SHUT_WR)
            except OSError:
                return self.flow.write_failed(self)
            self.flow.close_if_done()

    def abandon(self) -> None:
        """Throws away what waits; nothing passes any more."""
        self.abandoned, self.blocked = True, False
        self.queue.clear()
        self.held.clear()
        self.gathered.clear()
        self.queued = self.held_size = 0


class Flow:
    """One connection through the bench: `near` is who called, `far` who was called."""

    def __init__(self, bench: Bench, hop: Hop, number: int, near: socket.socket) -> None:
        self.bench, self.hop, self.number, self.near = bench, hop, number, near
        self.near_place = near.getpeername()[:2]
        self.far = socket.socket(socket.AF_INET6 if ":" in hop.target[0] else socket.AF_INET)
        for end in (near, self.far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.up, self.down = self.streams = Stream(self, True), Stream(self, False)
        self.connected = self.dead = False
        self.half = False                          # one end is reset, the other is open and not read until `heal`
        self.dying: Stream | None = None           # a reset that waits until what came before it has arrived
        self.sealed: bool | None = None            # TLS; None until the first bytes
        self.caller = ""                           # the realm that called, on a link
        self.linked = False                        # its greeting was granted
        self.person = ""                           # `user@realm` of the last token
        self.people: set[str] = set()              # all of them, with and without their realm
        self.expected: deque[Frame] = deque()      # requests that have no reply yet
        self.swallowed: deque[Frame] = deque(maxlen=1000)          # requests that will have none
        self.copies = 0                            # of them, copies whose reply is swallowed

    @property
    def name(self) -> str:
        """Who called: a realm, a person, or an address."""
        return self.realm or self.person or f"{self.near_place[0]}:{self.near_place[1]}"

    @property
    def held(self) -> int:
        return sum(len(stream.held) for stream in self.streams)

    @property
    def realm(self) -> str:
        """The realm that called, on a link: as it said, or the only one that can be."""
        return self.caller or self.hop.only_caller

    def covered_by(self, where: str) -> bool:
        """Whether a fault at `where` concerns it: a hop, `A>B`, `A-B`, a person, or `all`."""
        return where in self.people or where in self.hop.names(self.caller)

    # -- connecting

    def connect(self) -> None:
        """Calls the target; the caller is read once that has answered."""
        error = self.far.connect_ex(self.hop.target)
        if error not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
            return self.refuse(error)
        self.refresh()

    def refuse(self, error: int) -> None:
        """Nobody answers there: the caller is reset, since an accepted connection can not be un-accepted."""
        self.bench.mark(self, False, REFUSED, errno.errorcode.get(error, "?"))
        self.close(reset=True)

    def answered(self) -> None:
        """The target has taken the call, or not."""
        error = self.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return self.refuse(error)
        self.connected = True
        self.bench.mark(self, True, OPENED)
        self.refresh()

    def read(self, stream: Stream) -> None:
        """Takes what the source of a stream has, or its end."""
        if not stream.wants_read:
            return
        try:
            data = stream.source.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = None
        self.bench.when = time.time_ns()
        if self.half:
            self.close(reset=True)                 # the dead peer is back, and knows nothing of this connection
        elif data:
            stream.arrive(data)
        elif not stream.ending and (data is None or stream.other.abandoned):   # reset, or it takes nothing any more
            self.lost(stream)
        else:
            if not stream.ending:
                self.bench.mark(self, stream.up, FINISHED)
            stream.finish()
            self.refresh()

    def refresh(self) -> None:
        """Tells the loop what to wait for at both ends."""
        for stream in () if self.dead else self.streams:
            other, is_calling = stream.other, stream is self.down and not self.connected
            writes = is_calling or (other.blocked and not other.is_stopped)
            if stream.source.fileno() >= 0:
                self.bench.listen(stream, self.connected and stream.wants_read, writes)

    # -- its end

    def write_failed(self, stream: Stream) -> None:
        """The target takes nothing any more; what it had sent before is still read and passed on."""
        stream.abandon()
        if self.dying:
            return self.close(reset=True)
        if stream.other.finished or stream.other.abandoned:
            self.lost(stream.other)
        self.refresh()

    def lost(self, stream: Stream, note: str = "") -> None:
        """The source of `stream` is reset; so is the target, once it has got what came before."""
        if self.dying or self.dead:
            return
        self.dying = stream
        stream.record_rest(note or "its end never came")
        self.bench.mark(self, stream.up, RESET, note)
        stream.other.abandon()
        stream.finished = True
        self._close_end(stream)
        stream.finish_if_empty()
        self._close_later(reset=True)

    def _close_later(self, reset: bool = False) -> None:
        self.bench.at(time.monotonic() + RESET_WAIT, lambda: self.close(reset))

    def reset_when_sent(self) -> None:
        """A reset destroys what the kernel has not handed over yet; so it waits for that, a while."""
        if not self.dead and unsent_bytes(self.dying.target):
            self.bench.at(time.monotonic() + 0.002, self.reset_when_sent)
        else:
            self.close(reset=True)

    def cut(self) -> None:
        """Both ends get a RST at once, what waits is thrown away."""
        self.bench.mark(self, False, RESET, "cut by the bench")
        self.close(reset=True)

    def finish_both(self) -> None:
        """`fin`: what is queued passes, then both ends get a FIN. Their own is awaited, so that none is reset."""
        for stream in self.streams:
            if not stream.ending:
                stream.release()
                self.bench.mark(self, stream.up, FINISHED, "by the bench")
                stream.finish(by_bench=True)
        self._close_later()

    def close_if_done(self) -> None:
        if all(stream.done and stream.finished for stream in self.streams):
            self.close()

    def become_half(self, near: bool) -> None:
        """One end gets a RST, the other stays open and is not read."""
        stream = self.up if near else self.down
        self.bench.mark(self, stream.up, RESET, "half-open by the bench")
        self.half = True
        for each in self.streams:
            each.abandon()
        self._close_end(stream)
        self.refresh()

    def close(self, reset: bool = False) -> None:
        if self.dead:
            return
        self.dead = True
        for stream in self.streams:
            stream.abandon()
            self._close_end(stream, reset)
        self.bench.flows.pop(self.number, None)
        self.bench.journeys.flow_ended(self)

    def _close_end(self, stream: Stream, reset: bool = True) -> None:
        end = stream.source
        if end.fileno() < 0:
            return
        self.bench.listen(stream, False, False)
        if reset:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_NOW)
        end.close()


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes that the other side's kernel has not taken yet; 0 on a system that does not tell."""
    try:
        return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    except (AttributeError, OSError, ValueError):
        return 0


class Hop:
    """One listening port of the bench, and where it leads."""

    def __init__(self, name: str, host: str, port: int, target: tuple[str, int]) -> None:
        self.name, self.host, self.port, self.target = name, host, port, target
        self.is_link = name.startswith(">")
        self.realm = name.lstrip(">")
        self.only_caller = ""                      # on a link: the only realm that can be the caller, if there is one
        self.listener: socket.socket | None = None
        self.takes_calls = False                   # the loop waits for them

    def names(self, caller: str = "") -> set[str]:
        """What a fault may call it: its own name or `all`; on a link, `A>B` and `A-B` too."""
        caller, realm = caller or self.only_caller, self.realm
        pairs = {f"{caller}>{realm}", f"{caller}-{realm}", f"{realm}-{caller}"} if caller and self.is_link else set()
        return {"all", self.name, *pairs}

    def open(self) -> None:
        """Listens; with port 0, at a free one, which it keeps."""
        self.listener = socket.create_server((self.host, self.port), backlog=128,
                                             family=socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]

    def close(self) -> None:
        if self.listener:
            self.listener.close()
            self.listener = None


# ---- Bench -------------------------------------------------------------------------------------


class Bench:
    """The hops, the connections, the faults and the record. All of it lives in one thread; `do` reaches it."""

    def __init__(self, seed: int | None = None) -> None:
        self.random = random.Random(seed)
        self.loop = asyncio.SelectorEventLoop()    # of which only the waiting for sockets and moments is used
        self.hops: dict[str, Hop] = {}
        self.flows: dict[int, Flow] = {}
        self.faults: list[Fault] = []
        self.frames: deque[Frame] = deque()        # the record
        self.frame_bytes = self.frame_count = self.forgotten = 0
        self.flow_count = 0
        self.journeys = Journeys(self)
        self.capture: Capture | None = None
        self.machines: dict[str, Callable[[str], None]] = {}       # realm -> what kills, freezes, thaws, starts it
        self.states: dict[str, str] = {}           # realm -> on, off or frozen, of those machines
        self.playing: object = None                # the page whose lesson is being played: one at a time
        self.started = self.when = time.time_ns()  # `when`: the clock of what is being read
        self._watchers: list[Callable[[list[Frame]], None]] = []
        self._fresh: list[Frame] = []
        self._is_telling = False                   # those who watch are told at the end of this turn
        self._tally: tuple[float, dict[str, int]] = 0.0, {}
        self.errors: list[Exception] = []          # the bench's own faults; there ought to be none
        self._thread = threading.Thread(target=self.loop.run_forever, name="bench", daemon=True)

    # -- from other threads

    def add_hop(self, name: str, target: tuple[str, int], port: int = 0, host: str = "127.0.0.1") -> Hop:
        """A new hop, listening; `>NAME` is one for links. Before `start`, or inside of `do`. Raises OSError."""
        address = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)[0][4][:2]
        hop = Hop(name, host, port, address)
        hop.open()
        self.hops[name] = hop
        realms = {each.realm for each in self.hops.values()}
        for each in self.hops.values():
            others = realms - {each.realm}
            each.only_caller = next(iter(others)) if each.is_link and len(others) == 1 else ""
        self._listen(hop, is_open=True, takes_calls=True)
        return hop

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
        for flow in list(self.flows.values()):
            flow.close(reset=True)
        for hop in self.hops.values():
            self._listen(hop, is_open=False, takes_calls=False)
        self.stop_capture()
        self.loop.close()

    def do(self, function: Callable[[], Any]) -> Any:
        """Runs the function in the loop and returns what it returns."""
        async def call() -> Any:
            return function()

        if threading.current_thread() is self._thread or not self._thread.is_alive():
            return function()
        return asyncio.run_coroutine_threadsafe(call(), self.loop).result(30)

    def watch(self, callback: Callable[[list[Frame]], None]) -> Callable[[], None]:
        """From now on `callback` gets each turn's frames as one list, in the bench's thread. Returns what ends it.

        The list is empty where only a fault, a port or a machine has changed.
        """
        def end() -> None:
            self._watchers = [each for each in self._watchers if each is not callback]

        self.do(lambda: self._watchers.append(callback))
        return lambda: self.do(end)

    def command(self, line: str) -> tuple[str, dict[str, object]]:
        """Carries out a fault, `heal`, `step` or `release`; returns the text that says so. Raises BenchError."""
        words = line.split()
        if words[0] == "heal":
            return "lab_healed", {"count": self.do(lambda: self.heal(words[1] if words[1:] else ""))}
        if words[0] in ("release", "step"):
            count = int(words[1]) if words[1:] and words[1].isdecimal() else None
            count = count or (1 if words[0] == "step" else None)
            return "lab_released", {"count": self.do(lambda: self.release(count))}
        if words[0] in MACHINE_STATES:
            machine = self.machines.get(words[1] if words[1:] else "")
            if machine is None:
                raise BenchError("lab_not_ours", realm=" ".join(words[1:]))
            machine(words[0])
            self.states[words[1]] = MACHINE_STATES[words[0]]
            self.do(self.touch)
            return "lab_fault_set", {"fault": line}
        fault = parse_fault(words)
        self.do(lambda: self.set_fault(fault))
        if fault in self.faults:
            return "lab_fault_set", {"fault": fault.text}
        return "lab_fault_done", {"fault": fault.text, "hits": fault.hits}

    # -- faults

    def touch(self) -> None:
        """Lets those who watch know that something other than a frame is new. In the loop."""
        if not self._is_telling:
            self._is_telling = True
            self.loop.call_soon(self._call, self._tell)

    def _tell(self) -> None:
        fresh, self._fresh, self._is_telling = self._fresh, [], False
        for callback in self._watchers:
            callback(fresh)

    def set_fault(self, fault: Fault) -> None:
        """Breaks something. Raises BenchError where the place is unknown."""
        where, kind = fault.where, fault.kind.word
        flows = [flow for flow in self.flows.values() if flow.covered_by(where)]
        known = any(where in hop.names() for hop in self.hops.values()) or "@" in where
        if not known and not flows and where not in self.journeys.people:
            raise BenchError("lab_no_such_hop", name=where)
        if kind != "fin" and not (kind in ("cut", "half") and fault.level == CONNECTION and fault.left):
            self.faults.append(fault)
        for flow in flows if fault.level == CONNECTION or kind == "oneway" else ():
            fault.hit()
            if kind == "cut":
                flow.cut()
            elif kind == "fin":
                flow.finish_both()
            elif kind == "half" and not flow.half:
                flow.become_half(fault.near)
        self._apply()

    def heal(self, where: str = "") -> int:
        """Ends the faults at that place, or all of them; returns how many."""
        ended = [fault for fault in self.faults if where in ("", "all", fault.where)]
        self.faults = [fault for fault in self.faults if fault not in ended]
        self._apply()
        return len(ended)

    def release(self, count: int | None = None) -> int:
        """Lets held frames go: so many, the one that waits longest first, or all; then nothing is held any more."""
        gone, streams = 0, [stream for flow in self.flows.values() for stream in flow.streams]
        if count is None:
            self.faults = [fault for fault in self.faults if fault.kind.word != "hold"]
        while gone != count and (waiting := [stream for stream in streams if stream.held]):
            min(waiting, key=lambda stream: stream.held[0].since).release_one()
            gone += 1
        self._apply()
        return gone

    def _apply(self) -> None:
        """Tells every connection which faults concern it, and every port whether it takes calls."""
        self.touch()
        for hop in self.hops.values():
            mine = {fault.kind.word for fault in self.faults
                    if fault.level == CONNECTION and fault.where in hop.names()}
            self._listen(hop, "cut" not in mine, not mine & {"cut", "pull"})
        for flow in list(self.flows.values()):
            self.apply_to(flow)

    def _listen(self, hop: Hop, is_open: bool, takes_calls: bool) -> None:
        if hop.takes_calls and not takes_calls:
            self.loop.remove_reader(hop.listener)
        if not is_open:
            hop.close()
        elif not hop.listener:
            hop.open()
        if takes_calls and not hop.takes_calls:
            self.loop.add_reader(hop.listener, self._call, functools.partial(self._accept, hop))
        hop.takes_calls = takes_calls

    def apply_to(self, flow: Flow) -> None:
        """Tells a connection which faults concern it: they changed, or who called is known now."""
        mine = [fault for fault in self.faults if flow.covered_by(fault.where)]
        if any(fault.kind.word == "cut" and fault.level == CONNECTION for fault in mine) and not flow.dead:
            flow.cut()
        for stream in flow.streams:
            if not flow.dead:
                stream.suffer(mine)

    def sign_of_life(self, stream: Stream) -> None:
        """While a link is held its caller gets a blank line now and then, so that it does not give the link up."""
        if not stream.flow.hop.is_link:
            return

        def send() -> None:
            flow = stream.flow
            if stream.held and not flow.dead and not flow.dying:
                if not flow.down.inside and not flow.down.shaping:
                    flow.down.pass_on(b"\r\n")
                self.at(time.monotonic() + HOLD_SIGN, send)

        self.at(time.monotonic() + HOLD_SIGN, send)

    # -- the record

    def record(self, stream: Stream, head: bytes, size: int, note: str = "", expect: bool = True) -> Frame:
        """One more frame. A request whose reply is expected waits for it; a reply belongs to the oldest of them."""
        flow, answers = stream.flow, None
        if stream.up:
            kind, word = REQUEST, command_of(head)
        elif found := EVENT_WORD.match(head):
            kind, word = EVENT, found[1].decode(errors="replace")
        else:
            kind, word = REPLY, ""
            if flow.expected and head.strip():
                answers = flow.expected.popleft()
                word = answers.word
        self.frame_count += 1
        frame = Frame(self.frame_count, self.when, flow, stream.up, kind, word, head, size, note, answers)
        if answers:
            answers.answer = frame
        elif kind is REQUEST:
            (flow.expected if expect else flow.swallowed).append(frame)
            if len(flow.expected) > EXPECTED_MOST:             # a server that never answers
                flow.expected.popleft()
        self.journeys.see(frame)
        if len(head) > HEAD:
            frame.head = head[:HEAD]
        self._keep(frame)
        return frame

    def mark(self, flow: Flow, up: bool, kind: str, note: str = "") -> None:
        """What became of a connection goes into the record too, and into the capture."""
        if self.capture:
            self.capture.mark(flow, up, kind, note)
        self.frame_count += 1
        self._keep(Frame(self.frame_count, time.time_ns(), flow, up, kind, kind, b"", 0, note, who=flow.name))

    def _keep(self, frame: Frame) -> None:
        self.frames.append(frame)
        self.frame_bytes += len(frame.head)
        while len(self.frames) > RECORD_FRAMES or self.frame_bytes > RECORD_BYTES:
            oldest = self.frames.popleft()
            oldest.answers = oldest.answer = oldest.asks = None
            self.frame_bytes -= len(oldest.head)
            oldest.head = oldest.head[:HEAD_LEFT]
            self.forgotten += 1
        if self._watchers:
            self._fresh.append(frame)
            self.touch()

    def tally(self) -> dict[str, int]:
        """The counters as they were a moment ago at most: many pages may ask for them often."""
        if time.monotonic() > self._tally[0]:
            self._tally = time.monotonic() + TALLY_SECONDS, self.do(self.journeys.counters)
        return self._tally[1]

    def clear(self) -> None:
        """Forgets the record and the messages that were followed; connections and faults stay."""
        self.touch()
        self.frames.clear()
        self.frame_bytes = self.forgotten = 0
        self.journeys.clear()

    def start_capture(self, path: Path, most: int, true_addresses: bool = False) -> None:
        """From now on all that the ends send goes into this file. Raises OSError."""
        self.stop_capture()
        self.capture = Capture(path, list(self.hops), most, true_addresses)

    def stop_capture(self) -> Capture | None:
        ended, self.capture = self.capture, None
        if ended:
            ended.close()
        return ended

    # -- the loop

    def at(self, when: float, function: Callable[[], object]) -> None:
        self.loop.call_at(when, self._call, function)

    def listen(self, stream: Stream, *wanted: bool) -> None:
        """What the loop waits for at the source of a stream: bytes, and room for bytes."""
        if wanted == stream.listens:
            return
        loop, sock = self.loop, stream.source
        for listens, wants, add, remove, ready in zip(
                stream.listens, wanted, (loop.add_reader, loop.add_writer), (loop.remove_reader, loop.remove_writer),
                (stream.readable, stream.writable), strict=True):
            if wants and not listens:
                add(sock, self._call, ready)
            elif listens and not wants:
                remove(sock)
        stream.listens = wanted

    def _accept(self, hop: Hop) -> None:
        try:
            near, _ = hop.listener.accept()
        except OSError:                            # the caller has gone already
            return
        if len(self.flows) >= FLOWS_MOST:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_NOW)
            near.close()
            return
        self.flow_count += 1
        try:
            flow = self.flows[self.flow_count] = Flow(self, hop, self.flow_count, near)
        except OSError:
            near.close()
            return
        self.apply_to(flow)
        if not flow.dead:
            flow.connect()

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        """A fault of the bench's own ends one connection, not the bench."""
        try:
            function(*arguments)
        except Exception as error:
            self.errors.append(error)
            traceback.print_exc()
            owner = getattr(function, "__self__", None)
            if isinstance(owner, Flow | Stream):
                (owner.flow if isinstance(owner, Stream) else owner).close(reset=True)


# ---- Journeys ----------------------------------------------------------------------------------

SENDS = {word for word, command in COMMANDS.items() if command.is_send}
TAKES = {"inbox", "getrealminbox"}
GROUP_WORDS = {"addgroup": True, "joingroup": True, "leavegroup": False}


@dataclass(slots=True, eq=False)
class Journey:
    """One message on its way: `uid` names it on every hop. A request has one too, before its reply names it."""

    uid: str = ""
    number: int = 0
    sender: str = ""
    target: str = ""
    text: str = ""
    tag: str = ""
    known_by: tuple[str, str] = "", ""                             # where it stands among those without a uid
    is_group: bool = False
    asked: list[Frame] = field(default_factory=list)               # its requests; a repeat is one more
    legs: list[Frame] = field(default_factory=list)                # every frame that speaks of it
    items: dict[tuple[str, str], int] = field(default_factory=dict)            # (caller, callee) -> seq on that link
    repeats: int = 0                                               # items that came again
    on_disk: dict[str, Frame] = field(default_factory=dict)        # realm -> the frame that said so
    seen: dict[str, set[int]] = field(default_factory=dict)        # person -> the ids that they know it by
    seen_at: dict[str, Frame] = field(default_factory=dict)
    answer: str = ""                                               # OK, queued, or the code of the refusal
    refused: str = ""                                              # the code of another realm's refusal
    sha256: str = ""                                               # of its file
    pieces: Sequence[int] = (0, 0)                                 # pieces of that file on a link, and their bytes
    expected: Set[str] = frozenset()                               # who has to see it, as far as the bench knows

    @property
    def home(self) -> str:
        return self.uid.partition(":")[0] or self.sender.rpartition("@")[2]

    @property
    def refusal(self) -> str:
        """The code of a refusal, by whichever realm."""
        return self.refused or (self.answer if self.answer not in ("", "OK", "queued") else "")

    def is_like(self, other: Journey) -> bool:
        """Whether the other one may be this message, as far as text and people say."""
        return (self.sender, self.target, self.text) == (other.sender, other.target, other.text)

    def verdict(self) -> bool | None:
        """True: everybody has it once. False: stored twice. None: under way, or a recipient is not on the bench."""
        if any(len(ids) > 1 for ids in self.seen.values()):
            return False
        return True if self.expected and self.expected <= set(self.seen) else None


class Journeys:
    """Follows each message over all hops. A journey begins at whichever frame names its uid first."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.tokens: OrderedDict[bytes, str] = OrderedDict()       # SHA-256 of a token -> user@realm
        self.people: dict[str, set[str]] = {}                      # user -> user@realm, of those on the bench
        self.number = 0
        self.clear()

    def clear(self) -> None:
        """Forgets every message; who is who stays known."""
        self.all: OrderedDict[int, Journey] = OrderedDict()
        self.by_uid: dict[str, Journey] = {}
        self.nameless: dict[tuple[str, str], list[Journey]] = {}   # without a uid: (user, text) -> journeys
        self.under_way: dict[tuple[str, str, str], dict[int, Journey]] = {}        # (caller, callee, stream) -> by seq
        self.pieces: OrderedDict[str, list[int]] = OrderedDict()   # SHA-256 -> pieces, bytes
        self.members: dict[str, set[str]] = {}                     # group@realm -> members on the bench
        self.past: Counter[str] = Counter()                        # of journeys that were forgotten

    # -- frames

    def see(self, frame: Frame) -> None:
        """Takes one frame, and says in it which messages it speaks of."""
        if frame.kind is REQUEST:
            self._request(frame)
        elif frame.kind is EVENT:
            self._event(frame)
        else:
            self._reply(frame)
        frame.who = frame.who or frame.flow.caller or frame.flow.person

    def _request(self, frame: Frame) -> None:
        flow, word = frame.flow, frame.word
        if word == "piece":
            self._piece(frame)
        elif word == "deliver":
            self._deliver(frame)
        elif word == "peer":
            words = frame.head.split()
            if len(words) > 1:
                flow.caller = words[1].decode(errors="replace").lower()
                self.bench.apply_to(flow)
        elif word.startswith("recv"):
            self._old_link(frame)
        else:
            command = COMMANDS.get(word)
            if command and command.names[:1] == ["T"]:
                self._with_token(frame, command)

    def _with_token(self, frame: Frame, command: common.Command) -> None:
        head = frame.head
        if len(head) < frame.size:                 # it may end in the middle of a letter
            head = head.decode(errors="ignore").encode()
        try:
            request = common.parse_request(*common.split_tag(head))
        except common.ChatError:
            return
        words = request.arguments or [""]
        person = self.tokens.get(digest(words[0]), "")
        if person and person != frame.flow.person:
            self._name(frame.flow, person)
        frame.who = person
        if command.word not in SENDS or frame.note == COPY:
            return
        values = dict(zip([name.strip("[]…") for name in command.names], words, strict=False))
        several = values.get("GROUP-or-USERS", "")
        is_group = "GROUP" in values or several.startswith("group:")
        target = values.get("USER") or values.get("GROUP") or several.removeprefix("group:")
        address = with_realm(target.lower(), values.get("REALM") or frame.flow.hop.realm)
        text = values.get("TEXT") or common.decode_file_name(values.get("NAME", ""))
        frame.asks = Journey(sender=person or f"?@{frame.flow.hop.realm}", target="" if "," in address else address,
                             text=text.strip(), tag=request.tag or "", is_group=is_group, asked=[frame])

    def _reply(self, frame: Frame) -> None:
        asked, head = frame.answers, frame.head
        if asked is None:
            return
        ask, asked.asks = asked.asks, None
        if asked.word in ("auth", "register"):
            reply = load(head)
            if "tokenid" in reply:
                user = reply.get("user") or b"".join(asked.head.split()[1:2]).decode(errors="replace") or "?"
                person = with_realm(str(user).lower(), frame.flow.hop.realm)
                self.tokens[digest(str(reply["tokenid"]))] = person
                if len(self.tokens) > TOKENS_MOST:
                    self.tokens.popitem(last=False)
                self._name(frame.flow, person)
                asked.who = person
        elif asked.word in ("deliver", "peerproof"):
            self._delivered(frame)
        elif asked.word in TAKES:
            self._taken(frame)
        elif asked.word in GROUP_WORDS and asked.who and b'"ERROR"' not in head[:40]:
            group = asked.head.split()[-1].decode(errors="replace").lower()
            self._member(with_realm(group, frame.flow.hop.realm), asked.who, GROUP_WORDS[asked.word])
        elif ask:
            self._answered(ask, frame)

    def _name(self, flow: Flow, person: str) -> None:
        flow.person = person
        flow.people |= {person, person.partition("@")[0]}
        self.people.setdefault(person.partition("@")[0], set()).add(person)
        self.bench.apply_to(flow)

    def _member(self, group: str, person: str, is_member: bool) -> None:
        members = self.members.setdefault(group, set())
        (members.add if is_member else members.discard)(person)

    # -- a message is asked for, and answered

    def _answered(self, ask: Journey, frame: Frame) -> None:
        reply = load(frame.head)
        uids = reply.get("uids") or [reply.get("uid")]
        for uid in uids if isinstance(uids, list) else []:
            uid = uid if isinstance(uid, str) else ""
            if uid in self.by_uid or len(uids) > 1:
                journey = self._of_uid(uid)
                self._absorb(journey, ask)
            else:
                journey = self._begin(uid, ask)
            self._add(journey, frame)
            self._judge_answer(journey, reply, frame)
            while uid and ask.tag and (first := self._nameless(
                    ask, lambda other: (other.sender, other.tag) == (ask.sender, ask.tag))):
                self._absorb(journey, first)       # a repeat with the same tag is the same message

    def _absorb(self, journey: Journey, other: Journey) -> None:
        """What began as another message is this one: its requests are tied to it."""
        if other.number:
            self._forget(other)
        journey.sender, journey.target = journey.sender or other.sender, journey.target or other.target
        journey.text, journey.is_group = journey.text or other.text, journey.is_group or other.is_group
        journey.asked = sorted((*journey.asked, *other.asked), key=lambda frame: frame.number)
        for frame in other.asked:
            frame.journeys = tuple(number for number in frame.journeys if number != other.number)
            self._add(journey, frame)
        self._learn(journey)
        self._expect(journey)

    def _learn(self, journey: Journey) -> None:
        """A token that was made before the bench looked: the message says whose it is."""
        frame = journey.asked[-1] if journey.asked else None
        if frame and journey.sender and journey.sender[0] != "?" and frame.who in ("", frame.flow.hop.realm):
            words = frame.head.split()
            token = words[2 if words[0][:1] == b"@" else 1]
            self.tokens[digest(token.decode(errors="replace"))] = frame.who = journey.sender
            self._name(frame.flow, journey.sender)

    def _judge_answer(self, journey: Journey, reply: dict, frame: Frame) -> None:
        if reply.get("status") == "OK" or "id" in reply:
            journey.on_disk.setdefault(frame.flow.hop.realm, frame)
        if reply.get("status") != "OK":
            journey.answer = str(reply.get("code") or "ERROR")
        else:
            journey.answer = "queued" if reply.get("queued") else "OK"
            there = journey.target.rpartition("@")[2]
            if journey.answer == "OK" and there != frame.flow.hop.realm and journey.uid:
                journey.on_disk.setdefault(there, frame)

    def flow_ended(self, flow: Flow) -> None:
        """Requests without an answer: a repeat may come, or the message is known by its text already."""
        for frame in (*flow.expected, *flow.swallowed):
            ask, frame.asks = frame.asks, None
            if ask:
                known = next((journey for journey in reversed(self.all.values())
                              if not journey.asked and journey.is_like(ask)), None)
                if known:
                    self._absorb(known, ask)
                else:
                    self._begin("", ask)
        flow.expected.clear()

    # -- a message passes between realms

    def _deliver(self, frame: Frame) -> None:
        words = frame.head.split(b" ", 3)
        if len(words) < 4:
            return
        caller, callee = frame.flow.realm, frame.flow.hop.realm
        link = caller, callee, words[1].decode(errors="replace")
        for item in load_items(words[3]):
            seq = item.get("seq")
            if not isinstance(seq, int):
                continue
            if item.get("do") == "member":
                self._member(with_realm(item.get("group"), caller), with_realm(item.get("user"), callee),
                             bool(item.get("in", item.get("member", True))))
            if isinstance(item.get("uid"), str) and item.get("do") in ("send", "post", "copy", None):
                self._item(frame, link, seq, item)

    def _item(self, frame: Frame, link: tuple[str, str, str], seq: int, item: dict) -> None:
        caller, callee, _ = link
        journey = self._of_uid(item["uid"])
        if (caller, callee) in journey.items:
            journey.repeats += 1
        journey.items[caller, callee] = seq
        self.under_way.setdefault(link, {})[seq] = journey
        kind = item.get("do")
        realm = caller if kind == "copy" else callee
        described = {"from": with_realm(item.get("from"), journey.home), "msg": item.get("text", item.get("msg")),
                     "file": item.get("file"), ("to" if kind in ("send", None) else "group"):
                     with_realm(item.get("group") or item.get("to"), realm)}
        self._describe(journey, described)
        if journey.sha256 in self.pieces:
            journey.pieces = self.pieces[journey.sha256]
        self._add(journey, frame)

    def _delivered(self, frame: Frame) -> None:
        """What the other realm has: `have` up to a number, of one stream or (at the greeting) of each."""
        asked, reply, flow = frame.answers, load(frame.head), frame.flow
        if asked.word == "peerproof":
            flow.linked = reply.get("status") == "OK"
            have, refused = reply.get("have"), reply.get("refused")
            pairs = [(str(number), value) for number, value in enumerate(have if isinstance(have, list) else [])]
            refusals = refused if isinstance(refused, list) else [{}] * len(pairs)
        else:
            pairs = [(asked.head.split()[1].decode(errors="replace"), reply.get("have"))]
            refusals = [reply.get("refused")]
        for (stream, have), refused in zip(pairs, refusals, strict=False):
            refused = refused if isinstance(refused, dict) else {}
            waiting = self.under_way.get((flow.realm, flow.hop.realm, stream), {})
            for seq in [seq for seq in waiting if isinstance(have, int) and seq <= have]:
                journey = waiting.pop(seq)
                if code := refused.get(str(seq)):
                    journey.refused = str(code)
                else:
                    journey.on_disk.setdefault(flow.hop.realm, frame)
                self._add(journey, frame)

    def _piece(self, frame: Frame) -> None:
        words = frame.head.split(None, 4)
        if len(words) > 3:
            count = self.pieces.setdefault(words[1].decode(errors="replace"), [0, 0])
            count[0] += 1
            count[1] += frame.size
            if len(self.pieces) > JOURNEYS_MOST:
                self.pieces.popitem(last=False)

    def _old_link(self, frame: Frame) -> None:
        """The course's first dialect: `recvrealmprivatemsg FROM REALM TO TEXT`; no number names a message there."""
        words = frame.head.decode(errors="replace").split(None, 4)
        if len(words) == 5:
            about = Journey(target=words[3].lower(), text=words[4].strip())
            journey = self._nameless(about, lambda other: not other.items)
            if journey:
                journey.items[frame.flow.name, frame.flow.hop.realm] = 0
                self._add(journey, frame)

    # -- a message is seen

    def _event(self, frame: Frame) -> None:
        event = load(frame.head)
        if frame.word == "group" and isinstance(event.get("user"), str):
            self._member(with_realm(event.get("group"), frame.flow.hop.realm), event["user"],
                         event.get("change") != "left")
        if frame.word == "message":
            self._message(event, frame.flow.person, frame)
        elif isinstance(uid := event.get("uid"), str) and uid in self.by_uid:
            journey = self.by_uid[uid]
            self._add(journey, frame)
            if frame.word == "status":
                if event.get("state") == "delivered":
                    journey.on_disk.setdefault(journey.target.rpartition("@")[2], frame)
                elif event.get("state") == "failed":
                    journey.refused = str(event.get("code") or "failed")

    def _taken(self, frame: Frame) -> None:
        messages = load(frame.head).get("messages")
        lists = messages.values() if isinstance(messages, dict) else [messages]
        for some in lists:
            for message in some if isinstance(some, list) else []:
                if isinstance(message, str):
                    message = load(message)
                if isinstance(message, dict):
                    self._message(message, frame.answers.who, frame)

    def _message(self, message: dict, person: str, frame: Frame) -> None:
        uid = message.get("uid")
        if isinstance(uid, str):
            journey = self._of_uid(uid)
        else:
            about = Journey(target=str(message.get("to") or person), text=text_of(message))
            journey = self._nameless(about, lambda other: person not in other.seen)
            if journey is None:
                return
        self._describe(journey, message)
        self._add(journey, frame)
        if person and (person != journey.sender or person == journey.target):
            number = message.get("id")
            journey.seen.setdefault(person, set()).add(number if isinstance(number, int) else 0)
            journey.seen_at.setdefault(person, frame)

    # -- journeys

    def _begin(self, uid: str, journey: Journey | None = None) -> Journey:
        self.number += 1
        journey = journey or Journey()
        journey.uid, journey.number, self.all[self.number] = uid, self.number, journey
        if uid:
            self.by_uid[uid] = journey
        else:
            journey.known_by = by_text(journey)
            self.nameless.setdefault(journey.known_by, []).append(journey)
        for frame in journey.asked:
            self._add(journey, frame)
        self._expect(journey)
        if len(self.all) > JOURNEYS_MOST:
            oldest = next(iter(self.all.values()))
            self.past.update(states(oldest))
            self._forget(oldest)
        return journey

    def _forget(self, journey: Journey) -> None:
        del self.all[journey.number]
        if journey.uid:
            del self.by_uid[journey.uid]
            return
        alike = self.nameless[journey.known_by]
        alike.remove(journey)
        if not alike:
            del self.nameless[journey.known_by]

    def _nameless(self, about: Journey, question: Callable[[Journey], bool]) -> Journey | None:
        """The first message without a uid to this user with this text that was not refused, and is asked for."""
        return next((journey for journey in self.nameless.get(by_text(about), ())
                     if not journey.refusal and question(journey)), None)

    def _of_uid(self, uid: str) -> Journey:
        return self.by_uid.get(uid) or self._begin(uid)

    def _add(self, journey: Journey, frame: Frame) -> None:
        if journey.number not in frame.journeys[-1:]:
            frame.journeys += (journey.number,)
        if len(journey.legs) < LEGS_MOST and frame not in journey.legs[-3:]:
            journey.legs.append(frame)

    def _describe(self, journey: Journey, message: dict) -> None:
        """A message, an item or an event tells what the journey does not know yet."""
        if not journey.sender or journey.sender.startswith("?"):
            journey.sender = str(message.get("from") or "")
        journey.is_group = journey.is_group or bool(message.get("group"))
        journey.target = journey.target or str(message.get("group") or message.get("to") or "")
        if isinstance(file := message.get("file"), dict):
            journey.sha256 = str(file.get("sha256", ""))
        journey.text = journey.text or text_of(message)
        self._learn(journey)
        self._expect(journey)
        if not journey.asked and (ask := self._nameless(journey, journey.is_like)):
            self._absorb(journey, ask)

    def _expect(self, journey: Journey) -> None:
        if journey.is_group:
            journey.expected = self.members.get(journey.target, set()) - {journey.sender}
        elif journey.target:
            journey.expected = {journey.target}

    def counters(self, settled: bool = False) -> dict[str, int]:
        """asked, here, there, seen, under_way, lost, doubled. Only `settled` calls what has not arrived lost."""
        total = Counter(self.past)
        for journey in self.all.values():
            total.update(states(journey))
        if settled:
            total["lost"], total["under_way"] = total["under_way"], 0
        return {name: total[name] for name in ("asked", "here", "there", "seen", "under_way", "lost", "doubled")}


def states(journey: Journey) -> list[str]:
    """Where a message is, in the words of the counters."""
    found = ["asked"] if journey.asked else []
    elsewhere = any(realm != journey.home for realm in journey.on_disk)
    found += ["here"] if journey.home in journey.on_disk else []
    found += ["there"] if elsewhere else []
    verdict = journey.verdict()
    if verdict is True:
        found.append("seen")
    elif verdict is False:
        found.append("doubled")
    elif not journey.refusal:
        found.append("under_way")
    return found


def by_text(journey: Journey) -> tuple[str, str]:
    """What finds a message without a uid: whom it is for, and what it says."""
    return journey.target.partition("@")[0], journey.text


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def load(head: bytes | str) -> dict:
    """A reply or an event as a dict; empty where it is none, or cut off."""
    try:
        value = json.loads(head)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def text_of(message: dict) -> str:
    """The text of a message, or the name of its file."""
    file = message.get("file")
    return str(message.get("msg") or (file.get("name") if isinstance(file, dict) else "") or "").strip()


def load_items(text: bytes) -> Iterator[dict]:
    """The items of a batch, one by one: a batch that was too long for the record gives those that are whole."""
    decoder, data, at = json.JSONDecoder(), text.decode(errors="replace"), 1
    while at < len(data):
        try:
            item, at = decoder.raw_decode(data, at)
        except ValueError:
            return
        if isinstance(item, dict):
            yield item
        while data[at:at + 1] in (",", " "):
            at += 1


def with_realm(name: object, realm: str) -> str:
    """`messi` -> `messi@mesin1`; a full address stays."""
    name = str(name or "")
    return name if "@" in name or not name else f"{name}@{realm}"


# ---- explanations ------------------------------------------------------------------------------

class Field(NamedTuple):
    """One field of a frame: its name, its value, and what it means."""

    name: str
    value: str
    meaning: str


def explain(frame: Frame, language: int = INDONESIAN, hide: bool = True) -> list[Field]:
    """The fields of a frame with their meanings, and why it looks as it does. Secrets are hidden, if not asked for."""
    fields = []
    for name, value in common.decode(mask(frame.head) if hide else frame.head) if frame.head else ():
        name = name.strip("[]")
        meaning = say(f"word.{name}", language) if f"word.{name}" in TEXTS else ""
        if name == "command" and value in COMMANDS:
            meaning = (COMMANDS[value].indonesian, COMMANDS[value].english)[language]
        fields.append(Field(name, value, meaning))
    return [*fields, Field("", "", say(f"why.{frame.kind}", language))]


def pick(pattern: bytes, head: bytes) -> str:
    found = re.search(pattern, head)
    return found[1].decode(errors="replace") if found else ""


def summary(frame: Frame, most: int = 60) -> str:
    """A frame in a few words, without its secrets: `send henderson hello`, `deliver talk #5`, `OK id 17`."""
    if frame.kind == REQUEST:
        text = _request_summary(frame)
    elif frame.kind == EVENT:
        text = " ".join(["event", frame.word, pick(rb'"id"\s*:\s*(\d+)', frame.head)]).strip()
    elif frame.kind == REPLY:
        text = _reply_summary(frame.head)
    else:
        text = {OPENED: "SYN", FINISHED: "FIN", RESET: "RST", REFUSED: "refused"}[frame.kind]
    text = common.LINE_BREAK.join(text.split(common.LINE_BREAK)).replace("\n", " ").replace("\r", "")
    text = "".join(letter if letter.isprintable() else "·" for letter in text)
    return text if len(text) <= most else text[:most - 1] + "…"


def _request_summary(frame: Frame) -> str:
    words = visible(mask(frame.head.strip())).split(" ")
    if frame.word == "deliver" and len(words) > 2:
        numbers = [found.decode() for found in re.findall(rb'"seq"\s*:\s*(\d+)', frame.head)]
        span = "…".join(f"#{number}" for number in dict.fromkeys([*numbers[:1], *numbers[-1:]]))
        return f"deliver {STREAMS.get(words[1], words[1])} {span}"
    if frame.word == "piece" and len(words) > 3:
        return f"piece {words[1][:8]} {words[3]}"
    if frame.word in ("peer", "peerproof"):
        return " ".join(words[:2 if frame.word == "peer" else 1])
    hidden = visible(common.HIDDEN)
    return " ".join(word for word in words if word != hidden)


def _reply_summary(head: bytes) -> str:
    if not head.startswith(b"{"):
        return visible(head[:40])
    parts = ["ERROR " + pick(rb'"code"\s*:\s*"([^"]*)"', head)] if b'"ERROR"' in head[:200] else ["OK"]
    for name, pattern in (("have", rb'"have"\s*:\s*(\[[\d,\s]*\]|\d+)'), ("id", rb'"id"\s*:\s*(\d+)')):
        value = pick(pattern, head)
        parts += [f"{name} {value}"] if value else []
    parts += ["queued"] if re.search(rb'"queued"\s*:\s*true', head) else []
    return " ".join(parts)


# ---- Capture -----------------------------------------------------------------------------------

SEGMENT = 32 * KIB             # the most data of one synthesised packet
ACK_EVERY = 64 * KIB           # data after which the other side acknowledges with a packet of its own
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SYN_OPTIONS = b"\x02\x04\xff\xd7\x01\x03\x03\x07"      # MSS 65495, window scale 7


def checksum(*parts: bytes | memoryview) -> int:
    """RFC 1071, of parts of which only the last may be odd. 2**16 is 1 modulo 65535: a number is its words' sum."""
    number = sum(int.from_bytes(part, "big") << (8 if len(part) % 2 else 0) for part in parts)
    return 0xFFFF - (number % 0xFFFF or (0xFFFF if number else 0))


def block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", 12 + len(body))
    return b"".join((struct.pack("<I", kind), size, body, size))


def option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


class Talk:
    """One connection as the capture shows it: true ends, and how far each side's numbers are."""

    __slots__ = ("interface", "places", "packed", "next", "unacknowledged", "ended")

    def __init__(self, number: int, interface: int, near: tuple[str, int], far: tuple[str, int]) -> None:
        self.interface, self.places = interface, (near, far)
        self.packed = [ipaddress.ip_address(place[0].partition("%")[0]).packed for place in self.places]
        first = number * 64_007_011 & 0xFFFFFFFF   # a port that is used again begins at another number
        self.next, self.unacknowledged, self.ended = [first, first + 5000], [0, 0], [False, False]


class Capture:
    """What each end sent, when it sent it, as TCP in a pcapng file: Wireshark reads it like a capture of the network.

    One connection through the bench is one TCP stream between its true ends. The packets are synthesised: the bench
    sees bytes, not packets. What a fault did stands in the packet's comment.
    """

    def __init__(self, path: Path, hops: list[str], most: int, true_addresses: bool = False) -> None:
        self.path, self.most, self.true_addresses = path, most, true_addresses
        self.file: BinaryIO | None = path.open("wb", buffering=MIB)
        self.size = self.packets = 0
        self.talks: dict[int, Talk | None] = {}    # None: the connection has ended
        self.hops: dict[str, int] = {}
        self._write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + option(4, b"ChatLab")
                          + option(0, b"")))
        for name in hops:
            self._interface(name)

    def _interface(self, name: str) -> int:
        if name not in self.hops:
            self.hops[name] = len(self.hops)
            self._write(block(1, struct.pack("<HHI", 101, 0, 0) + option(2, name.encode()) + option(9, b"\x09")
                              + option(0, b"")))
        return self.hops[name]

    def _write(self, data: bytes) -> None:
        if self.file:
            self.file.write(data)
            self.size += len(data)

    @property
    def is_full(self) -> bool:
        """Whether it has ended by itself."""
        return self.file is None and self.size >= self.most

    def close(self) -> None:
        if self.file:
            self.file.close()
            self.file = None

    # -- what happens on a connection

    def open(self, flow: Flow) -> Talk | None:
        """SYN, SYN-ACK, ACK, if the capture has not seen the connection yet. None where it has ended."""
        if flow.number in self.talks:
            return self.talks[flow.number]
        talk, now = self._talk(flow), time.time_ns()
        self._packet(talk, True, SYN, now, options=SYN_OPTIONS)
        self._packet(talk, False, SYN | ACK, now, options=SYN_OPTIONS)
        self._packet(talk, True, ACK, now)
        return talk

    def _talk(self, flow: Flow) -> Talk:
        talk = self.talks[flow.number] = Talk(flow.number, self._interface(flow.hop.name), *self._places(flow))
        return talk

    def mark(self, flow: Flow, up: bool, kind: str, note: str) -> None:
        """What became of a connection: it opened or was refused, or one side has ended it."""
        now = time.time_ns()
        if kind == REFUSED:
            talk = self._talk(flow)
            self._packet(talk, True, SYN, now, options=SYN_OPTIONS)
            talk.next[1] = 0                       # who never took the call has no numbers
        else:
            talk = self.talks.get(flow.number) if kind == RESET else self.open(flow)
        if kind in (RESET, REFUSED):
            self.talks[flow.number] = None
            if talk:
                self._packet(talk, up, RST | ACK, now, note=note)
        elif kind == FINISHED and talk and not talk.ended[not up]:
            talk.ended[not up] = True
            self._packet(talk, up, FIN | ACK, now)
            self._packet(talk, not up, ACK, now)
            if all(talk.ended):
                self.talks[flow.number] = None

    def data(self, flow: Flow, up: bool, data: bytes, note: str = "") -> None:
        if not self.file:
            return
        talk = self.open(flow)
        if talk is None:
            return
        side, when = 0 if up else 1, flow.bench.when
        view = memoryview(data)
        for at in range(0, len(data), SEGMENT):
            part = view[at:at + SEGMENT]
            self._packet(talk, up, PSH | ACK, when, part, note if at == 0 else "")
            talk.unacknowledged[side] += len(part)
            talk.unacknowledged[1 - side] = 0
            if talk.unacknowledged[side] >= ACK_EVERY:
                talk.unacknowledged[side] = 0
                self._packet(talk, not up, ACK, when)
        if self.size > self.most:
            self.close()

    # -- packets

    def _places(self, flow: Flow) -> tuple[tuple[str, int], tuple[str, int]]:
        """The addresses of both ends: the true ones, or, where all is on this computer, those of the realm table."""
        near, far = flow.near_place, flow.hop.target
        row = REALMS.get(flow.hop.realm)
        if self.true_addresses or row is None or not ipaddress.ip_address(far[0].partition("%")[0]).is_loopback:
            return near, far
        caller = REALMS.get(flow.realm)
        if flow.hop.is_link and caller:
            return (caller.address, near[1]), (row.address, row.port)
        base = ipaddress.ip_address(row.address)
        return (str(base + 100 + flow.number % 50), near[1]), (row.address, row.port)

    def _packet(self, talk: Talk, up: bool, flags: int, when: int, data: bytes | memoryview = b"", note: str = "",
                options: bytes = b"") -> None:
        """One packet of TCP; the checksums are right, so that Wireshark has nothing to complain of."""
        if not self.file:
            return
        side = 0 if up else 1
        source, target = talk.places[side][1], talk.places[1 - side][1]
        acknowledged = talk.next[1 - side] & 0xFFFFFFFF if flags & ACK else 0
        tcp = struct.pack(">HHIIBBHHH", source, target, talk.next[side] & 0xFFFFFFFF, acknowledged,
                          (20 + len(options)) // 4 << 4, flags, 65535, 0, 0) + options
        ip, pseudo = self._headers(talk.packed[side], talk.packed[1 - side], len(tcp) + len(data))
        tcp = tcp[:16] + struct.pack(">H", checksum(pseudo, tcp, data)) + tcp[18:]
        size = len(ip) + len(tcp) + len(data)
        behind = bytes(-size % 4) + (option(1, note.encode()) + option(0, b"") if note else b"")
        whole = 32 + size + len(behind)
        head = struct.pack("<IIIIIII", 6, whole, talk.interface, when >> 32, when & 0xFFFFFFFF, size, size)
        self.file.writelines((head, ip, tcp, data, behind, struct.pack("<I", whole)))
        self.size += whole
        self.packets += 1
        talk.next[side] += len(data) + bool(flags & (SYN | FIN))

    def _headers(self, source: bytes, target: bytes, size: int) -> tuple[bytes, bytes]:
        """The IP header before so many bytes of TCP, and the pseudo header that TCP's checksum covers too."""
        if len(source) == len(target) == 4:
            ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + size, self.packets & 0xFFFF, 0x4000, 64, 6, 0, source,
                             target)
            pseudo = source + target + struct.pack(">BBH", 0, 6, size)
            return ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:], pseudo
        source, target = (bytes(10) + b"\xff\xff" + end if len(end) == 4 else end for end in (source, target))
        return (struct.pack(">IHBB16s16s", 0x60000000, size, 6, 64, source, target),
                source + target + struct.pack(">II", size, 6))


# ---- diagrams ----------------------------------------------------------------------------------

QUIET = {"ping", "realms", "presence", "person", "realm"}      # hidden, where nobody asks for them


def is_shown(frame: Frame) -> bool:
    """Whether a list shows it without being asked: no pings, no presence, no pieces between the first and the last."""
    if frame.word == "piece":
        return b" 0" in frame.head[:120].rstrip()[-3:] or b'"complete":true' in frame.head or b" 0 " in frame.head[:120]
    return frame.word not in QUIET and frame.kind not in (OPENED, FINISHED)


def is_lost(frame: Frame) -> bool:
    """Whether the bench let it not arrive; the reset that goes with it does."""
    return frame.kind != RESET and any(frame.note == NOTES[word] for word in ("lose", "eat", "cut"))


def parties(frames: Iterable[Frame], short: Callable[[str], str] = str) -> list[str]:
    """Who stands above the diagram: people of the first realm, the realms, people of the others."""
    realms: list[str] = []
    people: dict[str, str] = {}
    for frame in frames:
        if frame.flow.hop.realm not in realms:
            realms.append(frame.flow.hop.realm)
        name = frame.source if frame.up else frame.target
        if frame.flow.caller or frame.flow.hop.is_link:
            realms += [name] if name not in realms else []
        else:
            people.setdefault(name, frame.flow.hop.realm)
    realms.sort(key=lambda name: list(REALMS).index(name) if name in REALMS else len(REALMS))
    first = realms[0] if realms else ""
    ahead = [short(name) for name, realm in people.items() if realm == first]
    behind = [short(name) for name, realm in people.items() if realm != first]
    return list(dict.fromkeys([*ahead, *realms, *behind]))


def diagram(bench: Bench, frames: list[Frame], width: int = 110) -> list[str]:
    """A sequence diagram in text: a column for each party, time downwards."""
    names = parties(frames, bench_names(bench))
    if not names:
        return []
    short, gap = bench_names(bench), max((width - 10) // len(names), 16)
    place = {name: 10 + gap * number + gap // 2 for number, name in enumerate(names)}
    lines = [" " * 10 + "".join(name[:gap - 2].center(gap) for name in names)]
    for frame in frames:
        start, stop = place.get(short(frame.source)), place.get(short(frame.target))
        if start is None or stop is None:
            continue
        lines.append(f"{(frame.when - bench.started) / 1e9:+9.3f} " + _arrow(frame, start - 10, stop - 10, place))
    return [line.rstrip() for line in lines]


def _arrow(frame: Frame, start: int, stop: int, place: dict[str, int]) -> str:
    row = [" "] * (max(place.values()) - 8)
    for column in place.values():
        row[column - 10] = "│"
    left, right = min(start, stop), max(start, stop)
    pen = "╌" if frame.kind in (REPLY, EVENT) else "─"
    label = f" {summary(frame, max(right - left - 6, 8))} "
    line = label.center(right - left - 1, pen)[:right - left - 1]
    row[left + 1:right] = line
    if is_lost(frame):
        row[right - 2 if stop > start else left + 2] = "✗"
    else:
        row[right - 1 if stop > start else left + 1] = "▶" if stop > start else "◀"
    return "".join(row).rstrip() + (f"   {frame.note}" if frame.note else "")


def mermaid(bench: Bench, frames: list[Frame]) -> str:
    short = bench_names(bench)
    names = parties(frames, short)
    alias = {name: f"p{number}" for number, name in enumerate(names)}
    lines = ["sequenceDiagram", *(f"    participant {alias[name]} as {_plain(name)}" for name in names)]
    for frame in frames:
        source, target = alias.get(short(frame.source)), alias.get(short(frame.target))
        if source and target:
            arrow = "--x" if is_lost(frame) else "-->>" if frame.kind in (REPLY, EVENT) else "->>"
            note = f" ({_plain(frame.note)})" if frame.note else ""
            lines.append(f"    {source}{arrow}{target}: {_plain(summary(frame))}{note}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """A text without what Mermaid would read as its own."""
    return re.sub(r"[;#<>{}%\"]", lambda found: f"#{ord(found[0])};", text)


def bench_names(bench: Bench) -> Callable[[str], str]:
    """`messi@mesin1` -> `messi`, where no other realm's messi is on the bench."""
    people = bench.journeys.people
    return lambda name: user if len(people.get(user := name.partition("@")[0], ())) == 1 else name


class Row(NamedTuple):
    """One line of what is known of a frame or a message: its style, its text; of a leg its frame and its times."""

    style: str
    text: str
    leg: Frame | None = None
    since: float = 0.0                     # milliseconds since the message's first frame
    delta: float = 0.0                     # and since the one before
    name: str = ""                         # of a field


def legs_of(journey: Journey | None, frame: Frame | None = None) -> list[Frame]:
    """The frames of a message in order; with those that the given one answers, or that answer it."""
    near = {frame, frame.answers, frame.answer} - {None} if frame else set()
    return sorted({*(journey.legs if journey else ()), *near}, key=lambda leg: leg.number)


def follow(bench: Bench, journey: Journey, frame: Frame | None = None, language: int = INDONESIAN) -> Iterator[Row]:
    """One message over all its hops, with the times between them."""
    short, legs = bench_names(bench), legs_of(journey, frame)
    yield Row("title", say("lab_journey", language, number=journey.number, uid=journey.uid,
                           sender=short(journey.sender), target=short(journey.target), text=journey.text[:80]))
    for before, leg in zip([*legs[:1], *legs], legs, strict=False):
        what = [say("lab_asked" if leg is journey.asked[0] else "lab_asked_again", language)
                ] if leg in journey.asked else []
        what += [say("lab_at_disk", language, realm=realm) for realm, at in journey.on_disk.items() if at is leg]
        what += [say("lab_seen_by", language, person=person) for person, at in journey.seen_at.items() if at is leg]
        yield Row("leg", "  ".join([f"{short(leg.source)} → {short(leg.target)}", label(leg, language), *what]), leg,
                  (leg.when - legs[0].when) / 1e6, (leg.when - before.when) / 1e6)
    if journey.pieces[0]:
        yield Row("more", f"piece × {journey.pieces[0]}, {journey.pieces[1]:,} bytes")
    for (caller, callee), seq in journey.items.items():
        yield Row("more", f"{caller}>{callee} seq {seq}")
    if journey.refusal:
        yield Row("lab_refused_by", say("lab_refused_by", language, code=journey.refusal))
    else:
        verdict = f"lab_verdict_{journey.verdict()}".lower()
        yield Row(verdict, say(verdict, language))


def details(bench: Bench, frame: Frame, language: int = INDONESIAN, hide: bool = True, width: int = 16,
            most: int = 512) -> Iterator[Row]:
    """What answered a frame, its bytes, its message on every hop, its fields and what they are there for."""
    if other := frame.answers or frame.answer:
        key = "lab_answers" if frame.answers else "lab_answered_by"
        yield Row("more", say(key, language, number=other.number, ms=abs(frame.when - other.when) / 1e6))
    elif frame.kind == REQUEST:
        yield Row("more", say("lab_unanswered", language))
    if frame.head:
        lines = list(dump((mask(frame.head) if hide else frame.head)[:most], width))
        yield Row("bytes", "\n".join([*lines, f"… {frame.size:,} B"] if frame.size > most else lines))
    if journey := bench.journeys.all.get(next(iter(frame.journeys), 0)):
        yield from follow(bench, journey, frame, language)
    for name, value, meaning in explain(frame, language, hide):
        if name:
            yield Row("field", value[:200], name=name)
        if meaning:
            yield Row("meaning" if name else "more", meaning)


def label(frame: Frame, language: int = INDONESIAN) -> str:
    """A frame in a few words, with what the bench did to it."""
    word = next((word for word, note in NOTES.items() if note and note == frame.note), "")
    note = say(f"lab_note_{word}", language) if word else frame.note
    text = re.sub(r"^@\S+ ", "", summary(frame))
    return f"{text} · {note}" if note else text


def dump(data: bytes, width: int = 16) -> Iterator[str]:
    for at in range(0, len(data), width):
        part = data[at:at + width]
        text = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in part)
        yield f"{at:04x}  {part.hex(' '):{3 * width - 1}}  {text}"


def is_wanted(frame: Frame, words: Iterable[str], short: Callable[[str], str] = str) -> bool:
    """Whether a list shows it: what the filter names, or without one all but the quiet frames."""
    return matches(frame, words, short) if words else is_shown(frame)


def matches(frame: Frame, words: Iterable[str], short: Callable[[str], str] = str) -> bool:
    """Whether a frame has all that the filter names: a hop, a person, a command, `error`, `journey N`, or a text."""
    words = [word.lower() for word in words]
    while "journey" in words[:-1]:
        at = words.index("journey")
        if words[at + 1].isdecimal() and int(words[at + 1]) not in frame.journeys:
            return False
        del words[at:at + 2]
    names = {frame.hop, frame.word, frame.kind, frame.source, frame.target, short(frame.source), short(frame.target),
             "up" if frame.up else "down"}
    text = visible(mask(frame.head)).lower() + frame.note if words else ""
    return all(word in names or (b'"ERROR"' in frame.head[:200] if word == "error" else word in text) for word in words)


# ---- Lesson ------------------------------------------------------------------------------------

TITLE, TELL, BREAK, PREDICT, CHECK, EXPLAIN, TYPE = "=", "#", "!", "~", "?", ".", ">"    # the seven forms of a line
TYPED = re.compile(r"([a-z0-9._-]+)@([a-z0-9._-]+)(?: x(\d+))?(>>?) (.*)")
LESSONS = ASSETS / "lessons"
TIMES = {"never": 0, "once": 1, "twice": 2}        # how often a text came
LASTING = ("once", "twice", "all")                 # checks that have to hold to the end
REPLY_SECONDS = 8.0            # a send waits 5 s for the other realm's word
CHECK_SECONDS = 10.0           # what a check waits for
NEVER_SECONDS = 1.0            # and how long what must not come is watched for


class Step(NamedTuple):
    """One line of a lesson."""

    kind: str
    text: tuple[str, str]                  # in both languages; of a command or a check the same twice
    line: int


class Actor:
    """A person of a lesson: a small client, that logs in by itself and comes back after a lost connection."""

    def __init__(self, user: str, realm: str, place: tuple[str, int]) -> None:
        self.user, self.realm, self.place = user, realm, place
        self.socket: socket.socket | None = None
        self.token, self.last_id, self.ended = "", 0, ""           # `ended`: how the last connection did, fin or reset
        self.rest = b""
        self.run = time.time_ns() // 1000                          # makes the tags of this run its own
        self.waiting: deque[str] = deque()                         # what each reply that is due belongs to
        self.unanswered: dict[str, str] = {}                       # tag -> line, sent again on a new connection
        self.reply: dict | None = None                             # the last one; None where none came
        self.got: list[str] = []                                   # texts of the message events

    def connect(self) -> bool:
        """A connection that is logged in and has subscribed, if it is there for the asking."""
        if self.socket and self.token:
            return True
        if not self._call():
            return False
        if not self.token:
            self._write(f"auth {self.user} surabaya", "login")
            self.read_until(lambda: self.token or not self.socket, REPLY_SECONDS)
        if self.token:
            self._write(f"subscribe {self.token} {self.last_id or ''}".rstrip(), "subscribe")
            for tag, line in list(self.unanswered.items()):
                self._write(line, tag)
        return self.socket is not None

    def _call(self) -> bool:
        if not self.socket:
            self.rest, self.waiting = b"", deque()
            with contextlib.suppress(OSError):
                self.socket = socket.create_connection(self.place, CHECK_SECONDS)
        return self.socket is not None

    def type(self, words: str, count: int = 1) -> None:
        """Sends what the person typed; more than once with a number and a tag each, and again until it is answered."""
        self.reply = None
        command = COMMANDS.get(words.split(" ")[1 if words.startswith("@") else 0].lower())
        if not (self._call() if command and command.word in ("auth", "register") else self.connect()):
            return
        for number in range(1, count + 1):
            line = self._line(words.replace("{n}", str(number if count > 1 else self.run)), command)
            tag = f"{self.run}-{number}"
            if count > 1:
                self.unanswered[tag] = line = f"@{tag} {line}"
            self._write(line, tag if count > 1 else "typed")

    def _line(self, words: str, command: common.Command | None) -> str:
        tag, _, rest = words.partition(" ") if words.startswith("@") else ("", "", words)
        word, _, arguments = rest.partition(" ")
        if command and command.takes_file:         # the last word is a size: the file has so many bytes
            arguments, _, size = arguments.rpartition(" ")
            arguments += " " + base64.b64encode(bytes(number % 256 for number in range(int(size)))).decode()
        token = [self.token] if command and "T" in command.names[:1] else []
        return " ".join([word for word in (tag, word, *token, arguments) if word])

    def _write(self, line: str, what: str) -> None:
        if self.socket:
            try:
                self.socket.sendall(line.encode() + b"\r\n")
                self.waiting.append(what)
            except OSError:
                self._lost("reset")

    def read_until(self, question: Callable[[], object], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not question():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self.read(min(left, 0.2))
        return True

    def read(self, seconds: float) -> None:
        """Takes in what comes; a lost connection is made anew."""
        if not self.socket and self.token and not self.connect():
            time.sleep(min(seconds, 0.1))          # nobody listens: a client waits before it calls again
            return
        if not self.socket:
            return
        self.socket.settimeout(max(seconds, 0.001))
        try:
            data = self.socket.recv(CHUNK)
        except TimeoutError:
            return
        except OSError:
            return self._lost("reset")
        if not data:
            return self._lost("fin")
        *frames, self.rest = (self.rest + data).split(FRAME_END)
        for frame in frames:
            self._take(load(frame))

    def _take(self, frame: dict) -> None:
        if frame.get("event") == "message":
            self.last_id = max(self.last_id, frame.get("id", 0))
            if frame.get("from") != f"{self.user}@{self.realm}" or frame.get("to") == frame.get("from"):
                self.got.append(text_of(frame))
        elif "status" in frame and self.waiting:
            what = self.waiting.popleft()
            if "tokenid" in frame:
                self.token = frame["tokenid"]
            self.unanswered.pop(what, None)
            if what not in ("login", "subscribe"):
                self.reply = frame
            if what == "subscribe" and not self.last_id:
                self.last_id = frame.get("last_id", 0)

    def _lost(self, how: str) -> None:
        self.socket.close()
        self.socket, self.ended = None, how

    def close(self) -> None:
        if self.socket:
            self.socket.close()
            self.socket = None


class Lesson:
    """A text file of seven line forms: tell, break, type, predict, check, explain. Each check waits for its answer."""

    def __init__(self, path: Path) -> None:
        self.steps: list[Step] = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            kind, text = (TYPE, line) if TYPED.fullmatch(line) else (line[:1], line[2:].strip())
            if line[:2] not in ("= ", "# ", "~ ", ". ", "! ", "? ") and kind != TYPE and line.strip():
                raise ValueError(f"{path.name}:{number}: not a line of a lesson: {line}")
            both = text.split(" | ", 1) if kind in (TITLE, TELL, PREDICT, EXPLAIN) else [text]
            if text:
                self.steps.append(Step(kind, (both[0].strip(), both[-1].strip()), number))
        self.title = next((step.text for step in self.steps if step.kind == TITLE), (path.stem, path.stem))

    def play(self, bench: Bench) -> Iterator[tuple[Step, bool | None, str]]:
        """Does one step for each `next`: (step, whether a check holds or None, what came instead)."""
        self.bench, self.start = bench, bench.frame_count
        self.actors: dict[str, Actor] = {}
        lasting = [step for step in self.steps if step.kind == CHECK and step.text[0].split()[1] in LASTING]
        try:
            for step in self.steps:
                if step.kind == BREAK:
                    bench.command(step.text[0])
                elif step.kind == TYPE:
                    self._type(step.text[0])
                yield step, *(self._check(step.text[0]) if step.kind == CHECK else (None, ""))
            for step in lasting:                   # what arrived once did not arrive again meanwhile
                holds, came = self._check(step.text[0], again=True)
                if not holds:
                    yield step, holds, came
        finally:
            for actor in self.actors.values():
                actor.close()
            bench.do(bench.heal)

    def _type(self, line: str) -> None:
        user, realm, count, arrow, words = TYPED.fullmatch(line).groups()
        name, hop = f"{user}@{realm}", self.bench.hops.get(realm)
        if hop is None:
            raise BenchError("lab_no_such_hop", name=realm)
        if name not in self.actors:
            host = "127.0.0.1" if hop.host in ("0.0.0.0", "") else hop.host
            self.actors[name] = Actor(user, realm, (host, hop.port))
        actor = self.actors[name]
        actor.type(words, int(count or 1))
        if arrow == ">":
            ended = actor.ended
            actor.ended = ""
            actor.read_until(lambda: actor.reply is not None or actor.ended or not actor.socket, REPLY_SECONDS)
            actor.ended = actor.ended or ended

    def _check(self, check: str, again: bool = False) -> tuple[bool, str]:
        """Whether a `?` line holds, after so many seconds at most; and what there was instead."""
        words = check.split()
        never = words[1] == "never"                # this one has to hold all the while
        seconds = NEVER_SECONDS if never else CHECK_SECONDS
        if len(words) > 3 and words[-1].isdecimal():
            seconds = float(words.pop())
        deadline = time.monotonic() + (0.3 if again else seconds)
        while True:
            for actor in self.actors.values():
                actor.read(0.01)
            wanted, came = self._look(words[0], *words[1:])
            if (wanted == came) != never or time.monotonic() > deadline:
                return wanted == came, came

    def _look(self, subject: str, what: str, *rest: str) -> tuple[str, str]:
        """What a check wants to be there, and what is there now."""
        bench = self.bench
        if subject == "link":
            caller, callee = what.split(">")
            is_up = bench.do(lambda: any(flow.linked and flow.caller == caller and flow.hop.realm == callee
                                         for flow in bench.flows.values()))
            return rest[0], "up" if is_up else "down"
        if subject == "frames":
            short = bench_names(bench)
            return what, str(bench.do(lambda: sum(frame.number > self.start and matches(frame, rest, short)
                                                  for frame in bench.frames)))
        if subject == "counter":
            return rest[0], str(bench.do(bench.journeys.counters)[what])
        actor = next((actor for name, actor in self.actors.items() if subject in (name, actor.user)), None)
        if actor is None:
            raise BenchError("lab_no_such_hop", name=subject)
        if what in TIMES:
            return f"× {TIMES[what]}", f"× {actor.got.count(' '.join(rest))}"
        if what == "all":                          # each of them, once
            got = Counter(actor.got)
            once = sum(got[rest[1].replace("{n}", str(number))] == 1 for number in range(1, int(rest[0]) + 1))
            return f"{rest[0]} / {rest[0]}", f"{once} / {rest[0]}"
        if what == "answered":
            return "0", str(len(actor.unanswered))
        if what in ("fin", "reset"):
            return what, actor.ended or "-"
        if actor.reply is None:
            return "-" if what == "nothing" else what, "-"
        return what, "queued" if actor.reply.get("queued") else actor.reply.get("code") or actor.reply["status"]


# ---- Console -----------------------------------------------------------------------------------

BENCH_COMMANDS = ("heal [HOP]", "step [N]", "release", "kill|stop|freeze|thaw|start REALM")    # beside the faults


class Console:
    """The terminal face: commands typed, or a script from a pipe. The docstring of a `do_WORD` is its usage."""

    def __init__(self, bench: Bench, language: int = INDONESIAN, out: TextIO = sys.stdout,
                 capture_most: int = 256 * MIB, true_addresses: bool = False) -> None:
        self.bench, self.language, self.out = bench, language, out
        self.capture_most, self.true_addresses = capture_most, true_addresses
        self.waited: dict[tuple[str, ...], int] = {}           # of each filter, the last frame that a `wait` has seen
        self.interactive = False
        self._unwatch: Callable[[], None] = lambda: None

    def print(self, key: str, **fields: object) -> None:
        self.lines([say(key, self.language, **fields)])

    def lines(self, lines: Iterable[str]) -> None:
        """Lines as they are, or a word that there are none."""
        lines = list(lines) or [say("lab_nothing", self.language)]
        print("\n".join(lines), file=self.out, flush=True)

    def run(self, source: Iterable[str]) -> int:
        """Carries out line by line; status 1 if one failed."""
        failed = False
        for line in source:
            line = line.partition(" #")[0].strip() if not self.interactive else line.strip()
            if not line or line.startswith("#"):
                continue
            if line in ("quit", "exit"):
                break
            failed |= not self.carry_out(line)
        return int(failed)

    def carry_out(self, line: str) -> bool:
        """One command; False if it failed, and then it says why."""
        word, *rest = line.split()
        method = getattr(self, f"do_{word}", None)
        try:
            if method:
                return method(*rest) is not False
            key, fields = self.bench.command(line)
            self.print(key, **fields)
            return True
        except BenchError as error:
            reason = error.text(self.language)
        except (OSError, ValueError, TypeError) as error:
            reason = method.__doc__ if isinstance(error, TypeError) else str(error)
        self.lines([reason])
        return False

    # -- what there is

    def do_hops(self) -> None:
        """hops"""
        self.lines(f"{hop.name:10} {hop.host}:{hop.port} -> {hop.target[0]}:{hop.target[1]}"
                   + ("" if hop.listener else "   cut") for hop in self.bench.hops.values())
        self.print("lab_cannot_see")

    def do_flows(self) -> None:
        """flows"""
        self.lines(self.bench.do(lambda: [
            f"{flow.number:4} {flow.hop.name:10} {flow.name:24} ▲ {flow.up.size:,} B  ▼ {flow.down.size:,} B"
            + ("  TLS" if flow.sealed else "") + (f"  held {flow.held}" if flow.held else "")
            for flow in self.bench.flows.values()]))

    # -- frames

    def _found(self, words: tuple[str, ...]) -> list[Frame]:
        short = bench_names(self.bench)
        return self.bench.do(lambda: [frame for frame in self.bench.frames if is_wanted(frame, words, short)])

    def describe(self, frames: Iterable[Frame]) -> Iterator[str]:
        """Each frame in one line."""
        short, start = bench_names(self.bench), self.bench.started
        for frame in frames:
            number = ",".join(map(str, frame.journeys[:3])) + ("…" if len(frame.journeys) > 3 else "")
            yield (f"#{frame.number:<6} {(frame.when - start) / 1e9:+9.3f} {frame.hop:8} "
                   f"{short(frame.source)} → {short(frame.target)}: {summary(frame)}  ({frame.size:,} B)"
                   + (f"  [{number}]" if number else "") + (f"  {frame.note}" if frame.note else ""))

    def do_frames(self, *words: str) -> None:
        """frames [FILTER]"""
        frames = self._found(words)
        if len(frames) > 150 or self.bench.forgotten:
            self.print("lab_earlier_frames", count=max(len(frames) - 150, 0) + self.bench.forgotten)
        self.lines(self.describe(frames[-150:]))

    def do_show(self, number: str, raw: str = "") -> None:
        """show N [raw]"""
        wanted = int(number.lstrip("#"))
        frame = self.bench.do(lambda: next((each for each in self.bench.frames if each.number == wanted), None))
        if frame is None:
            raise BenchError("lab_no_such_frame", number=number)
        self.lines([*self.describe([frame]), ""])
        self.show(self.bench.do(lambda: list(details(self.bench, frame, self.language, not raw))))

    def show(self, rows: Iterable[Row]) -> None:
        for style, text, leg, since, delta, name in rows:
            if style == "leg":
                text = f"#{leg.number:<6} {since:9.1f} ms {delta:+9.1f}   {text}"
            before = f"{name:14} " if style in ("field", "meaning") else ""
            self.lines(f"  {before}{line}" for line in text.split("\n"))

    def do_follow(self, number: str) -> None:
        """follow N"""
        journey = self.bench.do(lambda: self.bench.journeys.all.get(int(number.lstrip("#"))))
        if journey is None:
            raise BenchError("lab_no_such_journey", number=number)
        self.show(self.bench.do(lambda: list(follow(self.bench, journey, None, self.language))))

    def do_journeys(self) -> None:
        """journeys"""
        marks = {True: "✓", False: "✗✗", None: "…"}
        self.lines(self.bench.do(lambda: [
            f"{journey.number:5} {journey.uid:16} {journey.sender} → {journey.target}: {journey.text[:40]}  "
            f"{journey.refused or journey.answer} {marks[journey.verdict()]}"
            for journey in list(self.bench.journeys.all.values())[-150:]]))

    def do_counters(self, settled: bool = False) -> bool:
        """counters"""
        counters = self.bench.do(lambda: self.bench.journeys.counters(settled))
        self.lines([" · ".join(f"{count} {say(f'lab_{name}', self.language)}" for name, count in counters.items())])
        return not counters["lost"] and not counters["doubled"]

    def do_settle(self) -> bool:
        """settle"""
        return self.do_counters(settled=True)

    def do_diagram(self, *words: str) -> None:
        """diagram [N] [FILTER]"""
        count = int(words[0]) if words and words[0].isdecimal() else 0
        self.lines(diagram(self.bench, self._found(words[1:] if count else words)[-(count or 40):]))

    def do_mermaid(self, path: str, *words: str) -> None:
        """mermaid FILE [FILTER]"""
        Path(path).write_text(mermaid(self.bench, self._found(words)[-200:]), "utf-8")
        self.print("lab_written", path=path)

    def do_pcap(self, path: str) -> None:
        """pcap FILE|off"""
        if path != "off":
            self.bench.do(lambda: self.bench.start_capture(Path(path), self.capture_most, self.true_addresses))
            return self.print("lab_capture_on", path=path)
        capture = self.bench.do(self.bench.stop_capture)
        if capture:
            key = "lab_capture_full" if capture.is_full else "lab_capture_off"
            self.print(key, path=capture.path, packets=capture.packets, size=capture.size // MIB)

    def do_lesson(self, path: str) -> bool:
        """lesson FILE"""
        place = Path(path)
        if not place.exists():
            place = LESSONS / f"{place.stem}.txt"
        passed = count = 0
        for step, holds, came in Lesson(place).play(self.bench):
            text = step.text[self.language]
            if step.kind == CHECK:
                count, passed = count + 1, passed + bool(holds)
                self.print("lab_check_ok" if holds else "lab_check_failed", check=text, came=came)
            else:
                mark = {TITLE: "\n", TELL: "", EXPLAIN: "", TYPE: "    "}.get(step.kind, f"{step.kind} ")
                self.lines([mark + text])
            if step.kind == PREDICT and self.interactive:
                input(say("lab_predict_enter", self.language))
        self.print("lab_lesson_done", passed=passed, count=count)
        return passed == count

    def do_watch(self, *words: str) -> None:
        """watch [FILTER]"""
        self.do_quiet()

        def show(frames: list[Frame]) -> None:
            short = bench_names(self.bench)
            if wanted := [frame for frame in frames if is_wanted(frame, words, short)]:
                self.lines(self.describe(wanted[-50:]))

        self._unwatch = self.bench.watch(show)

    def do_quiet(self) -> None:
        """quiet"""
        self._unwatch()

    def do_wait(self, seconds: str, *words: str) -> bool:
        """wait SECONDS FILTER"""
        came: queue.SimpleQueue[list[Frame]] = queue.SimpleQueue()
        unwatch = self.bench.watch(came.put)
        try:
            deadline, frames = time.monotonic() + float(seconds), self.bench.do(lambda: list(self.bench.frames))
            while True:
                short = bench_names(self.bench)
                for frame in frames:               # one that no earlier `wait` for the same has seen
                    if frame.number > self.waited.get(words, 0) and matches(frame, words, short):
                        self.waited[words] = frame.number
                        self.lines(self.describe([frame]))
                        return True
                frames = came.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            self.print("lab_waited", seconds=seconds, what=" ".join(words))
            return False
        finally:
            unwatch()

    def do_faults(self) -> None:
        """faults"""
        self.lines(say("lab_hits", self.language, fault=fault.text, hits=fault.hits) for fault in self.bench.faults)

    def do_clear(self) -> None:
        """clear"""
        self.bench.do(self.bench.clear)
        self.print("lab_cleared")

    def do_help(self) -> None:
        """help"""
        usages = [method.__doc__ for name, method in vars(Console).items() if name.startswith("do_")]
        for usage in (*usages, *BENCH_COMMANDS):
            self.lines([f"{usage:<28}  {say('help.' + re.split('[ |]', usage)[0], self.language)}"])
        self.lines(f"{kind.line}\n    {say(f'fault.{kind.word}', self.language)}" for kind in FAULTS.values())


# ---- the page ----------------------------------------------------------------------------------

ft: Any = None                 # Flet, its drawings, and the client's program, of whose page this is a part
cv: Any = None
chat: Any = None

SMALL, HALF, WHOLE = "small", "half", "whole"      # how much of the page the panel takes
NARROW, WIDE = 700, 1100       # pixels: below, one tab at a time; from here on, details beside the frames
SIDE, PANE, LINE = 256, 340, 26                    # pixels: width of the cables and of the details, height of a row
SHOWN, DUMPED = 150, 96                            # rows; bytes of a frame that the details show as numbers
DRAW_SECONDS = 0.05                                # from what comes to its drawing
CABLE_MENU = (                 # (text, command of the bench); a `-` is a line between
    ("lab_cut", "cut {hop}"), ("lab_pull", "pull {hop}"), ("lab_half_open", "half {hop} far"), ("-", ""),
    ("lab_delay", "delay {hop} 300"), ("lab_rate", "rate {hop} 20"), ("-", ""),
    ("lab_lose", "lose {hop} down {send} x1"), ("lab_double", "double {hop} up {send} x1"), ("lab_hold", "hold {hop}"),
    ("-", ""), ("lab_heal", "heal {hop}"),
)
CAN_FREEZE = hasattr(signal, "SIGSTOP")            # on all but Windows
MACHINE_MENU = (("lab_kill", "kill {realm}"), *((("lab_freeze", "freeze {realm}"), ("lab_thaw", "thaw {realm}"))
                                                if CAN_FREEZE else ()))


def load_page() -> None:
    """Fetches Flet and the client's program, which only the page needs."""
    global ft, cv, chat
    if ft:
        return
    sys.path.append(str(Path(__file__).resolve().parent))
    import ChatClient as chat
    import flet.canvas as cv
    chat.load_flet()
    ft = chat.ft


class LabView:
    """The bench on a page: cables and counters, the frames as a diagram or as lines, one frame's details, lessons.

    The bench's thread tells of each turn's frames. The page draws them at most twenty times a second.
    """

    KEYS = (("F6", "pause"), ("F8", "lab_step"), ("F9", "lab_release"), ("Ctrl+↑ Ctrl+↓", "lab_along"),
            ("Alt+1 … Alt+4", "lab_tabs"))
    TABS = {"diagram": "SWAP_HORIZ", "wire": "LIST", "lesson": "SCHOOL", "cables": "CABLE", "lab_mark": "GRADING"}

    def __init__(self, window: Any, bench: Bench, hints: Iterable[tuple[str, dict]] = ()) -> None:
        load_page()
        self.window, self.bench, self.hints = window, bench, list(hints)
        self.page, self.say, self.on, self.part = window.page, window.say, window.on, chat.Part(window)
        self.size, self.tab, self.paused, self.is_settled = SMALL if window.demo else WHOLE, "diagram", False, False
        self.width, self.form = 0.0, None          # `form`: what of the size decides on the parts
        self.words: list[str] = []                 # of the filter
        self.frames: deque[Frame] = deque(maxlen=SHOWN)            # those that have a row, the newest last
        self.rows: dict[int, Any] = {}             # number of a frame -> its row, kept while it is shown
        self.fresh: deque[Frame] = deque(maxlen=SHOWN)             # those that came since
        self.names: list[str] = []                 # of the lifelines
        self.selected: Frame | None = None
        self.only = 0                              # the one message that is shown; 0 is all
        self.reveals = False                       # secrets
        self.is_drawing, self.rest = False, DRAW_SECONDS       # soon, after so many seconds
        self.is_stale = True                       # rows that are there may look differently now
        self.cables, self.lesson, self.mark = Cables(self), LessonView(self), MarkView(self)
        self.root = ft.Container(bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST)
        self.build()
        loop = asyncio.get_running_loop()

        def tell(frames: list[Frame]) -> None:
            with contextlib.suppress(RuntimeError):            # the page's loop has ended
                loop.call_soon_threadsafe(self.see, frames)

        self.unwatch = bench.watch(tell)

    def close(self) -> None:
        self.unwatch()
        self.lesson.stop()
        self.mark.report = None

    @property
    def language(self) -> int:
        return self.window.settings["language"]

    @property
    def short(self) -> Callable[[str], str]:
        """Names for lifelines: a person without the realm, and of an address the host, for all its connections."""
        names = bench_names(self.bench)
        return lambda name: re.sub(r":\d+$", "", names(name))

    @property
    def is_narrow(self) -> bool:
        """Whether there is room for one tab at a time only, as on a phone."""
        return self.width < NARROW

    @property
    def has_pane(self) -> bool:
        """Whether the details have a place of their own; else they cover the frames."""
        return self.width >= WIDE

    @property
    def middle(self) -> str:
        """What the middle shows: beside a lesson, where there is room, the diagram of what it does."""
        return "diagram" if self.has_pane and self.tab == "lesson" else self.tab

    @property
    def shows_frames(self) -> bool:
        is_covered = (self.selected and not self.has_pane) or (self.is_narrow and self.size == SMALL)
        return self.middle in ("diagram", "wire") and not is_covered

    # -- what is done

    async def act(self, line: str) -> None:
        try:
            await asyncio.to_thread(self.bench.command, line)
        except BenchError as error:
            self.window.toast(error.text(self.language))

    def resize(self) -> None:
        """The page has another size, or the panel another part of it."""
        self.width, height = self.page.width or 1280, self.page.height or 800
        small = 52 if self.is_narrow else min(236, height * 0.3)
        self.root.height = {SMALL: small, HALF: height / 2, WHOLE: None}[self.size]
        self.root.expand = self.size == WHOLE
        form, before = (self.is_narrow, self.has_pane, self.size), self.form
        if form != before:
            self.form = form
            return self.draw()
        self.see([])                               # all rows, a little later: a window is drawn larger in many steps

    def enlarge(self, size: str) -> None:
        self.size = size
        self.window.resize()

    def choose(self, tab: str) -> None:
        """Opens a tab; on a phone the panel then takes the whole page."""
        self.tab = tab
        if self.is_narrow and self.size == SMALL:
            return self.enlarge(WHOLE)
        self.draw()

    def toggle_pause(self) -> None:
        """The rows stand still, or go on with all that has come meanwhile."""
        self.paused = not self.paused
        self.draw()

    def look(self) -> None:
        self.words = (self.filter.value or "").split()
        self.redraw()

    def settle(self) -> None:
        """From now on what has not arrived counts as lost; or no longer."""
        self.is_settled = not self.is_settled
        self.cables.draw()

    def select(self, frame: Frame | None) -> None:
        """Shows a frame's details and lights its message; the second time, only this message."""
        again, was = frame is not None and frame is self.selected, self.only
        self.only = 0 if not again or self.only else next(iter(frame.journeys), 0)
        self.selected = frame
        if self.only != was or not self.has_pane:
            return self.draw()
        for shown in self.frames:
            self.light(self.rows[shown.number].content, shown)
        self.window.update(self.list)
        self.draw_details()

    def reveal(self) -> None:
        self.reveals = not self.reveals
        self.draw_details()

    def go_along(self, by: int) -> None:
        frame = self.selected
        journey = frame and self.bench.journeys.all.get(next(iter(frame.journeys), 0))
        legs = self.bench.do(lambda: legs_of(journey, frame))
        at = legs.index(frame) + by if frame else -1
        if 0 <= at < len(legs):
            self.select(legs[at])

    async def record(self) -> None:
        """Begins a capture; or ends it, and gives the file to the person."""
        if not self.bench.capture:
            path = Path(tempfile.mkdtemp(dir=self.window.options.uploads)) / "talk.pcapng"     # it outlives this page
            self.bench.do(lambda: self.bench.start_capture(path, 256 * MIB))
            self.window.toast(self.say("lab_capture_on", path=path.name))
        elif ended := self.bench.do(self.bench.stop_capture):
            copy = self.window.new_folder() / ended.path.name
            await asyncio.to_thread(shutil.copy, ended.path, copy)
            await self.window.hand_over(copy)
        self.bench.do(self.bench.touch)

    async def copy(self) -> None:
        await self.window.copy(mermaid(self.bench, list(self.frames)))

    async def change_theme(self) -> None:
        await self.window.set_theme("light" if self.window.settings["theme"] == "dark" else "dark")

    def key_pressed(self, event: Any) -> bool:
        """Takes the keys of `KEYS`, and Esc while details are open; True where it was one of them."""
        by = {"Arrow Up": -1, "Arrow Down": 1}.get(event.key, 0)
        if event.key == "F6":
            self.toggle_pause()
        elif event.key in ("F8", "F9"):
            self.window.spawn(self.act("step" if event.key == "F8" else "release"))
        elif by and event.ctrl:
            self.go_along(by)
        elif event.alt and event.key in ("1", "2", "3", "4"):
            tab = [*self.TABS][int(event.key) - 1]
            self.choose(tab if tab != "cables" or self.is_narrow else "diagram")
        elif event.key == "Escape" and self.selected and time.monotonic() > self.window.busy_until:
            self.select(None)
        else:
            return False
        return True

    # -- what came

    def see(self, frames: list[Frame]) -> None:
        """Frames of the bench; they are drawn a little later with others."""
        self.fresh.extend(frames)
        self.is_stale |= not frames
        for frame in frames:
            if frame.answers:
                self.cables.times[frame.hop] = (frame.when - frame.answers.when) / 1e6
        if not self.is_drawing:
            self.is_drawing = True
            self.window.spawn(self.draw_soon())

    async def draw_soon(self) -> None:
        """Draws what came within a twentieth of a second; the counters are true a little later.

        Drawing takes at most a fifth of the time: all pages share one loop, and a burst must not stop them.
        """
        await asyncio.sleep(self.rest)
        self.is_drawing, started = False, time.perf_counter()
        self.cables.draw()
        if self.is_stale:
            self.draw_bar()
            self.window.update(self.recorder)
            for view in self.window.views:
                if view.chats.cut_off:             # it may be that its server is there again
                    view.conn.try_now()
        if not self.paused and self.shows_frames:
            self.draw_fresh()
        self.rest = max(DRAW_SECONDS, 4 * (time.perf_counter() - started))
        await asyncio.sleep(2 * TALLY_SECONDS)
        self.cables.draw()

    def draw_fresh(self) -> None:
        """Adds the rows of what came, or draws all anew where that is not enough."""
        last, stale = self.frames[-1].number if self.frames else 0, self.is_stale
        fresh = [frame for frame in self.wanted(self.fresh) if frame.number > last]        # the others have a row
        self.fresh.clear()
        self.is_stale = False
        self.frames.extend(fresh)
        if self.selected and any(self.belongs(frame) for frame in fresh):
            self.draw_details()
        if stale or self.names != parties(self.frames, self.short):
            self.redraw()
        elif fresh:
            self.draw_rows(self.holder)

    def wanted(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        short = self.short
        for frame in frames:
            if self.only in frame.journeys if self.only else is_wanted(frame, self.words, short):
                yield frame

    # -- drawing

    def build(self) -> None:
        """The parts. They stay, so that a click always meets what it was meant for; only what is in them changes."""
        self.built = self.language
        self.rows.clear()
        self.list = chat.StillList(expand=True, reverse=True, spacing=0)
        self.head, self.holder = ft.Container(), ft.Container(self.list, expand=True)
        self.column = ft.Column([self.head, self.holder], spacing=0, expand=True)
        self.sheet = ft.Row([self.column], scroll=ft.ScrollMode.AUTO, expand=True)
        self.details = ft.Container(width=PANE)
        self.cables.build()
        self.lesson.draw()
        self.mark.draw()
        self.tabs = {tab: ft.TextButton(self.say(tab), icon=getattr(ft.Icons, icon), height=34,
                                        on_click=self.on(self.choose, tab)) for tab, icon in self.TABS.items()}
        self.filter = self.part.field(hint_text=self.say("filter"), text_size=13, content_padding=8, expand=True,
                                      value=" ".join(self.words), on_change=self.on(self.look))
        self.pause = self.tool("PAUSE", "pause", self.toggle_pause)
        self.recorder = self.tool("FIBER_MANUAL_RECORD", "lab_record", self.record)
        self.tools = [self.filter, self.pause, self.tool("SKIP_NEXT", "lab_step", self.act, "step"),
                      self.tool("FAST_FORWARD", "lab_release", self.act, "release"), self.recorder,
                      self.tool("ACCOUNT_TREE", "lab_mermaid", self.copy)]
        if not self.window.demo:                   # in the demo the chats have their own
            self.tools += [self.tool("TRANSLATE", "other_language", self.window.switch_language),
                           self.tool("BRIGHTNESS_6", "dark", self.change_theme)]
        self.sizes = {size: self.tool(icon, f"lab_{size}", self.enlarge, size) for size, icon in (
            (SMALL, "KEYBOARD_ARROW_DOWN"), (HALF, "HORIZONTAL_SPLIT"), (WHOLE, "FULLSCREEN"))}

    def tool(self, icon: str, key: str, work: Callable[..., Any], *arguments: Any, size: int = 34) -> Any:
        return self.part.button(getattr(ft.Icons, icon), key, work, *arguments, icon_size=size // 2 + 1, width=size,
                                height=size, padding=0)

    def draw(self) -> None:
        if self.built != self.language:
            self.build()
        self.draw_bar()
        self.root.content = self.compose()
        self.draw_details()
        self.cables.draw()
        self.redraw()
        self.window.update(self.root)

    def draw_bar(self) -> None:
        for tab, button in self.tabs.items():
            button.style = ft.ButtonStyle(padding=ft.Padding(8, 0, 8, 0), bgcolor=ft.Colors.SECONDARY_CONTAINER
                                          if tab == self.tab else None)
            button.visible = {"cables": self.is_narrow, "lab_mark": not self.window.demo}.get(tab, True)
        records = bool(self.bench.capture)
        for button, icon, key in (
                (self.pause, *(("PLAY_ARROW", "resume") if self.paused else ("PAUSE", "pause"))),
                (self.recorder, *(("STOP_CIRCLE", "lab_record_end") if records else
                                  ("FIBER_MANUAL_RECORD", "lab_record")))):
            if button.tooltip != self.say(key):
                button.icon, button.tooltip = self.part.named(getattr(ft.Icons, icon), key), self.say(key)
        self.recorder.icon_color = ft.Colors.ERROR if records else None
        for size, button in self.sizes.items():
            button.visible = bool(self.window.demo) and size != self.size and not (self.is_narrow and size == HALF)

    def compose(self) -> Any:
        """Puts the parts together: side by side, or one at a time."""
        ends, is_open = list(self.sizes.values()), not self.is_narrow or self.size != SMALL
        lines = [ft.Row([*self.tabs.values(), *self.tools, *ends], spacing=2)]
        if self.is_narrow:
            lines = [ft.Row([ft.Row([*self.tabs.values()], spacing=0, expand=True), *ends], spacing=0)]
            lines += [ft.Row(self.tools, spacing=0)] if self.shows_frames else []
        parts = [ft.Container(ft.Column(lines, spacing=2), padding=ft.Padding(6, 4, 6, 3))]
        parts_of = {"lesson": self.lesson.root, "cables": self.cables.root, "lab_mark": self.mark.root}
        body = parts_of.get(self.middle, self.sheet)
        self.details.width, self.details.expand = (PANE, False) if self.has_pane else (None, True)
        if self.has_pane:
            body = ft.Row([body, ft.VerticalDivider(width=1), self.details], spacing=0, expand=True)
        elif self.selected:
            body = self.details
        panel = ft.Column([*parts, body] if is_open else parts, spacing=0, expand=True)
        if self.is_narrow:
            return panel
        return ft.Row([ft.Container(self.cables.root, width=SIDE), ft.VerticalDivider(width=1), panel], spacing=0,
                      expand=True)

    def redraw(self) -> None:
        if not self.shows_frames:
            return
        if not self.paused:
            record = self.bench.do(lambda: list(self.bench.frames))
            found = itertools.islice(self.wanted(reversed(record)), SHOWN)
            self.frames = deque(reversed(list(found)), SHOWN)
        self.names = parties(self.frames, self.short)
        room = self.width - (0 if self.is_narrow else SIDE + 1) - (PANE + 1 if self.has_pane else 0)
        self.time_width = 0 if self.is_narrow else 66
        self.row_width = max(room, self.time_width + 96 * len(self.names)) if self.middle == "diagram" else room
        self.column.width = self.row_width
        self.draw_head()
        self.draw_rows(self.sheet, self.list, anew=True)

    def draw_rows(self, *parts: Any, anew: bool = False) -> None:
        """A row for each frame, those that are there already as they are or `anew`."""
        old = {} if anew else self.rows
        self.rows = {frame.number: old.get(frame.number) or self.row(frame) for frame in self.frames}
        self.list.controls = [*self.rows.values()][::-1]
        self.window.update(*parts)

    def draw_head(self) -> None:
        """The names above the lifelines, or what to do where no frame is shown yet."""
        if not self.frames:
            lines = [self.say(key, **fields) for key, fields in self.hints] or [self.say("lab_empty")]
            self.head.content = ft.Container(ft.SelectionArea(ft.Column(
                [chat.small(line, font_family="Mono" if self.hints else None) for line in lines])), padding=16)
        elif self.middle == "wire":
            self.head.content = None
        else:
            style = ft.TextStyle(size=12.5, weight=ft.FontWeight.W_600, color=ft.Colors.ON_SURFACE)
            earlier = self.frames[0].number - 1 if len(self.frames) == SHOWN else 0
            texts = [cv.Text(self.place(name), 12, name, style, alignment=ft.Alignment.CENTER, max_lines=1,
                             max_width=self.gap - 4, ellipsis="…") for name in self.names]
            texts += [cv.Text(4, 12, self.say("lab_earlier", count=earlier), self.style(ft.Colors.OUTLINE, 10),
                              alignment=ft.Alignment.CENTER_LEFT, max_width=self.time_width)] if earlier else []
            self.head.content = cv.Canvas(texts, width=self.row_width, height=24)

    @property
    def gap(self) -> float:
        return (self.row_width - self.time_width) / max(len(self.names), 1)

    def place(self, name: str) -> float:
        return self.time_width + self.gap * (self.names.index(name) + 0.5)

    @staticmethod
    def style(color: str, size: float = 11) -> Any:
        return ft.TextStyle(size=size, color=color, font_family="Roboto", font_family_fallback=["Mono", "Emoji"])

    def row(self, frame: Frame) -> Any:
        name = "arrow" if self.middle == "diagram" else "line"
        row = self.rows.get(frame.number) or ft.Semantics(button=True, content=ft.Container(
            height=LINE, ink=True, on_click=self.on(self.select, frame)))
        row.content.content = self.arrow(frame) if name == "arrow" else self.line(frame)
        row.label = f"{self.way(frame)}: {self.label(frame)}"
        row.identifier = f"{name}-{frame.number}"
        self.light(row.content, frame)
        return row

    def light(self, box: Any, frame: Frame) -> None:
        """The rows of the selected frame's message are lit, the others fade."""
        box.opacity = 1 if self.selected is None or self.belongs(frame) else 0.4
        box.bgcolor = ft.Colors.SECONDARY_CONTAINER if frame is self.selected else None

    def belongs(self, frame: Frame) -> bool:
        """Whether it is of the selected frame's message, or its answer."""
        chosen = self.selected
        return frame in (chosen, chosen.answer, chosen.answers) or not {*chosen.journeys}.isdisjoint(frame.journeys)

    def way(self, frame: Frame) -> str:
        short = self.short
        return f"{short(frame.source)} → {short(frame.target)}"

    def label(self, frame: Frame) -> str:
        return label(frame, self.language)

    @staticmethod
    def color(frame: Frame) -> str:
        """Red for what got lost or ended, amber for what the bench touched, else by its kind."""
        if is_lost(frame) or frame.kind in (RESET, REFUSED):
            return ft.Colors.ERROR
        if frame.note:
            return ft.Colors.ORANGE_700
        return ft.Colors.PRIMARY if frame.kind == REQUEST else ft.Colors.TERTIARY

    def arrow(self, frame: Frame) -> Any:
        """One row of the diagram: a piece of every lifeline, and the arrow of the frame."""
        short, base, color = self.short, LINE - 6, self.color(frame)
        start, stop = self.place(short(frame.source)), self.place(short(frame.target))
        ahead, middle, room = 1 if stop > start else -1, (start + stop) / 2, abs(stop - start)
        line = ft.Paint(color=ft.Colors.OUTLINE_VARIANT, stroke_width=1)
        solid = ft.Paint(color=color, stroke_width=1.6)
        pen = ft.Paint(color=color, stroke_width=1.6, stroke_dash_pattern=[5, 4]) if frame.kind in (
            REPLY, EVENT) else solid
        shapes = [cv.Line(self.place(name), 0, self.place(name), LINE, line) for name in self.names]
        if is_lost(frame) or frame.kind == REFUSED:
            stop = (start + 3 * stop) / 4
            shapes += [cv.Line(stop - 5, base - 5, stop + 5, base + 5, solid),
                       cv.Line(stop - 5, base + 5, stop + 5, base - 5, solid)]
        else:
            shapes.append(cv.Path([cv.Path.MoveTo(stop, base), cv.Path.LineTo(stop - 7 * ahead, base - 4),
                                   cv.Path.LineTo(stop - 7 * ahead, base + 4), cv.Path.Close()],
                                  ft.Paint(color=color, style=ft.PaintingStyle.FILL)))
        shapes.append(cv.Line(start, base, stop - 4 * ahead, base, pen))
        shapes.append(cv.Text(middle, base - 1, self.label(frame), self.style(
            color if frame.note else ft.Colors.ON_SURFACE), alignment=ft.Alignment.BOTTOM_CENTER, max_lines=1,
            max_width=max(room - 12, 20), ellipsis="…"))
        if self.time_width:
            shapes.append(cv.Text(4, base + 4, f"{(frame.when - self.bench.started) / 1e9:+.3f}",
                                  self.style(ft.Colors.OUTLINE, 10.5), alignment=ft.Alignment.BOTTOM_LEFT))
        return cv.Canvas(shapes, width=self.row_width, height=LINE)

    def line(self, frame: Frame) -> Any:
        """One row of the wire: time, who to whom, the bytes as text, and how long an answer took."""
        shown = visible(mask(frame.head))[:400] if frame.head else self.label(frame)
        shown += f" … {frame.size:,} B" if frame.size > len(frame.head) else ""
        ms = f"{(frame.when - frame.answers.when) / 1e6:.1f} ms" if frame.answers else ""
        cells = [mono(f"{(frame.when - self.bench.started) / 1e9:+9.3f}", 12, color=ft.Colors.OUTLINE),
                 mono(f"{self.way(frame):22}", 12, color=self.color(frame)), mono(shown, 12, expand=True),
                 mono(frame.note or ms or f"{frame.size} B", 12, color=ft.Colors.OUTLINE)]
        return ft.Container(ft.Row(cells[1:] if self.is_narrow else cells, spacing=10), padding=ft.Padding(6, 0, 6, 0))

    # -- details

    def draw_details(self) -> None:
        """The selected frame: its bytes, its message on every hop, its fields with their meaning. Else a lesson."""
        frame = self.selected
        if frame is None and self.has_pane:
            self.details.content = (self.lesson.root if self.tab == "lesson" else
                                    chat.blank(ft.Icons.ADS_CLICK, self.say("lab_click")))
        elif frame:
            rows = self.bench.do(lambda: list(details(self.bench, frame, self.language, not self.reveals, 8, DUMPED)))
            parts = [*self.detail_head(frame), *map(self.detail, rows)]
            self.details.content = ft.SelectionArea(ft.ListView(parts, spacing=3, padding=10))
        self.window.update(self.details)

    def detail_head(self, frame: Frame) -> list[Any]:
        tools = (("ARROW_UPWARD", "lab_before", self.go_along, -1), ("ARROW_DOWNWARD", "lab_behind", self.go_along, 1),
                 (*(("VISIBILITY_OFF", "lab_hide") if self.reveals else ("VISIBILITY", "lab_reveal")), self.reveal),
                 ("CLOSE", "close", self.select, None))
        title = ft.Text(f"#{frame.number} {self.way(frame)}", size=13, weight=ft.FontWeight.W_600, expand=True)
        return [ft.Row([title, *(self.tool(*each, size=28) for each in tools)], spacing=0),
                ft.Text(self.label(frame), size=13, color=self.color(frame))]

    def detail(self, row: Row) -> Any:
        """One line of the details."""
        verdicts = {"lab_verdict_true": ft.Colors.GREEN_500, "lab_verdict_none": ft.Colors.OUTLINE,
                    "lab_verdict_false": ft.Colors.ERROR, "lab_refused_by": ft.Colors.ERROR}
        if row.style in verdicts:
            return ft.Text(row.text, size=12.5, weight=ft.FontWeight.W_600, color=verdicts[row.style])
        if row.style == "bytes":
            return ft.Container(ft.Text(row.text, font_family="Mono", size=11), padding=6, border_radius=6,
                                bgcolor=ft.Colors.SURFACE_CONTAINER_HIGH)
        if row.style == "field":
            bold = ft.TextStyle(weight=ft.FontWeight.W_600)
            return ft.Text(size=12, spans=[ft.TextSpan(f"{row.name}  ", bold), ft.TextSpan(row.text)],
                           font_family="Mono", max_lines=4, overflow=ft.TextOverflow.ELLIPSIS)
        if row.style == "leg":
            is_selected = row.leg is self.selected
            text = mono(f"{row.since:8.1f} ms  {row.text}", 11, color=self.color(row.leg),
                        weight=ft.FontWeight.BOLD if is_selected else None)
            return ft.Container(text, ink=not is_selected, on_click=self.on(self.select, row.leg))
        return chat.small(row.text, size=11.5 if row.style == "meaning" else 12)


def mono(text: str, size: float, **more: Any) -> Any:
    return ft.Text(text, font_family="Mono", size=size, max_lines=1, no_wrap=True, overflow=ft.TextOverflow.ELLIPSIS,
                   **more)


class Cables:
    """At the left: the realms with their cables, what is broken, and how many messages are where."""

    def __init__(self, lab: LabView) -> None:
        self.lab, self.bench, self.say, self.on = lab, lab.bench, lab.say, lab.on
        self.times: dict[str, float] = {}          # hop -> milliseconds of the last answer

    def build(self) -> None:
        self.lights: dict[str, Any] = {}           # hop or realm -> its picture
        self.words: dict[str, Any] = {}            # hop or realm -> the text beside its name
        self.switches: dict[str, Any] = {}
        rows = []
        for realm in dict.fromkeys(hop.realm for hop in self.bench.hops.values()):
            rows.append(self.build_realm(realm))
            rows += [self.build_cable(hop) for hop in self.bench.hops.values() if hop.realm == realm]
        self.counters = ft.Row(wrap=True, spacing=8, run_spacing=0)
        settle = ft.Container(self.counters, padding=ft.Padding(10, 3, 10, 4), ink=True,
                              on_click=self.on(self.lab.settle), tooltip=self.say("lab_settle"))
        self.root = ft.Column([ft.ListView(rows, expand=True, padding=ft.Padding(8, 4, 8, 0)), ft.Divider(height=1),
                               settle], spacing=0, expand=True)
        self.shown: object = None                  # the state that is drawn

    def line(self, name: str, icon: str, title: str, *ends: Any, **more: Any) -> Any:
        self.lights[name] = ft.Icon(icon, size=16)
        self.words[name] = chat.small("", size=11, expand=True, max_lines=1, overflow=ft.TextOverflow.ELLIPSIS)
        return ft.Row([self.lights[name], ft.Text(title, size=12.5, no_wrap=True, **more), self.words[name], *ends],
                      spacing=6, height=26)

    def build_realm(self, realm: str) -> Any:
        """A realm; where the bench owns its process, with a switch and a menu."""
        ends = []
        if realm in self.bench.machines:
            self.switches[realm] = ft.Switch(scale=0.7, width=44, height=26, on_change=self.on(self.turn, realm))
            ends = [self.switches[realm], self.menu(self.say("lab_machine", realm=realm), MACHINE_MENU, realm=realm)]
        return self.line(realm + "!", ft.Icons.DNS, realm, *ends, weight=ft.FontWeight.W_600)

    def build_cable(self, hop: Hop) -> Any:
        """A cable that leads to a realm, with the menu of its faults."""
        caller = hop.only_caller or "realm"
        title = f"{caller} → {hop.realm}" if hop.is_link else self.say("lab_clients", realm=hop.realm)
        menu = self.menu(self.say("lab_faults", hop=title), CABLE_MENU, hop=hop.name,
                         send="deliver" if hop.is_link else "send")
        return self.line(hop.name, ft.Icons.CABLE, title, menu)

    def menu(self, label: str, rows: Iterable[tuple[str, str]], **names: str) -> Any:
        return ft.PopupMenuButton(
            icon=ft.Icon(ft.Icons.ARROW_DROP_DOWN, size=18, semantics_label=label), tooltip=label, width=26, height=26,
            padding=0, items=[ft.PopupMenuItem(self.say(key), height=34, on_click=self.on(
                self.lab.act, line.format(**names))) if line else ft.PopupMenuItem() for key, line in rows])

    async def turn(self, realm: str) -> None:
        """The switch: ends the realm's process, or lets it run again."""
        word = {ON: "stop", OFF: "start", FROZEN: "thaw"}[self.bench.states.get(realm, ON)]
        await self.lab.act(f"{word} {realm}")

    def state(self, hop: Hop) -> tuple[str, str, str]:
        """Of a cable: whether its realm runs, the color of its picture, the words beside its name."""
        flows = [flow for flow in list(self.bench.flows.values()) if flow.hop is hop]
        held = sum(flow.held for flow in flows)
        broken = [fault for fault in list(self.bench.faults) if fault.left != 0 and (
            fault.where in hop.names() or any(flow.covered_by(fault.where) for flow in flows))]
        words = [f"{fault.kind.word}{f' ×{fault.hits}' if fault.hits else ''}" for fault in broken]
        words += [self.say("lab_held", count=held)] if held else []
        is_up = any(flow.linked or flow.sealed for flow in flows) if hop.is_link else bool(flows)
        color = ft.Colors.ERROR if words else ft.Colors.GREEN_500 if is_up else ft.Colors.OUTLINE
        if not is_up:
            words = words or [self.say("link_down" if hop.is_link else "lab_nobody")]
        elif hop.name in self.times:
            words = words or [f"{self.times[hop.name]:.1f} ms"]
        return self.bench.states.get(hop.realm, ON), color, " · ".join(words)

    def draw(self) -> None:
        """What is different now; red where something is broken, or a message is lost or doubled."""
        counts = dict(self.bench.tally())
        if self.lab.is_settled:
            counts["lost"], counts["under_way"] = counts["under_way"], 0
        state = {hop: self.state(hop) for hop in self.bench.hops.values()}, counts
        if state == self.shown:
            return
        self.shown = state
        for hop, (machine, color, words) in state[0].items():
            self.lights[hop.name].color = color if machine != OFF else ft.Colors.OUTLINE
            self.words[hop.name].value = words if machine != OFF else ""
            self.words[hop.name].color = ft.Colors.ERROR if color == ft.Colors.ERROR else ft.Colors.ON_SURFACE_VARIANT
            if switch := self.switches.get(hop.realm):
                word = {ON: "lab_on", OFF: "is_off", FROZEN: "lab_frozen"}[machine]
                self.words[hop.realm + "!"].value, switch.value = self.say(word), machine == ON
                switch.tooltip = self.say("turn_off" if switch.value else "turn_on", realm=hop.realm)
            self.lights[hop.realm + "!"].color = ft.Colors.PRIMARY if machine == ON else ft.Colors.OUTLINE
        self.counters.controls = [
            chat.small(f"{count} {self.say(f'lab_{name}')}", size=11.5,
                       color=ft.Colors.ERROR if name in ("lost", "doubled") and count else None)
            for name, count in counts.items()]
        self.lab.window.update(self.root)


class LessonView:
    """A lesson on the page: tell, predict, do, check, explain; each press of Next goes on to the next thing to read."""

    def __init__(self, lab: LabView) -> None:
        self.lab, self.bench, self.say, self.on = lab, lab.bench, lab.say, lab.on
        self.lesson: Lesson | None = None
        self.player: Iterator[tuple[Step, bool | None, str]] | None = None
        self.shown: list[tuple[Step, bool | None, str]] = []       # the steps that are done
        self.is_busy = False
        self.root = ft.Container(expand=True)

    def draw(self) -> None:
        """The list of lessons, or the one that is played."""
        self.list = chat.StillList(expand=True, reverse=bool(self.lesson), spacing=4, padding=12)
        self.buttons = ft.Container(padding=ft.Padding(12, 0, 12, 8))
        text = ft.Container(ft.SelectionArea(self.list) if self.lesson else self.list, expand=True)
        self.root.content = ft.Column([text, self.buttons], spacing=0, expand=True)
        if self.lesson:
            self.list.controls = [self.line(number, *step) for number, step in enumerate(self.shown, 1)][::-1]
            self.draw_buttons()
        else:
            for number, path in enumerate(sorted(LESSONS.glob("*.txt")), 1):
                title = f"{number}. {Lesson(path).title[self.lab.language]}"
                self.list.controls.append(ft.Semantics(label=title, button=True, content=ft.Container(
                    ft.Text(title, size=14), padding=6, border_radius=8, ink=True, on_click=self.on(self.begin, path))))
        self.lab.window.update(self.root)

    async def begin(self, path: Path) -> None:
        """Plays a lesson, where none is being played: its faults and the other's would meet."""
        if self.bench.playing not in (None, self):
            return self.lab.window.toast(self.say("lab_playing"))
        self.bench.playing, self.lesson, self.shown = self, Lesson(path), []
        self.player = self.lesson.play(self.bench)
        self.draw()
        await self.go_on()

    def stop(self) -> None:
        """Back to the list. What the lesson broke is healed."""
        if self.bench.playing is self:
            self.bench.playing = None
        if self.player:
            with contextlib.suppress(ValueError):              # a step is being done: it ends when that is done
                self.player.close()
        self.lesson = self.player = None

    def leave(self) -> None:
        self.stop()
        self.draw()

    async def go_on(self) -> None:
        """Does the next step, and the checks behind it."""
        player = self.player
        if self.is_busy or not player:
            return
        self.is_busy = True
        self.draw_buttons()
        try:
            while player is self.player and (done := await asyncio.to_thread(next, player, None)):
                self.shown.append(done)
                self.list.controls.insert(0, self.line(len(self.shown), *done))
                self.lab.window.update(self.root)
                left = self.lesson.steps[len(self.shown):] if self.lesson else []
                if done[0].kind != TITLE and left and left[0].kind != CHECK:
                    break
            else:
                self.player = self.bench.playing = None
        except BenchError as error:
            self.lab.window.toast(error.text(self.lab.language))
            self.leave()
        finally:
            self.is_busy = False
            self.draw_buttons()

    def line(self, number: int, step: Step, holds: bool | None, came: str) -> Any:
        text, kind = step.text[self.lab.language], step.kind
        mark, color = {TYPE: (">", ft.Colors.PRIMARY), BREAK: ("!", ft.Colors.ORANGE_700),
                       CHECK: ("✓", ft.Colors.GREEN_500) if holds else ("✗", ft.Colors.ERROR),
                       PREDICT: ("", ft.Colors.PRIMARY)}.get(kind, ("", None))
        style = {"size": 12.5, "font_family": "Mono"} if mark else {"size": 17 if kind == TITLE else 14}
        if kind in (TITLE, PREDICT):
            style["weight"] = ft.FontWeight.W_600
        text += f": {came}" if came and not holds else ""
        shown = ft.Text(f"{mark} {text}".strip(), color=color, **style)
        return ft.Semantics(content=shown, identifier=f"step-{number}")

    def draw_buttons(self) -> None:
        """Next and Stop; where the lesson asks for a prediction, a field for it."""
        if not self.lesson:
            return
        checks = [holds for step, holds, _ in self.shown if step.kind == CHECK]
        ahead = ft.Container(expand=True)
        if self.shown and self.shown[-1][0].kind == PREDICT:
            ahead = self.lab.part.field(label=self.say("lab_predict"), expand=True, on_submit=self.on(self.go_on))
        elif not self.player:
            ahead = chat.small(self.say("lab_lesson_done", passed=sum(checks), count=len(checks)), expand=True)
        parts = [ahead, ft.TextButton(self.say("lab_stop" if self.player else "lab_lessons"),
                                      on_click=self.on(self.leave))]
        if self.player:
            parts.append(ft.FilledButton(self.say("lab_next"), disabled=self.is_busy, on_click=self.on(self.go_on)))
        self.buttons.content = ft.Row(parts)
        self.lab.window.update(self.buttons)


class MarkView:
    """The examiner on the page: marks the server at an address, check by check; a check that is missed opens."""

    ICONS = {"passed": ("CHECK", "GREEN_500"), "missed": ("CLOSE", "ERROR"), "skipped": ("REMOVE", "OUTLINE")}

    def __init__(self, lab: LabView) -> None:
        self.lab, self.say = lab, lab.say
        self.report: Any = None                    # of the examination that goes on, or was the last
        hop = next((hop for hop in lab.bench.hops.values() if not hop.is_link), None)
        self.place = f"127.0.0.1:{hop.port}" if hop else ""    # through the bench: the diagram shows what is asked
        self.list, self.total = ft.ListView(expand=True), chat.small("")
        self.root = ft.Container(expand=True, padding=10)

    def draw(self) -> None:
        self.field = self.lab.part.field(label="HOST:PORT [HOST:PORT]", value=self.place, expand=True,
                                         on_submit=self.lab.on(self.run))
        start = ft.FilledButton(self.say("lab_mark_start"), on_click=self.lab.on(self.run))
        self.root.content = ft.Column([ft.Row([self.field, start]), self.total, self.list], expand=True)

    async def run(self) -> None:
        """Marks that server; an examination that still goes on is left where it is."""
        import ChatMark
        self.place = self.field.value or ""
        try:
            places = [common.parse_host_port(place) for place in self.place.split()[:2]]
        except ValueError as error:
            return self.lab.window.toast(str(error))
        exam = ChatMark.Exam(places, list(REALMS))
        self.report = report = ChatMark.Report(self.place, exam, self.lab.language)
        self.list.controls.clear()
        options = argparse.Namespace(client=False, run="", only=[], extra=False)
        for row in ChatMark.chosen(options, len(places)) if places else ():
            result = await asyncio.to_thread(exam.result_of, row)
            if report is not self.report:
                return
            report.results.append(result)
            self.list.controls.append(self.row(result))
            self.total.value = report.summary()
            self.lab.window.update(self.root)
        self.total.value = f"{self.total.value}   {report.verdict()}"
        self.lab.window.update(self.root)

    def row(self, result: Any) -> Any:
        """A check, and behind a click what was sent, expected and came."""
        icon, color = self.ICONS[result.kind]
        sign = ft.Icon(getattr(ft.Icons, icon), color=getattr(ft.Colors, color), size=18)
        title = ft.Text(f"{result.score}/{result.check.points}   {self.report.title(result)}", size=13.5)
        if not result.miss:
            return ft.ListTile(title, leading=sign, dense=True, subtitle=self.report.why_skipped(result) or None)
        details = ft.SelectionArea(ft.Text("\n".join(self.report.details(result)), font_family="Mono", size=12))
        return ft.ExpansionTile(title, [ft.Container(details, padding=10)], leading=sign, dense=True)


class Demo:
    """Every realm's server on this computer, and the bench before each, for as long as `with` lasts."""

    USERS = ("messi", "henderson")                 # who logs in at the first realm, and at the second

    def __init__(self, folder: Path) -> None:
        load_page()
        self.folder, self.bench = folder, Bench()
        self.panel: Callable[[Any], LabView] = lambda window: LabView(window, self.bench)
        self.behind = {name: chat.free_port() for name in REALMS}       # the servers' own ports
        self.ports = {name: self.bench.add_hop(name, ("127.0.0.1", port)).port for name, port in self.behind.items()}
        self.links = {name: self.bench.add_hop(f">{name}", ("127.0.0.1", port)).port
                      for name, port in self.behind.items()}
        self.bench.machines = {name: functools.partial(self.act, name) for name in REALMS}
        self.bench.states = dict.fromkeys(REALMS, ON)
        self.servers: dict[str, subprocess.Popen] = {}
        self.lock = threading.Lock()               # several pages may press at once

    def __enter__(self) -> Demo:
        try:
            self.bench.start()
            for name in REALMS:
                self.start(name)
            asyncio.run(self.begin_talk())
            self.bench.do(self.bench.clear)        # what is on the page begins with the page
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in REALMS:
            self.act(name, "stop")
        self.bench.close()

    def act(self, name: str, action: str) -> None:
        """Starts a realm's server, stops, kills, freezes or thaws it; where there is nothing to do, nothing."""
        with self.lock:
            server = self.servers.get(name)
            if action == "start" and not server:
                self.start(name)
            elif action != "start" and server:
                if action in ("stop", "kill"):
                    (server.terminate if action == "stop" else server.kill)()
                if CAN_FREEZE:                     # a frozen process hears of its end only when it is thawed
                    server.send_signal(signal.SIGSTOP if action == "freeze" else signal.SIGCONT)
                if action in ("stop", "kill"):
                    self.servers.pop(name).communicate()

    def start(self, name: str) -> None:
        """Starts a realm's server; at another port, where another program was quicker to take this one."""
        program = Path(__file__).resolve().parent / "ChatServer.py"
        peers = [f"--peer={realm}=127.0.0.1:{port}" for realm, port in self.links.items() if realm != name]
        for _ in range(3):
            server = subprocess.Popen(
                [sys.executable, str(program), "--realm", name, "--bind", "127.0.0.1", "--port", str(self.behind[name]),
                 *peers, "--data", str(self.folder / name), "--log-level", "error"], stdout=subprocess.PIPE, text=True)
            if server.stdout.readline():
                self.servers[name] = server
                return
            server.communicate()
            self.behind[name] = chat.free_port()
            for hop in (name, f">{name}"):
                self.bench.hops[hop].target = "127.0.0.1", self.behind[name]
        sys.exit(chat.say("demo_failed"))

    async def begin_talk(self) -> None:
        """A few words, so that there is something to see; not again where the data was kept."""
        conns = [chat.ServerConnection("127.0.0.1", self.ports[realm], realm) for realm in REALMS]
        (here, there), (one, other) = list(REALMS)[:2], self.USERS
        try:
            for conn, user in zip(conns, self.USERS, strict=False):
                await conn.request("auth", user, "surabaya")
            if (await conns[0].request("groups"))["groups"]:
                return
            await conns[0].request("addgroup", "jarkom3")
            await conns[1].request("joingroup", f"jarkom3@{here}")
            await conns[0].request("sendgroup", "jarkom3", "hallo guys welcome")
            await conns[0].request("send", f"{other}@{there}", chat.say("demo_hello", realm=here))
            await conns[1].request("send", f"{one}@{here}", chat.say("demo_answer", realm=there))
        finally:
            for conn in conns:
                await conn.close()


def run_page(bench: Bench, options: argparse.Namespace) -> int:
    load_page()
    hints = how_to_start(bench, options)
    settings = chat.parse_arguments(["--web-port", str(options.web_port)] if options.web_port else [])
    settings.demo = False
    return chat.run_page(settings, lambda window: LabView(window, bench, hints))


# ---- start -------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The bench: sees, breaks and records what passes.")
    home = common.realm_of_folder(Path(__file__).resolve().parent.name)
    add_option(parser, "--local", action="store_true", help="every realm is on this computer")
    add_option(parser, "--realm", default=home, choices=list(REALMS), help=f"the machine it runs on ({home})")
    add_option(parser, "--bind", default="127.0.0.1", metavar="HOST", help="who may connect: 0.0.0.0 lets others in")
    add_option(parser, "--hop", action="append", default=[], metavar="NAME=[HOST:]PORT>HOST:PORT",
               help="any other pair; a NAME that begins with > is a link's. With --hop alone the realms have none")
    add_option(parser, "--pcap", type=Path, metavar="FILE.pcapng", help="record all that passes, for Wireshark")
    add_option(parser, "--pcap-most", type=int, default=256, metavar="MIB", help="the most that a capture takes (256)")
    add_option(parser, "--pcap-true", action="store_true", help="a capture of this computer has its true addresses")
    add_option(parser, "--page", action="store_true", help="the bench on a page, instead of commands typed here")
    add_option(parser, "--web-port", type=int, metavar="N", help="the page's port (8550, or a free one)")
    add_option(parser, "--lesson", metavar="FILE", help="play a lesson, then leave; status 1 if a check failed")
    add_option(parser, "--script", metavar="FILE", help="carry out these commands, then leave; - is standard input")
    add_option(parser, "--seed", type=int, metavar="N", help="the same chances again")
    add_option(parser, "--language", default="id", choices=list(LANGUAGES), help="id or en (id)")
    return parser.parse_args(arguments)


def parse_hop(text: str) -> tuple[str, str, int, tuple[str, int]]:
    """`NAME=[HOST:]PORT>HOST:PORT` -> name, host and port to listen at, target. Raises ValueError."""
    name, _, places = text.partition("=")
    here, _, target = places.rpartition(">")
    host, port = common.parse_host_port(here if ":" in here else f"127.0.0.1:{here}")
    if not name or not re.fullmatch(r">?[A-Za-z0-9._-]{1,32}", name):
        raise ValueError(f"not a name: {name!r}")
    return name.lower(), host, port, common.parse_host_port(target)


def open_hops(bench: Bench, options: argparse.Namespace) -> None:
    """The hops that the command line asks for. Raises OSError and ValueError."""
    for text in options.hop:
        name, host, port, target = parse_hop(text)
        bench.add_hop(name, target, port, host)
    if options.hop:
        return
    for row in common.realm_table(options.local).values():
        address = "127.0.0.1" if row.name == options.realm else row.address
        bench.add_hop(row.name, (address, row.port), row.port + CLIENT_OFFSET, options.bind)
        bench.add_hop(f">{row.name}", (address, row.port), row.port + LINK_OFFSET, options.bind)


def how_to_start(bench: Bench, options: argparse.Namespace) -> list[tuple[str, dict[str, object]]]:
    """What a person types at the other terminals: the servers, and a client."""
    if options.hop:
        return []
    lines, here = [], "127.0.0.1" if options.local else REALMS[options.realm].address
    for row in REALMS.values():
        place = "127.0.0.1" if row.name == options.realm else here
        peers = " ".join(f"--peer {other.name}={place}:{bench.hops['>' + other.name].port}"
                         for other in REALMS.values() if other is not row)
        bind = " --bind 127.0.0.1" if options.local else ""
        program = shlex.quote(f"{row.folder}/ChatServer.py")
        lines.append(("lab_start_server", {"realm": row.name, "line": f"python3 {program}{bind} {peers}"}))
    first = bench.hops[options.realm]
    client = shlex.quote(f"{REALMS[options.realm].folder}/ChatClient.py")
    lines.append(("lab_start_client", {"line": f"python3 {client} --server {here}:{first.port}"}))
    return lines


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.page:
        common.ensure_packages("flet", "flet-web", "flet-cli")
    language = LANGUAGES[options.language]
    bench = Bench(options.seed)
    console = Console(bench, language, sys.stdout, options.pcap_most * MIB, options.pcap_true)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        open_hops(bench, options)
        if options.pcap:
            console.do_pcap(str(options.pcap))
    except (OSError, ValueError) as error:
        bench.close()
        sys.exit(str(error))
    bench.start()
    try:
        for hop in bench.hops.values():
            console.print("lab_listening", hop=hop.name, here=f"{hop.host}:{hop.port}",
                          target=f"{hop.target[0]}:{hop.target[1]}")
        if options.lesson:
            return int(not console.carry_out(f"lesson {options.lesson}"))
        if options.page:
            return run_page(bench, options)
        if options.script and options.script != "-":
            return console.run(Path(options.script).read_text("utf-8").splitlines())
        console.interactive = sys.stdin.isatty()
        if console.interactive:
            for key, fields in how_to_start(bench, options):
                console.print(key, **fields)
            console.print("lab_type_help")
            console.do_watch()
        return console.run(sys.stdin)
    except KeyboardInterrupt:
        return 130
    finally:
        if bench.capture:
            console.do_pcap("off")
        bench.close()


if __name__ == "__main__":
    sys.exit(main())
