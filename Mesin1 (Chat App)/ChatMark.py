"""The examiner: marks anybody's server or client of this protocol, and says what helps.

  python3 ChatMark.py HOST:PORT [HOST:PORT]      marks a server, with a second address also what passes between two
  python3 ChatMark.py HOST:PORT --run CMD        starts that server itself, kills it, and marks what survives
  python3 ChatMark.py --client --run CMD         is the server to a client, and marks that client
  python3 ChatMark.py --class hosts.txt          marks a class: a name and one or two addresses on each line

In this order:
  words         every text that is not a check's own, in both languages
  verdicts      a miss, a check, a result
  wire          a connection that remembers what passed, a person, the messages of an inbox
  examination   runs checks one by one; a dead server or a hang is a result, never a crash
  steps         the small language of the checks, and what a reply can be expected to be
  checks        C, F, E, X, S, R, T, P for servers
  client        the examination of a client, and its checks K
  reports       terminal, Markdown, Gradescope's JSON, JUnit's XML, CSV
  start         options, a class, main

To add a check, add a `check(...)` row. Its last arguments are steps, each a request and what the reply must be:

  check("C07", 3, "send: teks dengan spasi | send: a text with spaces",
        'Semua sesudah … adalah teks. | Everything after … is the text.',
        "A: send {B} {text}", "B: inbox => has {text}")

A, B and C are new people; Scene says which other words stand in braces, EXPECTED what may stand behind `=>`.
A text for people is written `Indonesian | English`. What no step can say is a function under an `@check(...)` row.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import hashlib
import html
import itertools
import json
import operator
import os
import queue
import re
import secrets
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
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import COMMANDS, FRAME_END, HIDDEN, KIB, MIB, REALMS, add_option, parse_host_port, visible  # noqa: E402

LIMIT = 110.0                  # seconds of one examination, whatever the other side does; the reports come after it
PATIENCE = 2.0                 # seconds that one reply may take (--patience); between realms four times that
REPLY_MOST = 8 * MIB           # bytes of one reply; a server that streams for ever is left there
EVENTS_MOST = 1000             # of one connection; no check causes more than a few
AT_ONCE = 4                    # servers of a class that are marked side by side
SHOWN, KEPT = 160, 2000        # bytes of a frame on the terminal, and in a report
PEOPLE = ("messi", "henderson", "lineker")     # the documented accounts
PASSWORD = "surabaya"
FULL_MARKS, LESS, NOT_JUDGED = 0, 1, 2         # exit statuses

# ---- words -------------------------------------------------------------------------------------

INDONESIAN, ENGLISH = 0, 1
LANGUAGES = {"id": INDONESIAN, "en": ENGLISH}

SECTIONS = {
    "C": "command | commands", "F": "framing | framing", "E": "kesalahan | errors",
    "X": "banyak sekaligus | several at once", "S": "keamanan | safety", "R": "realm | realms",
    "T": "fitur tambahan | our own features", "P": "bertahan | what survives", "K": "client | client",
}
BONUS = "TP"                   # sections that are not in the 100 points

HOW = {                        # how a check failed: the sentence that helps, before the check's own
    "silent": "Permintaan ini mematikan handlernya dan tidak ada jawaban: tangkap setiap exception, kirim ERROR, "
              "lanjutkan. | The request killed its handler and nobody answered: catch every exception of a request, "
              "send an ERROR, go on.",
    "fewer": "Satu recv bukan satu permintaan: simpan buffer, potong satu baris di setiap CR LF, jawab masing-masing, "
             "simpan sisanya. | One recv is not one request: keep a buffer, cut off a line at each CR LF, answer each, "
             "keep the rest.",
    "late": "Anda menunggu *buffer* berakhir dengan CR LF; carilah CR LF *di dalamnya*. | You wait for the *buffer* to "
            "end in CR LF; look for CR LF *in* it.",
    "frame": "Akhiri setiap jawaban dengan tepat `\\r\\n\\r\\n`. | End each reply with exactly `\\r\\n\\r\\n`.",
    "two": "Satu permintaan, satu objek JSON, satu `\\r\\n\\r\\n`. | One request, one JSON object, one `\\r\\n\\r\\n`.",
    "json": "Jawaban harus satu objek JSON: pakai `json.dumps`. | A reply is one JSON object: use `json.dumps`.",
    "ascii": "Biarkan `ensure_ascii` menyala: client lama men-decode potong demi potong. | Leave `ensure_ascii` on: an "
             "old client decodes piece by piece.",
    "closed": "Sesudah ERROR pun koneksi tetap dapat dipakai: jangan ditutup. | After an ERROR the connection stays "
              "usable: do not close it.",
    "unasked": "Kirim hanya jawaban pada koneksi yang tidak `subscribe`; client lama rusak karena yang lain. | Send "
               "only replies on a connection that did not subscribe; old clients break on anything else.",
    "endless": "Jawaban ini tidak ada akhirnya. | This reply has no end.",
    "connect": "Server tidak menerima koneksi: accept harus berjalan terus, listen(128). | The server does not accept: "
               "accept must go on all the time, listen(128).",
    "shape": "Jawaban ini JSON, tetapi bentuknya lain dari yang didokumentasikan. | The reply is JSON, but not of the "
             "documented form.",
    "restart": "Server tidak mulai lagi di portnya: pasang SO_REUSEADDR. | "
               "The server does not start again at its port: set SO_REUSEADDR.",
    "gone": "Server mati karena byte ini: tangkap exception di setiap thread, jangan biarkan proses berakhir. | These "
            "bytes ended the server: catch exceptions in each thread, and do not let the process end.",
}
GATE = ("silent", "frame", "json", "two", "closed", "endless", "connect")      # C01 missed so: nothing else would pass

WORDS = {
    "sent": "dikirim | sent", "expected": "diharapkan | expected", "came": "datang | came",
    "nothing": "tidak ada apa-apa | nothing", "then_nothing": "lalu tidak ada lagi | then nothing more",
    "then_closed": "lalu koneksi ditutup | then the connection ended",
    "points": "poin | points", "checks": "pemeriksaan | checks", "of": "dari | of",
    "missed": "TIDAK | MISS", "passed": "ok | ok", "skipped": "- | -",
    "needs": "tidak diuji, perlu {} | not tested, needs {}",
    "gone": "tidak diuji, server mati sesudah {} | not tested, server gone after {}",
    "time": "tidak diuji, waktu habis | not tested, the time is up",
    "gate": "tidak diuji: C01 harus lulus dahulu | not tested: C01 must pass first",
    "server_gone": "Server mati sesudah {}; byte terakhirnya: {} | Server gone after {}; these bytes were the last: {}",
    "unreachable": "Tidak dapat terhubung ke {}: {} | Cannot reach {}: {}",
    "no_client": "Tidak ada client yang terhubung ke {} | No client connected to {}",
    "type": "Ketik di client Anda: {} | Type at your client: {}",
    "start": "Jalankan client Anda sekarang; servernya {} | Start your client now; its server is {}",
    "exchange": "semua byte | all bytes",
    "did_not_start": "Server tidak mulai: {} | The server did not start: {}",
}


def in_language(text: str, language: int) -> str:
    """`Indonesian | English` -> one of the two; a text without a bar is the same in both."""
    parts = text.split(" | ")
    return parts[min(language, len(parts) - 1)]


def say(key: str, language: int, *values: object) -> str:
    return in_language(WORDS[key], language).format(*values)


# ---- verdicts ----------------------------------------------------------------------------------


@dataclass(eq=False)
class Miss(Exception):
    """A check is missed: how, and the bytes that show it."""

    how: str                       # a key of HOW, or `value` for the check's own sentence
    expected: str
    sent: bytes = b""
    came: bytes = b""
    at: int | None = None          # offset in `came` where a caret points
    end: str = ""                  # what came behind `came`: a key of WORDS, or nothing
    path: str = ""                 # where in the JSON it differs, and how


class Gone(Exception):
    """The server refuses connections: its process has ended, or never ran."""


@dataclass
class Check:
    """One row of the table of checks. Its steps are lines for Scene.play, or functions."""

    id: str
    points: int
    name: str
    sentence: str                  # what helps where `how` says nothing better
    steps: list[str | Callable]
    needs: str                     # the check without which this one says nothing, or `2` for a second server

    @property
    def section(self) -> str:
        return self.id[0]


CHECKS: list[Check] = []
STEP = re.compile(r"(\w+)(: | gets )(.*?)(?: => (.*))?", re.DOTALL)         # see Scene
NEEDS = {"R": "R01", "K": "K02"}                   # what the checks of a section need; the others need C01


def check(identity: str, points: int, name: str, sentence: str, *steps: str | Callable,
          needs: str | None = None) -> Callable:
    """Adds a row to the table of checks. As a decorator it adds the function below it as the last step."""
    if wrong := [step for step in steps if isinstance(step, str) and not STEP.fullmatch(step)]:
        raise ValueError(f"{identity}: no step: {wrong[0]}")
    needs = NEEDS.get(identity[0], "C01") if needs is None else needs
    row = Check(identity, points, name, sentence, list(steps), needs)
    CHECKS.append(row)

    def add(function: Callable) -> Callable:
        row.steps.append(function)
        return function
    return add


@dataclass
class Result:
    """What came of one check. `skipped` is the reason why it was not tested."""

    check: Check
    miss: Miss | None = None
    skipped: str = ""
    exchange: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        return "missed" if self.miss else "skipped" if self.skipped else "passed"

    @property
    def passed(self) -> bool:
        return self.kind == "passed"

    @property
    def score(self) -> int:
        return self.check.points if self.passed else 0

    def sentence(self, language: int) -> str:
        """The one sentence that helps: by how it failed, else the check's own."""
        return in_language(HOW.get(self.miss.how, self.check.sentence), language)


# ---- wire --------------------------------------------------------------------------------------

ENDS = {"closed": "then_closed", **dict.fromkeys(("silent", "frame", "fewer", "late"), "then_nothing")}


class Wire:
    """A connection of the examiner's. It remembers what it sent and what came, for the report."""

    def __init__(self, exam: Exam, place: int = 0) -> None:
        self.exam = exam
        self.buffer = bytearray()
        self.sent = b""                            # the last bytes that were sent
        self.came = b""                            # the last whole reply
        self.subscribed = False
        self.events: list[dict] = []
        try:
            self.socket = socket.create_connection(exam.places[place], exam.wait())
        except OSError as error:
            if isinstance(error, ConnectionRefusedError) and place == 0:
                raise Gone from None
            raise Miss("connect", "accept()") from None
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exam.connected = True
        exam.wires.append(self)
        self.number = len(exam.wires)

    def put(self, data: bytes, aside: bool = True) -> None:
        """Sends bytes. What came before and nobody asked for is set aside first: only F10 and F11 look for it.

        Without `aside` they go on with the request before them.
        """
        if aside and not self.subscribed:
            self.unasked(0)
        self.sent = data if aside else self.sent + data
        self.exam.note(f">{self.number}", data)
        self.socket.settimeout(self.exam.wait())
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise self.missed("a server that reads", "silent") from None
        except OSError:
            raise self.missed("a connection that stays open", "closed") from None

    def receive(self, deadline: float) -> bytes | None:
        """What the socket gives: empty at the connection's end, None if nothing came until the deadline."""
        self.socket.settimeout(max(deadline - time.monotonic(), 0))
        try:
            data = self.socket.recv(256 * KIB)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            return b""
        self.exam.note(f"<{self.number}", data)
        return data

    def unasked(self, seconds: float) -> bytes:
        """Takes what comes without being asked for, up to a bound; waits that long for it."""
        deadline = time.monotonic() + seconds
        found = bytes(self.buffer)
        self.buffer.clear()
        while len(found) < MIB and (data := self.receive(deadline)):
            found += data
        return found

    def missed(self, expected: str, how: str = "value", path: str = "", at: int | None = None) -> Miss:
        """A Miss with the last bytes of this connection."""
        came = bytes(self.buffer) if how in ("silent", "frame", "closed", "endless") else self.came
        if how == "frame":
            at = len(came)
        elif how == "value" and at is None and '"status"' in expected and (
                found := re.search(rb'"status":\s*(?=")', came)):
            at = found.end()
        return Miss(how, expected, self.sent, came, at, ENDS.get(how, ""), path)

    def silent(self, seconds: float, how: str = "value") -> None:
        """Nothing may come for so long."""
        if came := self.unasked(seconds):
            self.came = came
            raise self.missed("", how, at=0)

    def frame(self, patience: float | None = None, expected: str = '{"status":…}\\r\\n\\r\\n') -> bytes:
        """The next reply's bytes without their end."""
        deadline = time.monotonic() + self.exam.wait(patience)
        looked = 0
        while (end := self.buffer.find(FRAME_END, looked)) < 0:
            looked = max(len(self.buffer) - 3, 0)
            data = self.receive(deadline)
            if not data or len(self.buffer) > REPLY_MOST:
                how = "closed" if data == b"" else "endless" if data else "frame" if self.buffer else "silent"
                raise self.missed(expected, how)
            self.buffer += data
            if self.exam.is_late():
                raise self.missed(expected, "endless")
        self.came = bytes(self.buffer[:end + len(FRAME_END)])
        del self.buffer[:end + len(FRAME_END)]
        return self.came.removesuffix(FRAME_END)

    def take(self, patience: float | None = None) -> dict:
        """The next reply as fields; events before it are kept."""
        while True:
            frame = self.frame(patience)
            try:
                fields = json.loads(frame.decode(errors="replace"))
            except ValueError as error:
                how = "two" if "Extra data" in str(error) else "json"
                raise self.missed("{…}\\r\\n\\r\\n", how, at=getattr(error, "pos", None)) from None
            if not isinstance(fields, dict):
                raise self.missed("{…}\\r\\n\\r\\n", "json", at=0)
            if not (self.subscribed and "event" in fields):
                if isinstance(fields.get("tokenid"), str):
                    self.exam.tokens.add(fields["tokenid"])
                return fields
            self.events.append(fields)
            if len(self.events) > EVENTS_MOST:
                raise self.missed("…", "endless")

    def event(self, kind: str, **wanted: str) -> None:
        deadline = time.monotonic() + self.exam.wait()
        while not (found := [event for event in self.events if event["event"] == kind]):
            frame = self.frame(deadline - time.monotonic(), f'{{"event":"{kind}",…}}\\r\\n\\r\\n')
            self.events.append(json.loads(frame))
        self.events.remove(found[0])
        for key, value in wanted.items():
            self.is_same(str(found[0].get(key)), value, key)

    def ask(self, line: str, patience: float | None = None) -> dict:
        """Sends one request, and gives the fields of its reply. `\\udcff` in the line is the byte ff."""
        self.put(line.encode(errors="surrogateescape") + b"\r\n")
        return self.take(patience)

    def is_ok(self, reply: dict) -> dict:
        if reply.get("status") != "OK":
            raise self.missed('{"status":"OK",…}\\r\\n\\r\\n')
        return reply

    def ok(self, line: str, patience: float | None = None) -> dict:
        return self.is_ok(self.ask(line, patience))

    def is_same(self, found: object, expected: object, path: str) -> None:
        """A value of the last reply is as it should be."""
        if found != expected:
            raise self.missed(f"{path} = {brief(expected)}", path=f"{path} = {brief(found)}",
                              at=self.differs_at(found, expected))

    def differs_at(self, found: object, expected: object) -> int | None:
        """Where in the last reply the first byte of a text is that differs: there the caret points."""
        if not isinstance(found, str) or not isinstance(expected, str):
            return None
        place = self.came.rfind(json.dumps(found)[1:-1].encode())
        return place + len(json.dumps(os.path.commonprefix([found, expected]))) - 2 if place >= 0 else None


def brief(value: object, most: int = 120) -> str:
    """A value for people, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)})"


@dataclass(eq=False)
class Person:
    """Somebody with a connection: an account that only this check uses, or a guest without one."""

    wire: Wire
    name: str = ""
    password: str = ""
    nama: str = ""                 # the full name, with spaces
    token: str = ""

    def __str__(self) -> str:
        return self.name

    def login(self) -> str:
        """Logs in: the token, which is also kept."""
        token = self.wire.ok(f"auth {self.name} {self.password}").get("tokenid")
        if not is_token(token):
            raise self.wire.missed('{"status":"OK","tokenid":"…"}\\r\\n\\r\\n')
        self.token = token
        return token

    def line(self, words: str) -> str:
        """`send messi hi` -> `send TOKEN messi hi`, as the command table says; a tag in front stays in front."""
        found = re.fullmatch(r"(@\S+ )?(\S*)(.*)", words, re.DOTALL)
        needs_token = found[2] in COMMANDS and COMMANDS[found[2]].parameters.split()[:1] == ["T"]
        return f"{found[1] or ''}{found[2]} {self.token}{found[3]}" if needs_token and self.token else words


def is_token(value: object) -> bool:
    """Whether it can be a token: one word, and not so long that requests with it would flood a server."""
    return isinstance(value, str) and 0 < len(value) <= KIB and value.isprintable() and " " not in value


class Item:
    """One message of an inbox: what the checks look at, under whichever of its documented names it stands."""

    def __init__(self, sender: str, value: object) -> None:
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = json.loads(value)
        self.fields = fields = value if isinstance(value, dict) else {"msg": value}
        file = fields.get("file") if isinstance(fields.get("file"), dict) else {}
        text = fields.get("msg")
        self.whole = json.dumps(fields)
        self.sender = sender.partition("@")[0]
        self.from_name = fields.get("msg_from") or fields.get("from_name")
        self.text = text.strip() if isinstance(text, str) else text
        self.file_id, self.file_name = file.get("id"), str(fields.get("file_name") or file.get("name") or "")


def items_of(messages: object) -> list[Item]:
    """What `messages` of an inbox holds: a map by sender or a list, of objects or of JSON texts."""
    groups = messages.items() if isinstance(messages, dict) else [("", messages)]
    return [Item(sender, value) for sender, values in groups
            for value in (values if isinstance(values, list) else [values] if values else [])]


# ---- examination -------------------------------------------------------------------------------


class Examination:
    """Runs checks one after the other. Whatever one of them meets, the next begins with connections of its own."""

    second = False                                 # whether there is a second server

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.limit = LIMIT
        self.started = time.monotonic()
        self.connected = False                     # whether anything ever answered
        self.results: dict[str, Result] = {}
        self.gone = ""                             # the check that the server died in
        self.gated = False                         # C01 was missed so that nothing else would pass
        self.current = ""
        self.last_sent: tuple[str, bytes] = ("", b"")
        self.tokens: set[str] = set()
        self.exchange: list[tuple[str, bytes]] = []

    def wait(self, seconds: float | None = None) -> float:
        """How long something may take now: the patience, but never past the end of the examination."""
        left = self.started + self.limit - time.monotonic()
        return max(min(self.patience if seconds is None else seconds, left), 0.001)

    def is_late(self) -> bool:
        return time.monotonic() > self.started + self.limit

    def note(self, arrow: str, data: bytes) -> None:
        """Remembers what passed, for the report of this check."""
        if arrow.startswith(">"):
            self.last_sent = self.current, data
        if data and len(self.exchange) < 200:
            self.exchange.append((arrow, data[:KEPT]))

    def judge(self, checks: list[Check]) -> Iterator[Result]:
        return map(self.result_of, checks)

    def result_of(self, row: Check) -> Result:
        """What came of a check, which is run only once; what it needs is run before it."""
        if row.id not in self.results:
            reason = self.reason_to_skip(row)
            self.results[row.id] = Result(row, skipped=reason) if reason else self.examine(row)
        return self.results[row.id]

    def why_over(self) -> str:
        """Why no further check can be run, as `key:value` of WORDS, or nothing."""
        return f"gone:{self.gone}" if self.gone else "gate:" if self.gated else "time:" if self.is_late() else ""

    def reason_to_skip(self, row: Check) -> str:
        """Why a check cannot say anything now, as `key:value` of WORDS, or nothing."""
        if row.needs == "2":
            return self.why_over() or ("" if self.second else "needs:HOST:PORT 2")
        if row.needs and not self.why_over():
            needed = self.result_of(next(other for other in CHECKS if other.id == row.needs))
            if not needed.passed and not self.goes_on():
                return self.why_over() or f"needs:{row.needs}"
        return self.why_over()

    def examine(self, row: Check) -> Result:
        """Runs one check. Nothing that a server does leaves here as anything but a Result."""
        self.current, self.exchange = row.id, []
        started, miss = time.monotonic(), None
        try:
            self.perform(row)
        except Miss as found:
            miss = found
        except Gone:
            miss = self.died()
            if self.gone != row.id:
                return Result(row, skipped=f"gone:{self.gone}")
        except Exception as fault:                 # the reply was JSON of a form that the check did not foresee
            came = b"".join(data for arrow, data in self.exchange[-3:] if arrow.startswith("<"))
            miss = Miss("shape", "the documented reply", self.last_sent[1], came,
                        path=f"{type(fault).__name__}: {fault}")
        if miss and miss.how in ("closed", "connect") and not self.gone and self.is_gone():
            miss = self.died()
        self.close(bool(miss))
        self.gated = self.gated or (row.id == "C01" and bool(miss) and miss.how in GATE)
        return Result(row, miss, "", self.exchange, time.monotonic() - started)

    def died(self) -> Miss:
        """The server is gone: the check whose bytes were the last is the one that it died in."""
        self.gone, last = self.last_sent
        self.gone = self.gone or self.current
        return Miss("gone", "a server that lives", last, end="then_closed")

    # What the two kinds of examination do differently:

    def perform(self, row: Check) -> None:
        raise NotImplementedError

    def goes_on(self) -> bool:
        """Whether a check can be run although the one that it needs was missed."""
        return False

    def is_gone(self) -> bool:
        """Whether nobody listens any more."""
        return False

    def close(self, missed: bool) -> None:
        """Ends what the check left open."""


class Exam(Examination):
    """The examination of a server, or of two that are linked."""

    def __init__(self, places: list[tuple[str, int]], names: list[str], patience: float = PATIENCE,
                 program: Program | None = None) -> None:
        super().__init__(patience)
        self.places, self.names, self.program = places, names, program
        self.second = len(places) > 1
        self.run = secrets.token_hex(3)            # no two runs make the same people
        self.counter = itertools.count(1)
        self.registers = True                      # whether `register` works
        self.documented = itertools.cycle(PEOPLE)
        self.wires: list[Wire] = []

    def perform(self, row: Check) -> None:
        scene = Scene(self)
        for step in row.steps:
            scene.play(step)

    def person(self, place: int = 0, account: tuple[str, str] | None = None) -> Person:
        """Somebody new; one of the documented people where nobody can register."""
        wire, number = Wire(self, place), next(self.counter)
        if account is None and self.registers:
            person = Person(wire, f"u{self.run}{number}", f"pw{secrets.token_hex(4)}", f"Nama {number}")
            reply = wire.ask(f"register {person} {person.password} Nama_{number} Indonesia")
            if reply.get("status") == "OK" and is_token(reply.get("tokenid")):
                person.token = reply["tokenid"]
                return person
            self.registers = False                 # C04 says so; the others go on with the documented people
        person = Person(wire, *(account or (next(self.documented), PASSWORD)))
        person.login()
        if account is None:
            wire.ok(person.line("inbox"))          # takes what others left there
        return person

    def is_gone(self) -> bool:
        for _ in range(3):                         # a process that is ending may still take a connection or two
            try:
                with socket.create_connection(self.places[0], self.wait()) as probe:
                    probe.settimeout(self.wait())
                    probe.sendall(b"inbox x\r\n")
                    if probe.recv(1):
                        return False
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                return False
            except OSError:
                continue
        return False

    def close(self, missed: bool) -> None:
        for wire in self.wires:
            wire.socket.close()
        self.wires = []


class Program:
    """What `--run` names: a process that the examiner starts and ends, with its children."""

    START_SECONDS = 15.0

    def __init__(self, command: str) -> None:
        self.words = [str(Path(word).resolve()) if "/" in word or Path(word).is_file() else word
                      for word in shlex.split(command)]      # so that it runs in any folder
        self.root = Path(tempfile.mkdtemp(prefix="chat-mark-"))
        self.output = self.root / "output"         # a file: a pipe that nobody reads would block the program
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, stdin: int = subprocess.DEVNULL, folder: Path | None = None, **environment: str) -> None:
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(self.words, stdin=stdin, stdout=output, stderr=output, cwd=folder,
                                            env={**os.environ, **environment}, start_new_session=True)

    def serve(self, place: tuple[str, int], seconds: float = START_SECONDS) -> None:
        """Starts it and waits until it listens. Raises Gone where it does not, or where another program does."""
        with contextlib.suppress(OSError):
            socket.create_connection(place, 1.0).close()
            raise Gone(f"{place[0]}:{place[1]} is taken")
        self.launch()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(place, 1.0).close()
                return
            time.sleep(0.05)                       # nothing announces that another program listens
        self.end(signal.SIGTERM)
        raise Gone((self.printed().strip().splitlines() or [""])[-1])

    def end(self, number: int) -> None:
        """Sends a signal to it and its children, and waits; what does not end is killed."""
        if not self.process:
            return
        for each in (number, KILL):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, each) if hasattr(os, "killpg") else self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
                break
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process = None

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def printed(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def close(self) -> None:
        """Ends it and leaves nothing behind."""
        self.end(signal.SIGTERM)
        shutil.rmtree(self.root, ignore_errors=True)


KILL = getattr(signal, "SIGKILL", signal.SIGTERM)            # Windows has none

# ---- steps -------------------------------------------------------------------------------------


def in_base64(data: bytes) -> str:
    """A file's content as old clients send it."""
    return str(base64.b64encode(data))


class Scene(dict):
    """The people of one check, and the words that stand in braces in its steps.

    A step is `WHO: REQUEST`, `WHO: REQUEST => EXPECTED and EXPECTED`, or `WHO gets EVENT FIELD=VALUE`. WHO is a capital
    letter (a new person, at the second server with a 2: B2), a documented person, or `guest` (nobody logged in). They
    come when they are first named. The token is put in by itself; the reply must be OK where nothing is expected.
    """

    def __init__(self, exam: Exam) -> None:
        self.exam = exam
        mark = f"{exam.run}{next(exam.counter)}"               # in no other check
        data = f"isi file é {mark}".encode()
        super().__init__(
            text=f"hello world {mark}", group=f"g{mark}", nobody=f"x{mark}", wrong=secrets.token_hex(16),
            name=f"f{mark}.txt", content=in_base64(data), sha256=hashlib.sha256(data).hexdigest(), size=len(data),
            here=exam.names[0], there=exam.names[-1],          # the two realms
            sent=[], reply={})                                 # the replies to what was sent, and the reply before

    def __missing__(self, who: str) -> Person:
        place, name = int(who.endswith("2")), who.removesuffix("2")
        if who == "guest":
            person = Person(Wire(self.exam))
        elif name in PEOPLE or re.fullmatch("[A-Z]", name):
            person = self.exam.person(place, (name, PASSWORD) if name in PEOPLE else None)
        else:
            raise LookupError(f"no word {who}")
        self[who] = person
        return person

    @property
    def people(self) -> list[Person]:
        return [value for value in self.values() if isinstance(value, Person)]

    def play(self, step: str | Callable) -> None:
        if callable(step):
            step(self)
            return
        who, kind, words, expected = STEP.fullmatch(step).groups()
        person, line = self[who], words.format_map(self)
        if kind == " gets ":
            event, _, fields = line.partition(" ")
            person.wire.event(event, **dict(part.split("=", 1) for part in fields.split(" and ")))
        elif expected == "whatever":
            with contextlib.suppress(Miss):
                person.wire.ask(person.line(line), self.exam.patience / 4)
        else:
            self.request(person, person.line(line), (expected or "OK").split(" and "))

    def request(self, person: Person, line: str, expectations: list[str]) -> None:
        """Sends a request and compares its reply with all that is expected."""
        command = line.split(" ")[0]
        person.wire.subscribed = person.wire.subscribed or command == "subscribe"
        far = "realm" in command or f"@{self['there']}" in line
        reply = person.wire.ask(line, 4 * self.exam.patience if far else None)
        if command in ("auth", "register") and is_token(reply.get("tokenid")):
            person.token = reply["tokenid"]
        if re.match(r"(@\S+ )?send", line):
            self["sent"].append(reply)
        for expectation in expectations:
            word, _, value = expectation.format_map(self).partition(" ")
            EXPECTED.get(word, partial(has_field, word))(person, reply, value)
        self["reply"] = reply


# What a reply must be: a function of who asked, the reply's fields, and the words behind the expectation.


def has_field(path: str, person: Person, reply: dict, value: str) -> None:
    """`tokenid`: it has that field. `tag = x`, `messages.msg = x, y`, `rows.0.last.msg = x`: which is that."""
    found: object = reply
    for key in path.split("."):
        if isinstance(found, list):
            found = found[int(key)] if key.isdigit() else [row.get(key) for row in found]
        else:
            found = found.get(key)
    if value:
        text = ", ".join(map(str, found)) if isinstance(found, list) else str(found)
        person.wire.is_same(text, value.removeprefix("= "), path)
    elif not found:
        raise person.wire.missed(f'{{"status":…,"{path}":…}}\\r\\n\\r\\n')


def is_error(person: Person, reply: dict, code: str) -> None:
    """`ERROR`, `ERROR too_long`: an ERROR, with that code if one is named."""
    if reply.get("status") != "ERROR" or code and reply.get("code") != code:
        named, path = (f'"code":"{code}",', f"code = {reply.get('code')}") if code else ("", "")
        raise person.wire.missed(f'{{"status":"ERROR",{named}…}}\\r\\n\\r\\n', path=path)


def inbox(name: str, is_right: Callable, person: Person, reply: dict, wanted: str) -> None:
    """The list of what each message has as this attribute passes the test."""
    found = [getattr(item, name) for item in items_of(person.wire.is_ok(reply).get("messages"))]
    if not is_right(found, wanted):
        at = person.wire.differs_at(found[0], wanted) if len(found) == 1 else None
        raise person.wire.missed(brief(wanted) or '{"messages":{}}', path=f"inbox: {brief(found)}", at=at)


def are_in_order(found: list, wanted: str) -> bool:
    """Of these texts, separated by commas, each was found once, in this order."""
    texts = wanted.split(", ")
    return [text for text in found if text in texts] == texts


def contains(person: Person, reply: dict, wanted: str) -> None:
    """The words stand somewhere in the reply."""
    if wanted not in json.dumps(person.wire.is_ok(reply)):
        raise person.wire.missed(f"…{wanted}…", path="messages" if "messages" in reply else "message")


def lacks(person: Person, reply: dict, unwanted: str) -> None:
    """The words stand nowhere in the reply, be it OK or ERROR."""
    if (at := person.wire.came.find(unwanted.encode())) >= 0:
        raise person.wire.missed("", at=at)


def is_ascii(person: Person, reply: dict, _: str) -> None:
    """The reply has no byte above 127."""
    if not person.wire.came.isascii():
        at = next(at for at, byte in enumerate(person.wire.came) if byte > 127)
        raise person.wire.missed("ASCII", "ascii", at=at)


def has_file(person: Person, reply: dict, wanted: str) -> None:
    """`BASE64 NAME`: the first file among the messages has this content, and this name if one is given."""
    is_that_file(person, items_of(person.wire.is_ok(reply).get("messages")), *wanted.split(" "))


def is_that_file(person: Person, items: list[Item], content: str, name: str = "") -> None:
    """The first file among the messages has this content and name. Content is strict, for a stray letter must miss."""
    item = next((item for item in items if "file_content" in item.fields or item.file_id), None)
    if item is None:
        raise person.wire.missed("file_content", path="inbox")
    came = item.fields.get("file_content")
    if item.file_id:
        came = person.wire.ok(person.line(f"getfile {item.file_id}")).get("file_content")
    wanted, inner = base64.b64decode(content[2:-1]), re.fullmatch(r"b(['\"])(.*)\1|(.*)", came, re.DOTALL)
    try:
        data = base64.b64decode(inner[2] or inner[3] or "", validate=True)
    except ValueError:
        raise person.wire.missed("base64", path=f"file_content: {brief(came)}") from None
    if data != wanted:
        raise person.wire.missed(f"{len(wanted)} bytes", path=f"{len(data)} bytes: {brief(repr(data), 40)}")
    if name:
        person.wire.is_same(item.file_name, name, "file_name")


def arrives(is_it: Callable, person: Person, reply: dict, wanted: str) -> list[Item]:
    """A message of the other realm is there, or comes before four times the patience is over."""
    exam, found = person.wire.exam, items_of(reply.get("messages"))
    deadline = time.monotonic() + exam.wait(4 * exam.patience)
    while not any(is_it(item, wanted) for item in found):
        if time.monotonic() > deadline:
            raise person.wire.missed(wanted, path=f"{len(found)} items")
        time.sleep(0.1)                            # nothing announces what is awaited
        for name in exam.names:
            reply = person.wire.ask(person.line(f"getrealminbox {name}"))
            found += items_of(reply.get("messages") or reply.get("message") or [])
        found += items_of(person.wire.ask(person.line("inbox")).get("messages"))
    return [item for item in found if is_it(item, wanted)]


def file_arrives(person: Person, reply: dict, wanted: str) -> None:
    """`BASE64 NAME`: the file of that name comes from the other realm with this content."""
    content, name = wanted.split(" ")
    is_that_file(person, arrives(lambda item, name: item.file_name == name, person, reply, name), content)


EXPECTED: dict[str, Callable] = {                  # any other word is a field of the reply: see has_field
    "OK": lambda person, reply, _: person.wire.is_ok(reply),
    "ERROR": is_error,
    "answered": lambda person, reply, _: None,     # OK or ERROR; `whatever` allows silence, too
    "contains": contains, "lacks": lacks, "ascii": is_ascii,
    # of `inbox`: a message with this text, with these words anywhere in it, with this full name of its sender
    "has": partial(inbox, "text", operator.contains),
    "has_inside": partial(inbox, "whole", lambda found, words: any(words in whole for whole in found)),
    "from": partial(inbox, "from_name", operator.contains),
    # a message under this sender's name; these texts in order; no message; a file
    "under": partial(inbox, "sender", operator.contains),
    "in_order": partial(inbox, "text", are_in_order),
    "empty": partial(inbox, "text", lambda found, _: not found),
    "file": has_file,
    # of `inbox` in the other realm, where it may come later
    "arrives": partial(arrives, lambda item, text: item.text == text),
    "arrives_inside": partial(arrives, lambda item, words: words in item.whole),
    "file_arrives": file_arrives,
}


# Steps that a line cannot say: each function gives a step.


def in_pieces(cut: bytes, words: str, pause: float) -> Callable:
    """A request of A in the pieces that this pattern finds in it, with a pause behind each; the reply comes last."""
    def step(scene: Scene) -> None:
        person = scene["A"]
        line = person.line(words.format_map(scene)).encode() + b"\r\n"
        *pieces, last = re.findall(cut, line, re.DOTALL)
        for number, piece in enumerate(pieces):
            person.wire.put(piece, aside=number == 0)
            person.wire.silent(pause)
        person.wire.put(last, aside=False)
        person.wire.is_ok(person.wire.take())
    return step


def together(*rows: tuple[str, str]) -> Callable:
    """Requests of A in one segment, each with its reply's status: a reply each, in their order."""
    def step(scene: Scene) -> None:
        person = scene["A"]
        person.wire.put("".join(person.line(line.format_map(scene)) + "\r\n" for line, _ in rows).encode())
        take_all(person.wire, [status for _, status in rows])
    return step


def take_all(wire: Wire, statuses: list[str]) -> None:
    """The replies to requests that were sent in one segment."""
    count = len(statuses)
    expected = '{"status":"…"}\\r\\n\\r\\n' + ('{"status":"…"}\\r\\n\\r\\n' if count == 2 else f" × {count}")
    for number, status in enumerate(statuses):
        try:
            reply = wire.take()
        except Miss as miss:
            if miss.how != "silent" or not number:
                raise
            raise wire.missed(expected, "fewer", f"replies: {number} of {count}") from None
        if reply.get("status") != status:
            how = "fewer" if number < count - 1 and not wire.unasked(wire.exam.wait(0.5)) else "value"
            raise wire.missed(expected, how, f"reply {number + 1}: not {status}")


def quiet(who: str, seconds: float, how: str = "value") -> Callable:
    """Nothing comes to this person unasked."""
    return lambda scene: scene[who].wire.silent(seconds, how)


def half(scene: Scene) -> None:
    """A sends half a request."""
    scene["A"].wire.put(b"inbox ")


def reset(who: str) -> Callable:
    """The person's connection ends with RST, and a new one begins; the token stays."""
    def step(scene: Scene) -> None:
        person = scene[who]
        person.wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        person.wire.socket.close()
        person.wire = Wire(scene.exam)
    return step


def restart(number: int) -> Callable:
    """The server ends by that signal and starts again; everybody logs in again."""
    def step(scene: Scene) -> None:
        exam = scene.exam
        exam.program.end(number)
        try:
            exam.program.serve(exam.places[0], exam.wait(Program.START_SECONDS))
        except Gone as gone:
            raise Miss("restart", "listen()", came=str(gone).encode()) from None
        for person in scene.people:
            person.wire = Wire(exam)
            person.login()
    return step


# ---- checks: documented commands ---------------------------------------------------------------


@check("C01", 2, "auth: token | auth: a token",
       "auth mengembalikan tokenid yang dibawa oleh command berikutnya. | "
       "auth returns a tokenid that later commands bring back.", needs="")
def auth_gives_a_token(scene: Scene) -> None:
    scene.exam.person(0, ("messi", PASSWORD))


check("C02", 2, "auth: password salah | auth: wrong password",
      "Bandingkan password sebelum membuat token. | Compare the password before making a token.",
      "guest: auth {A} salah => ERROR")
check("C03", 2, "auth: user yang tidak ada | auth: unknown user",
      "Cari user dengan get(), sebuah KeyError mengakhiri handler Anda. | "
      "Look the user up with get(), a KeyError ends your handler.",
      "guest: auth {nobody} surabaya => ERROR", needs="")
check("C04", 2, "register, lalu login | register, then log in",
      "register menyimpan user dan sekaligus login. | register stores the user and logs in.",
      "guest: register {nobody} admin Nama_Reg Indonesia => OK and tokenid", "guest: inbox",
      "guest: auth {nobody} admin")
check("C05", 1, "register: nama sudah dipakai | register: a name that is taken",
      "Tolak nama yang sudah dipakai, jangan menimpanya. | Refuse a name that is taken, never overwrite.",
      "guest: register messi lain Orang_Lain Indonesia => ERROR")
check("C06", 1, "NAMA dengan _ | NAMA with _",
      "`_` berarti spasi dalam NAMA. | `_` stands for a space in NAMA.",
      "A: send {B} {text}", "B: inbox => has {text} and from {A.nama}", needs="C04")
check("C07", 3, "send: teks dengan spasi | send: a text with spaces",
      'Semua sesudah spasi kedua adalah teks: split(" ", 3). | '
      'Everything after the second argument is the text: split(" ", 3).',
      "A: send {B} {text}", "B: inbox => has {text}")
check("C08", 1, "inbox: menurut pengirim | inbox: by sender",
      "Kelompokkan inbox menurut pengirim. | Group the inbox by sender.",
      "A: send {B} {text}", "B: inbox => has {text} and under {A}", needs="C07")
check("C09", 2, "inbox dua kali | inbox twice",
      "inbox mengambil: kosongkan antrean sesudah dijawab. | inbox takes: empty the queue when it was answered.",
      "A: send {B} {text}", "B: inbox => has {text}", "B: inbox => empty")
check("C10", 1, "sepuluh send: urutan | ten sends: order",
      "Tambahkan di belakang, baca dari depan, simpan sekali saja. | "
      "Append at the end, read from the front, store once.",
      *(f"A: send {{B}} {{text}} {number}" for number in range(10)),
      "B: inbox => in_order " + ", ".join(f"{{text}} {number}" for number in range(10)))
check("C11", 1, "send kepada diri sendiri | send to oneself",
      "Pengirim boleh menjadi penerima. | The sender may be the recipient.",
      "A: send {A} {text}", "A: inbox => has {text}")
check("C12", 2, "send kepada yang tidak ada | send to nobody",
      "Periksa penerima sebelum menyimpan. | Check the recipient before storing.",
      "A: send {nobody} halo => ERROR")

GROUP = ("A: addgroup {group}", "B: joingroup {group}")
OF_THREE = (*GROUP, "C: joingroup {group}")

check("C13", 2, "sendgroup: setiap anggota | sendgroup: every member",
      "Masukkan satu pesan ke antrean setiap anggota. | Put one item into each member's queue.",
      *OF_THREE, "A: sendgroup {group} {text}", "B: inbox => has_inside {text}", "C: inbox => has_inside {text}")
check("C14", 2, "sendgroup: msg adalah teksnya | sendgroup: msg is the text",
      "Buat dict baru untuk setiap anggota; milik Anda memuat dict sebelumnya. | "
      "Build a new dict for each member; yours holds the one before.",
      *OF_THREE, "A: sendgroup {group} {text}", "B: inbox => has {text}", "C: inbox => has {text}", needs="C13")
check("C15", 1, "joingroup dua kali | joingroup twice", "Seorang anggota masuk satu kali. | A member joins once.",
      *GROUP, "B: joingroup {group} => ERROR")
check("C16", 1, "group yang tidak ada | unknown group", "Periksa apakah group ada. | Check that the group exists.",
      "A: joingroup {nobody} => ERROR", "A: sendgroup {nobody} halo => ERROR")
check("C17", 1, "addgroup: nama sudah ada | addgroup: a name that exists",
      "addgroup dengan nama yang sudah ada tidak boleh menggantikan groupnya. | "
      "addgroup of an existing name must not replace it.",
      *GROUP, "C: addgroup {group} => answered", "A: sendgroup {group} {text}", "B: inbox => has_inside {text}",
      needs="C13")
check("C18", 1, "sendgroup sampai ke pembuatnya | sendgroup reaches the maker",
      "Pembuat group adalah anggota pertama. | The maker is the first member.",
      *GROUP, "B: sendgroup {group} {text}", "A: inbox => has_inside {text}", needs="C13")
check("C19", 3, "sendfile: isi dan nama | sendfile: content and name",
      "base64 dua arah; buang pembungkus b'…'. | base64 both ways; strip the b'…' wrapper.",
      "A: sendfile {B} {name} {content}", "B: inbox => file {content} {name}")

EVERY_BYTE = in_base64(bytes(range(256)) * 400)

check("C20", 1, "sendfile: 100 KiB, semua nilai byte | sendfile: 100 KiB, every byte value",
      "Data biner adalah base64, jangan pernah decode() sebagai teks. | Binary is base64, never decode() it as text.",
      f"A: sendfile {{B}} acak.bin {EVERY_BYTE}", f"B: inbox => file {EVERY_BYTE} acak.bin")
check("C21", 1, "sendfile: file kosong | sendfile: an empty file",
      "File kosong adalah file. | An empty file is a file.",
      "A: sendfile {B} kosong.txt b''", "B: inbox => file b'' kosong.txt")
check("C22", 2, "sendgroupfile: setiap anggota | sendgroupfile: every member",
      "Seperti sendgroup, dengan file. | As sendgroup, with a file.",
      *OF_THREE, "A: sendgroupfile {group} {name} {content}",
      "B: inbox => file {content}", "C: inbox => file {content}")
check("C23", 1, "sendfile kepada yang tidak ada | sendfile to nobody",
      "Periksa penerima sebelum menyimpan. | Check the recipient before storing.",
      "A: sendfile {nobody} {name} {content} => ERROR")
check("C24", 2, "logout mengakhiri token | logout ends the token",
      "logout menghapus session. | logout deletes the session.",
      "A: logout", "A: inbox => ERROR")
check("C25", 2, "info sesudah ada pesan | info after messages",
      "json.dumps tidak dapat menulis Queue: pilih field yang Anda tampilkan. | "
      "json.dumps cannot write a Queue: pick the fields you show.",
      "B: send {A} {text}", "A: info => contains {A}")

# ---- checks: framing ---------------------------------------------------------------------------

COLLECT = "TCP adalah aliran: kumpulkan sampai CR LF. | TCP is a stream: collect until CR LF."
EACH_LINE = "Jawab setiap baris, menurut urutannya. | Answer each line, in order."

check("F01", 2, "satu permintaan byte demi byte | one request byte by byte", COLLECT,
      in_pieces(rb".", "auth {A} {A.password}", 0.003))
check("F02", 2, "dipotong di antara CR dan LF | cut between CR and LF", COLLECT, in_pieces(rb".*\r|\n", "inbox", 0.3))
check("F03", 3, "dua permintaan dalam satu segmen | two requests in one segment: two replies", EACH_LINE,
      together(("inbox", "OK"), ("auth {A} {A.password}", "OK")))


@check("F04", 2, "satu setengah permintaan, lalu sisanya | one and a half requests, then the rest",
       "Jawab setiap baris begitu CR LF-nya ada, simpan sisanya. | "
       "Answer each line as soon as its CR LF is there, keep the rest.")
def one_and_a_half(scene: Scene) -> None:
    person, wire, early = scene["A"], scene["A"].wire, None
    wire.put(f"{person.line('inbox')}\r\nauth {person} ".encode())
    with contextlib.suppress(Miss):
        early = wire.take()
    wire.put(f"{person.password}\r\n".encode(), aside=False)
    if early is None:
        wire.take()
        raise wire.missed('{"status":"OK",…}\\r\\n\\r\\n', "late")
    wire.is_ok(early)
    wire.is_ok(wire.take())


check("F05", 2, "50 permintaan sekaligus, setiap kelima salah | 50 requests at once, every fifth wrong", EACH_LINE,
      together(*10 * (*4 * (("inbox", "OK"),), ("apaini", "ERROR"))))
check("F06", 2, "é dipotong di tengah | é cut in two", "Decode baris yang utuh, bukan potongan. | "
      "Decode whole lines, not pieces.",
      in_pieces(rb".*\xc3|.+", "send {B} café {text}", 0.1), "B: inbox => has café {text}")
check("F07", 1, "4.000 huruf dalam empat potong | 4,000 characters in four pieces", COLLECT,
      in_pieces(rb".{1,1050}", f"send {{B}} {{text}} {'x' * 3970}", 0.05), f"B: inbox => has {{text}} {'x' * 3970}")
check("F08", 1, "spasi sebelum CR LF | a space before CR LF",
      "Client lama menaruh spasi sebelum CR LF. | Old clients put a space before CR LF.",
      "A: auth {A} {A.password} ", "A: send {B}  {text} ", "B: inbox => has {text}")
check("F09", 2, "é dan 🙂 melalui inbox | é and 🙂 through the inbox",
      "Kirim teks utuh, dalam ASCII. | Give the whole text back, in ASCII.",
      "A: send {B} é 🙂 {text}", "B: inbox => ascii and has é 🙂 {text}", needs="C07")
check("F10", 2, "tidak ada yang datang tanpa diminta | nothing comes unasked",
      "Jangan kirim apa pun yang tidak diminta. | Send nothing unasked.",
      "B: inbox", "A: send {B} {text}", quiet("B", 0.5, "unasked"))
check("F11", 1, "satu jawaban, tidak ada di belakangnya | one reply, nothing behind it",
      "Satu permintaan, satu jawaban. | One request, one reply.",
      "A: inbox", quiet("A", 0.3))
check("F12", 1, "token di koneksi lain | the token on another connection",
      "Token adalah loginnya, bukan socketnya. | The token is the login, not the socket.",
      "guest: inbox {A.token}")

# ---- checks: errors ----------------------------------------------------------------------------

check("E01", 2, "command yang tidak ada | unknown command",
      "Kata yang tidak dikenal: ERROR, koneksi tetap hidup. | Unknown word: ERROR, the connection lives.",
      "A: apaini => ERROR", "A: auth {A} {A.password}")
check("E02", 2, "kata yang kurang | words missing",
      "IndexError: tangkap, atau hitung katanya. | IndexError: catch it or count words.",
      *(f"guest: {line} => ERROR" for line in (
          "auth", "auth messi", "register x", "send", "send {A.token}", "addgroup", "joingroup",
          "sendgroup {A.token}", "sendfile {A.token} {A}", "logout")))
check("E03", 2, "token yang salah | a wrong token",
      "Periksa token dahulu, di satu tempat. | Check the token first, in one place.",
      *(f"guest: {line} => ERROR" for line in (
          "send {wrong} messi x", "sendfile {wrong} messi a.txt b'YQ=='", "sendgroup {wrong} g x",
          "addgroup {wrong} {group}", "joingroup {wrong} g", "inbox {wrong}", "logout {wrong}")))
check("E04", 1, "baris kosong | an empty line",
      "Baris kosong bukan alasan untuk mati. | An empty line is no reason to die.",
      "A:  => whatever", "A: inbox")
check("E05", 2, "byte yang bukan UTF-8 | bytes that are no UTF-8", "decode() dapat gagal: ERROR. | "
      "decode() can fail: ERROR.",
      "A: auth \udcff\udcfe messi => ERROR", "A: inbox")
check("E06", 1, "base64 yang rusak | broken base64",
      "b64decode(…, validate=True) di dalam try. | b64decode(…, validate=True) inside try.",
      "A: sendfile {A} a.txt b'abc' => ERROR", "A: inbox")
check("E07", 1, "nama file yang jahat | hostile file names",
      "Nama adalah data: ambil bagian terakhir, potong, jangan membukanya sebagai path. | "
      "A name is data: take the last part, cut it, never open it as a path.",
      *(f"A: sendfile {{A}} {name} b'aXNp' => answered" for name in ("..", "../../x", "/etc/x", "a/", "x" * 300)),
      "A: inbox")


@check("E08", 1, "1 MB tanpa akhir baris | 1 MB without a line end",
       "Batasi buffer setiap koneksi. | Bound the buffer of each connection.")
def endless_line(scene: Scene) -> None:
    with contextlib.suppress(Miss):                # a server may end that connection
        for _ in range(16):
            scene["guest"].wire.put(b"x" * (64 * KIB), aside=False)
    scene.play("A: inbox")


# ---- checks: several at once -------------------------------------------------------------------

check("X01", 3, "setengah permintaan menahan yang lain | half a request holds others up",
      "Satu thread setiap client, atau select: jangan menunggu di recv satu client. | "
      "A thread each, or select: never block in one client's recv.",
      half, "B: inbox", "guest: inbox {wrong} => ERROR")


@check("X02", 1, "20 koneksi dan jawaban dalam 3 detik | 20 connections and replies in 3 s",
       "listen(1) membuang SYN, yang datang lagi sesudah 1, 3, 7 detik: listen(128). | "
       "listen(1) drops SYNs, which come again after 1, 3, 7 s: listen(128).")
def twenty_at_once(scene: Scene) -> None:
    person, started = scene["A"], time.monotonic()

    def enter(_: int) -> bool:                     # no login: a slow hash of passwords is no slow accept
        with contextlib.suppress(Miss):
            return "status" in Wire(scene.exam).ask(person.line("inbox"), 3.0)
        return False

    with ThreadPoolExecutor(20) as pool:
        entered = sum(pool.map(enter, range(20)))
    seconds = time.monotonic() - started
    if seconds > 3.0 or entered < 20:
        with contextlib.suppress(Miss):            # the next check begins when the server has caught up
            Wire(scene.exam).ask(person.line("inbox"), 4 * scene.exam.patience)
        raise person.wire.missed("20 replies < 3 s", path=f"{entered} replies, {seconds:.1f} s")


@check("X03", 2, "10 pengirim × 20 pesan | 10 senders × 20 messages",
       "Kunci (lock) apa yang dipakai bersama oleh thread. | Lock what threads share.")
def many_senders(scene: Scene) -> None:
    reader, senders = scene["Z"], [scene[letter] for letter in "ABCDEFGHIJ"]
    texts = {sender: [f"{scene['text']} {at} {number}" for number in range(20)] for at, sender in enumerate(senders)}
    for sender in senders:
        sender.wire.put("".join(sender.line(f"send {reader} {text}\r\n") for text in texts[sender]).encode())
    for sender in senders:
        take_all(sender.wire, ["OK"] * 20)
    arrived = [item.text for item in items_of(reader.wire.ok(reader.line("inbox")).get("messages"))]
    for sender in senders:
        mine = [text for text in arrived if text in texts[sender]]
        if mine != texts[sender]:
            raise reader.wire.missed(brief(texts[sender][:3]), path=f"{sender}: {brief(mine[:3])}, {len(mine)} / 20")


check("X04", 1, "RST di tengah baris | a reset in mid-line",
      "recv melempar exception: bereskan koneksi yang satu itu. | recv raises: clean up that one.",
      "B: inbox", half, reset("A"), "B: inbox", "guest: inbox {B.token}")
check("X05", 1, "satu user dua kali | one user twice",
      "Satu session setiap login, bukan satu setiap user. | A session each, not one per user.",
      "guest: auth {A} {A.password} => OK and tokenid", "A: inbox", "guest: inbox")

# ---- checks: safety ----------------------------------------------------------------------------

check("S01", 2, "info tanpa token | info holds no token",
      "Siapa yang punya token adalah usernya. | Whoever has the token is the user.",
      "B: send {A} {text}", "A: info => OK and lacks {A.token} and lacks {B.token}", needs="C25")
check("S02", 1, "info tanpa password | info holds no password",
      "Jangan pernah mengirim password yang tersimpan. | Never send stored passwords.",
      "B: send {A} {text}", "A: info => OK and lacks {A.password} and lacks {B.password}", needs="C25")


@check("S03", 1, "token: baru setiap login, panjang | tokens: new at each login, and long",
       "secrets.token_hex atau uuid4. | secrets.token_hex or uuid4.")
def tokens_are_random(scene: Scene) -> None:
    tokens = [scene["A"].login() for _ in range(3)]
    shortest = min(map(len, tokens))
    if len(set(tokens)) < 3 or shortest < 16:
        raise scene["A"].wire.missed("3 tokens, ≥ 16", path=f"{len(set(tokens))}, ≥ {shortest}")


check("S04", 1, "sendgroup oleh orang luar | sendgroup by a stranger", "Periksa keanggotaan. | Check membership.",
      "A: addgroup {group}", "B: sendgroup {group} halo => ERROR", needs="C13")

# ---- checks: two realms ------------------------------------------------------------------------


@check("R01", 1, "addrealm | addrealm",
       "addrealm mencatat nama, alamat, dan port server lain. | "
       "addrealm notes another server's name, address and port.", needs="2")
def addrealm(scene: Scene) -> None:
    exam, wires = scene.exam, [Wire(scene.exam, place) for place in (0, 1)]
    for wire, name, (host, port) in zip(wires, exam.names[1::-1], exam.places[::-1], strict=True):
        reply = wire.ask(f"addrealm {name} {host} {port}")
        if reply.get("status") != "OK" and "sudah" not in str(reply.get("message")).lower():
            try:                                   # a fixed table passes, where it holds that row
                scene.play("A: sendprivaterealm {there} henderson {text}")
                scene.play("henderson2: inbox => arrives {text}")
            except Miss:
                raise wire.missed('{"status":"OK",…}\\r\\n\\r\\n') from None
            return


check("R02", 3, "sendprivaterealm sampai | sendprivaterealm arrives",
      "Tunggu jawaban server lain, lalu teruskan. | Wait for the other server's reply and pass it on.",
      "A: sendprivaterealm {there} henderson {text}", "henderson2: inbox => arrives {text}")
check("R03", 1, "sendprivaterealm kepada user yang hanya ada di sana | to a user who lives only there",
      "Realm lain yang tahu siapa usernya. | The other realm decides who its users are.",
      "A: sendprivaterealm {there} {B2} {text}", "B2: inbox => arrives {text}")
check("R04", 1, "realm yang tidak ada | unknown realm",
      "Periksa apakah realm ada dalam tabel. | Check that the realm is in the table.",
      "A: sendprivaterealm realm9 henderson halo => ERROR")
check("R05", 1, "user yang tidak ada di realm lain | an unknown user of the other realm",
      "Teruskan ERROR dari realm lain. | Pass the other realm's ERROR on.",
      "A: sendprivaterealm {there} {nobody} halo => ERROR")
check("R06", 1, "sendgrouprealm kepada dua orang | sendgrouprealm to two people",
      "Kirim kepada setiap nama di antara koma. | Send to each name between the commas.",
      "A: sendgrouprealm {there} henderson,lineker {text}",
      "henderson2: inbox => arrives_inside {text}", "lineker2: inbox => arrives_inside {text}")
check("R07", 2, "sendfilerealm: isi yang sama | sendfilerealm: the same bytes",
      "Server Anda berkata OK dan tidak ada yang datang: lihat jawaban dari sana. | "
      "Yours says OK and nothing comes: look at the other side's reply.",
      "A: sendfilerealm {there} henderson {name} {content}", "henderson2: inbox => file_arrives {content} {name}")
check("R08", 1, "sendgroupfilerealm: file, bukan teks | sendgroupfilerealm: a file, not a text",
      "Di antara server pakai baris untuk file, bukan baris untuk teks. | "
      "Use the file line, not the text line, between servers.",
      "A: sendgroupfilerealm {there} henderson,lineker {name} {content}",
      "henderson2: inbox => file_arrives {content} {name}", "lineker2: inbox => file_arrives {content} {name}")
check("R09", 1, "getrealminbox dua kali | getrealminbox twice",
      "getrealminbox mengambil: kosongkan sesudah dijawab. | getrealminbox takes: empty it when it was answered.",
      "A: sendprivaterealm {there} lineker {text}", "lineker2: inbox => arrives {text}",
      "lineker2: getrealminbox {here} => lacks {text}", "lineker2: getrealminbox {there} => lacks {text}", needs="R02")
check("R10", 1, "dan kembali | and back", "Hubungkan dua arah. | Link both ways.",
      "A2: sendprivaterealm {here} {B} {text}", "B: inbox => arrives {text}")
check("R11", 1, "pesan antar realm dari orang asing | a stranger speaks as a realm",
      "Siapa pun dapat membuka port Anda: realm harus membuktikan dirinya. | "
      "Anybody can open your port: let a realm prove itself.",
      "henderson: inbox", "guest: recvrealmprivatemsg messi {here} henderson {text} => whatever",
      "guest: recvrealmprivatemsg messi {there} henderson {text} => whatever", "henderson: inbox => lacks {text}",
      "henderson: getrealminbox {here} => lacks {text}", "henderson: getrealminbox {there} => lacks {text}")

# ---- checks: our own features (--extra) --------------------------------------------------------

check("T01", 1, "@TAG kembali | @TAG comes back",
      "Jawaban membawa tag permintaannya. | A reply carries the tag of its request.",
      "A: @satu.1 inbox => OK and tag = satu.1")
check("T02", 1, "tag yang sama disimpan sekali | a repeated tag is stored once",
      "Cari tag sebelum menyimpan. | Look the tag up before storing.",
      "A: @ulang send {B} {text}", "A: @ulang send {B} {text} => OK and id = {sent[0][id]}",
      "B: inbox => in_order {text}", needs="T01")


@check("T03", 1, "LF saja, huruf besar, banyak spasi | a bare LF, capitals, runs of spaces",
       "Terima LF saja; abaikan huruf besar dan spasi. | Take a bare LF; ignore case and spaces.")
def lenient_lines(scene: Scene) -> None:
    wire = scene["A"].wire
    wire.put(f"  INBOX   {scene['A'].token}  \n".encode())
    wire.is_ok(wire.take())


check("T04", 1, "subscribe: pesan datang sendiri | subscribe: messages come by themselves",
      "Kirim event ke koneksi yang subscribe. | Send events to connections that subscribed.",
      "B: subscribe", "A: send {B} {text}", "B gets message msg={text}")
check("T05", 1, "history dari dua arah | history, both ways",
      "Simpan juga pesan yang dikirim. | Keep what was sent, too.",
      "A: send {B} pergi {text}", "B: send {A} pulang {text}",
      "A: history {B} => OK and messages.msg = pergi {text}, pulang {text}",
      "B: history {A} => OK and messages.msg = pergi {text}, pulang {text}")
check("T06", 1, "code setiap ERROR | the code of each ERROR", "code adalah untuk program. | code is for programs.",
      *(f"A: {line} => ERROR {code}" for line, code in (
          ("apaini", "unknown_command"), ("auth", "bad_arguments"), ("auth {A} salah", "bad_credentials"),
          ("auth \udcff x", "bad_encoding"), ("send {nobody} x", "user_not_found"),
          ("joingroup {nobody}", "group_not_found"), ("sendfile {A} a b'abc'", "bad_base64"),
          ("send realm9.x@realm9 x", "realm_not_found"))),
      "guest: inbox {wrong} => ERROR session_not_found")


@check("T07", 1, "id selalu naik | ids rise", "Satu pencacah untuk semua pesan. | One counter for all messages.",
       *3 * ("A: send {B} x", "B: send {B} x"))
def ids_rise(scene: Scene) -> None:
    ids = [reply["id"] for reply in scene["sent"]]
    scene["A"].wire.is_same(ids, sorted(set(ids)), "id")


@check("T08", 1, "subscribe T AFTER: tidak ada yang hilang atau dobel | subscribe T AFTER misses and doubles nothing",
       "Mulai dari id itu, menurut urutan id. | Begin at that id, in order of id.",
       "B: subscribe", *(f"A: send {{B}} {{text}} {number}" for number in range(3)),
       "B gets message msg={text} 0 and id={sent[0][id]}", reset("B"),
       *(f"A: send {{B}} {{text}} {number}" for number in range(3, 6)),
       "B: subscribe {sent[0][id]}", *(f"B gets message msg={{text}} {number}" for number in range(1, 6)),
       "B: inbox", needs="T04")
def nothing_came_twice(scene: Scene) -> None:
    wire = scene["B"].wire
    wire.is_same([event["msg"] for event in wire.events if event["event"] == "message"], [], "events")


check("T09", 1, "getfile: sha256 | getfile: sha256", "Hitung SHA-256 dari isi file. | SHA-256 of the file's content.",
      "A: sendfile {B} data%20saya.bin {content}",
      "B: getfile {sent[0][file][id]} => OK and sha256 = {sha256} and file_size = {size} and file_name = data saya.bin",
      "C: getfile {sent[0][file][id]} => ERROR file_not_found")
check("T10", 1, "U+2028 kembali | U+2028 comes back", "Baris baru dalam pesan berjalan sebagai U+2028. | "
      "A line break inside a message travels as U+2028.",
      "A: send {B} {text}\u2028baris dua", "B: inbox => has {text}\u2028baris dua")
check("T11", 1, "teks 8.193 byte | a text of 8,193 bytes",
      "too_long, dan koneksi tetap hidup. | too_long, and the connection lives.",
      f"A: send {{A}} {'x' * 8192}", f"A: send {{A}} {'x' * 8193} => ERROR too_long", "A: inbox")
check("T12", 1, "login salah 10 kali | 10 wrong logins",
      "Batasi tebakan setiap akun. | Limit the guesses of each account.",
      *10 * ("guest: auth {A} salah => ERROR bad_credentials",),
      "guest: auth {A} salah => ERROR rate_limited and retry_after")
check("T13", 1, "satu teks untuk user dan password yang salah | one text for unknown user and wrong password",
      "Jangan beri tahu user mana yang ada. | Do not tell which users exist.",
      "guest: auth {A} salah => ERROR", "guest: auth {nobody} salah => ERROR and message = {reply[message]}")
check("T14", 1, "history hanya untuk anggota | history is for members", "Periksa keanggotaan. | Check membership.",
      "A: addgroup {group}", "B: history {group} => ERROR not_member")
check("T15", 1, "send kepada user@realm | send to user@realm",
      "user@realm adalah alamat lengkap. | user@realm is a full address.",
      "A: send {B}@{here} {text}", "B: inbox => has {text}")
check("T16", 1, "uid: jawaban, inbox, history | uid: reply, inbox, history",
      "Satu nama untuk satu pesan, di mana-mana. | One name for a message, everywhere.",
      "A: send {B} {text} => OK and uid = {here}:{sent[0][id]}",
      "B: inbox => has {text} and contains \"{sent[0][uid]}\"",
      "B: history {A} => OK and messages.uid = {sent[0][uid]}")
check("T17", 1, "conversations: belum dibaca | conversations: unread",
      "Hitung yang sesudah id terakhir yang dibaca. | Count what stands behind the last id that was read.",
      *(f"A: send {{B}} {{text}} {number}" for number in range(3)),
      "B: conversations => OK and conversations.0.unread = 3 and conversations.0.last.msg = {text} 2"
      " and conversations.0.name = {A.nama}")
check("T18", 1, "read: hitungan turun, yang lain mendengar | read: the count falls, the others hear of it",
      "read mencatat sampai mana, dan mengirim event. | read notes how far, and sends an event.",
      "A: subscribe", "A: send {B} satu", "A: send {B} dua", "B: read {A} {sent[0][id]}",
      "A gets read user={B}@{here} and id={sent[0][id]}", "B: conversations => OK and conversations.0.unread = 1",
      needs="T17")
check("T19", 1, "search tanpa melihat huruf besar | search, whatever the case",
      "Bandingkan dengan casefold(). | Compare with casefold().",
      "A: send {B} Belajar Socket {text}", "A: send {B} lain",
      "B: search {A} belajar socket => OK and messages.msg = Belajar Socket {text}")


@check("T20", 1, "groups: jumlah anggota | groups: the count of members",
       "Satu baris setiap group, dengan count. | A row for each group, with count.", *GROUP, "B: groups")
def groups_count(scene: Scene) -> None:
    found = [(row.get("count"), row["member"], len(row["members"])) for row in scene["reply"]["groups"]
             if row["group"].partition("@")[0] == scene["group"]]
    scene["B"].wire.is_same(found, [(2, True, 2)], "groups")


@check("T21", 1, "info T REALM AFTER | info T REALM AFTER", "Lanjutkan sesudah nama itu. | Go on behind that name.",
       "A: inbox", "B: inbox", "A: info {A.token} {here} {A}")
def info_goes_on(scene: Scene) -> None:
    names = [user["user"].partition("@")[0] for user in scene["reply"]["users"]]
    scene["A"].wire.is_same([name for name in names if name <= scene["A"].name], [], "users")


check("T22", 1, "state dan uid antar realm | state and uid between realms",
      "state tidak disimpan: ia turunan dari antrean. | state is not stored: it follows from the queue.",
      "A: send {B2}@{there} {text}",
      "A: history {B2}@{there} => OK and messages.state = delivered and messages.uid = {sent[0][uid]}",
      'B2: inbox => arrives {text} and contains "{sent[0][uid]}"', needs="R02")

# ---- checks: what survives (--run) -------------------------------------------------------------

check("P01", 2, "SIGTERM dan mulai lagi: akun | SIGTERM and a new start: the account",
      "Simpan akun di disk pada saat register. | Store the account on disk at register.",
      "A: inbox", restart(signal.SIGTERM))
check("P02", 2, "kill -9 sesudah OK: pesan | kill -9 right after OK: the message",
      "Tulis ke disk (commit) sebelum menjawab OK. | Write to disk (commit) before you answer OK.",
      "A: send {B} {text}", restart(KILL), "B: inbox => has {text}", needs="P01")
check("P03", 2, "kill -9: group | kill -9: groups",
      "Simpan group dan anggotanya di disk. | Store groups and their members on disk.",
      *GROUP, restart(KILL), "A: sendgroup {group} {text}", "B: inbox => has {text}", needs="P01")
check("P04", 2, "kill -9: yang sudah diambil tidak datang lagi | kill -9: what was taken does not come again",
      "Simpan juga sampai mana inbox sudah diambil. | Store how far an inbox was taken, too.",
      "A: send {B} {text}", "B: inbox => has {text}", "B: inbox", restart(KILL), "B: inbox => OK and lacks {text}",
      needs="P02")

# ---- client ------------------------------------------------------------------------------------

FILE = b"isi file \xc3\xa9\x00\xff untuk diperiksa\n"


class Call:
    """One request that a client sent: where, its bytes, its tag and its words, and what was typed for it."""

    def __init__(self, connection: socket.socket, line: bytes) -> None:
        self.connection, self.line, self.typed = connection, line, b""
        words = line.decode(errors="replace").split()
        self.tag = words.pop(0)[1:] if words and words[0].startswith("@") else ""
        self.words = words
        self.word = words[0].lower() if words else ""

    def frame(self, **fields: object) -> bytes:
        """A reply to it, as it goes on the wire."""
        tag = {"tag": self.tag} if self.tag else {}
        reply = {"status": "OK", "message": "OK", **tag, **fields}
        return json.dumps(reply, separators=(",", ":")).encode() + FRAME_END

    def is_spelled(self, *words: str) -> None:
        """It has these words behind its command; `*` stands for any word, spaces are free."""
        found = self.words[1:]
        if len(found) != len(words) or any(word not in ("*", other) for word, other in zip(words, found, strict=True)):
            raise Miss("value", " ".join([self.word, *words]) + "\\r\\n", self.typed, self.line)


class ClientExam(Examination):
    """The examination of a client: the examiner is its server, with every answer scripted."""

    TYPING_SECONDS = 60.0                          # how long a person may take, where nobody started the client

    def __init__(self, port: int, command: str, patience: float = PATIENCE, language: int = INDONESIAN) -> None:
        super().__init__(patience)
        self.language = language
        self.listener = socket.create_server(("127.0.0.1", port) if command else ("", port))
        self.place = ("127.0.0.1", self.listener.getsockname()[1])
        self.calls: queue.Queue[Call | None] = queue.Queue()     # None: a connection has ended
        self.connections: list[socket.socket] = []
        self.token = ""                            # what the last login was given
        self.asked = False                         # whether a person was asked to start a client
        self.program = Program(command) if command else None
        if self.program:
            self.folder = self.program.root / "a" / "b" / "work"     # deep, so that `../../x` stays in the root
            self.folder.mkdir(parents=True)
            (self.folder / "file.txt").write_bytes(FILE)
        else:
            self.limit = 60 * LIMIT                # a person types
        threading.Thread(target=self.accept, daemon=True).start()

    def perform(self, row: Check) -> None:
        if row.needs and (not self.token or self.has_stopped()):
            self.start()
            self.login()
        for step in row.steps:
            step(self)

    def goes_on(self) -> bool:
        return bool(self.tokens)                   # K02 was missed by its CR LF alone

    def close(self, missed: bool) -> None:
        if missed and self.current != "K02":       # the next check begins with a new client
            self.stop()

    # -- as its server

    def accept(self) -> None:
        """Takes in connections, each with a thread that reads its lines."""
        with contextlib.suppress(OSError):         # the listener was closed: the examination is over
            while True:
                connection, _ = self.listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.connections.append(connection)
                self.connected = True
                threading.Thread(target=self.read, args=(connection,), daemon=True).start()

    def read(self, connection: socket.socket) -> None:
        """Puts each whole line of a connection into the queue."""
        rest = b""
        with contextlib.suppress(OSError):
            while (data := connection.recv(64 * KIB)) and len(rest) < REPLY_MOST:
                self.note(f"<{self.connections.index(connection) + 1}", data)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self.calls.put(Call(connection, line + b"\n"))
        self.calls.put(None)

    def expect(self, word: str, typed: str = "") -> Call:
        """The next request with this command; whatever else a client asks meanwhile is answered OK."""
        deadline = time.monotonic() + (self.wait(2.5 * self.patience) if self.program else self.TYPING_SECONDS)
        last = b""
        while (left := deadline - time.monotonic()) > 0:
            try:
                call = self.calls.get(timeout=left)
            except queue.Empty:
                break
            if call and call.word == word:
                call.typed = typed.encode()
                return call
            if call:
                last = call.line
                self.answer(call)
        raise Miss("value", f"{word} …\\r\\n", typed.encode(), last, end="then_nothing")

    def answer(self, call: Call, *pieces: bytes, pause: float = 0.0, **fields: object) -> None:
        """Sends a reply, whole or in these pieces with a pause before each."""
        for piece in pieces or (call.frame(**fields),):
            if pause:
                time.sleep(pause)
            self.note(f">{self.connections.index(call.connection) + 1}", piece)
            with contextlib.suppress(OSError):
                call.connection.sendall(piece)

    # -- as the person before it

    def start(self) -> None:
        """Starts the client anew, or asks a person to."""
        self.stop()
        self.calls = queue.Queue()
        host, port = self.place[0], str(self.place[1])
        if self.program:
            self.program.launch(subprocess.PIPE, self.folder, SERVER_IP=host, SERVER_PORT=port,
                                CHAT_SERVER=f"{host}:{port}", CHAT_DOWNLOADS=str(self.folder),
                                PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
        else:
            self.asked = True
            print(say("start", self.language, f"{host}:{port}"), flush=True)

    def stop(self) -> None:
        """Ends the client and its connections."""
        self.token, self.asked = "", False
        if self.program:
            self.program.end(KILL)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        self.stop()
        self.listener.close()
        if self.program:
            self.program.close()

    def has_stopped(self) -> bool:
        """Whether the process that we started has ended, or nobody was asked to start a client yet."""
        return self.program.has_ended() if self.program else not self.asked

    def type(self, line: str) -> None:
        """Types a line, or asks a person to."""
        if not self.program:
            print(say("type", self.language, line), flush=True)
        elif self.program.process:
            self.last_sent = self.current, line.encode()
            with contextlib.suppress(OSError):     # it has ended: no request will come
                self.program.process.stdin.write(line.encode() + b"\n")
                self.program.process.stdin.flush()

    def ask(self, line: str) -> Call:
        """Types a command; its request."""
        self.type(line)
        return self.expect(line.split()[0], line)

    def login(self) -> Call:
        """Types the login and answers it with a token: its request."""
        call = self.ask("auth messi surabaya")
        self.token = secrets.token_hex(16)
        self.tokens.add(self.token)
        self.answer(call, tokenid=self.token, user="messi@mesin1")
        return call

    def printed(self) -> str:
        """All that the client has printed; nothing where a person started it."""
        return self.program.printed() if self.program else ""

    def must_show(self, text: str, typed: bytes, seconds: float | None = None) -> None:
        """The client prints that text in time. Of a client that a person started it is believed."""
        deadline = time.monotonic() + self.wait(seconds)
        while self.program and text not in self.printed():
            if time.monotonic() > deadline or self.has_stopped() and text not in self.printed():
                raise Miss("value", text, typed, self.printed()[-300:].encode(), path="stdout")
            time.sleep(0.02)                       # nothing announces that a file has grown

    def works(self) -> None:
        """The next command gets through, and its reply is shown.

        The reply comes after a pause: a client that left bytes of the reply before unread takes them for this one.
        """
        call, text = self.ask("inbox"), marker()
        self.answer(call, call.frame(messages=messages_of(text)), pause=0.3)
        self.must_show(text, call.typed)

    def cpu_share(self, seconds: float) -> float:
        """Seconds of computing in each second, over a while; 0 where the system does not say."""
        def used() -> float:
            try:
                fields = Path(f"/proc/{self.program.process.pid}/stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            except (OSError, AttributeError):
                return 0.0
        before = used()
        time.sleep(seconds)
        return max(used() - before, 0.0) / seconds

    def must_notice(self, broken: socket.socket) -> None:
        """After a break the client ends, or says so, or asks again on a new connection; then it is ended."""
        before = self.printed()
        deadline = time.monotonic() + self.wait(2.5 * self.patience)
        if self.program and not self.has_stopped():
            self.type("inbox")
            while not self.has_stopped() and self.printed() == before:
                if time.monotonic() > deadline:
                    raise Miss("value", "end, message or reconnect", path="nothing")
                with contextlib.suppress(queue.Empty):
                    again = self.calls.get(timeout=0.1)
                    if again and again.connection is not broken:
                        self.answer(again, messages={})
                        break
        self.stop()


def marker() -> str:
    """A word that the client cannot have shown before."""
    return f"kata{secrets.token_hex(4)}"


def messages_of(*texts: str, **fields: object) -> dict:
    """`messages` as a server gives them: these texts from henderson, with these fields too."""
    return {"henderson@mesin1": [
        {"id": 7, "uid": "mesin1:7", "ts": "2026-01-02T03:04:05.678Z", "from": "henderson@mesin1",
         "from_name": "Jordan Henderson", "to": "messi@mesin1", "msg_from": "Jordan Henderson",
         "msg_to": "Lionel Messi", "msg": text, **fields} for text in texts]}


# ---- checks: a client (--client) ---------------------------------------------------------------


@check("K01", 2, "terhubung, diam | connects, sends nothing unasked",
       "Kirim hanya yang diketik. | Send only what was typed.", needs="")
def client_is_silent(exam: ClientExam) -> None:
    exam.start()
    if exam.program:
        with contextlib.suppress(queue.Empty):
            call = exam.calls.get(timeout=0.5)
            raise Miss("value", "", came=call.line if call else b"", end="" if call else "then_closed")


@check("K02", 2, "auth, diakhiri CR LF | auth, ended by CR LF",
       "Kirim `auth USER PASSWORD` dan akhiri dengan \\r\\n. | Send `auth USER PASSWORD` and end it with \\r\\n.",
       needs="")
def client_logs_in(exam: ClientExam) -> None:
    if exam.token or exam.has_stopped():
        exam.start()
    call = exam.login()
    call.is_spelled("messi", "surabaya")
    if not call.line.endswith(b"\r\n"):
        raise Miss("value", "auth messi surabaya\\r\\n", call.typed, call.line, len(call.line) - 1)


@check("K03", 2, "memakai token | uses the token of the reply",
       "Simpan tokenid dari jawaban dan kirim bersama setiap command. | "
       "Keep the tokenid of the reply and send it with each command.")
def client_uses_the_token(exam: ClientExam) -> None:
    call = exam.ask("inbox")
    exam.answer(call, messages={})
    call.is_spelled(exam.token)


def typed(line: str) -> Callable:
    """A typed line stands on the wire with the token put in; which token, is looked at by K03 alone."""
    def step(exam: ClientExam) -> None:
        call = exam.ask(line)
        exam.answer(call, id=1, uid="mesin1:1", messages={})
        call.is_spelled("*", *line.split()[1:])
        if call.word == "logout":
            exam.token = ""                        # the next check logs in again
    return step


for number, line in enumerate(("send henderson hello world", "sendgroup jarkom3 hallo guys welcome",
                               "addgroup jarkom3", "joingroup jarkom3", "inbox", "logout"), 4):
    check(f"K{number:02}", 2, f"{line.split()[0]} | {line.split()[0]}",
          "Susunannya seperti di tabel command: command, token, lalu argumennya. | "
          "As in the table of commands: the command, the token, then its arguments.", typed(line))


@check("K10", 2, "sendfile: base64 dari filenya | sendfile: base64 of the file",
       'Baca file dengan "rb" dan kirim base64-nya. | Open the file with "rb" and send its base64.')
def client_sends_file(exam: ClientExam) -> None:
    call = exam.ask("sendfile henderson file.txt")
    exam.answer(call, id=1, uid="mesin1:1", file={"id": 1, "name": "file.txt", "size": len(FILE)})
    call.is_spelled("*", "henderson", "file.txt", "*")
    if call.words[4] not in (content := base64.b64encode(FILE).decode(), f"b'{content}'"):
        raise Miss("value", content, call.typed, call.line, path="base64")


def replied(cut: bytes = rb".+", pause: float = 0.0, line: str = "inbox", ascii: bool = True,
            **fields: object) -> Callable:
    """A reply comes in the pieces that this pattern finds; the client shows the new word in it, and goes on.

    WORD stands for that word in the fields. It need not be shown where the reply is not ASCII.
    """
    def step(exam: ClientExam) -> None:
        call, word = exam.ask(line), marker()
        frame = call.frame(**(fields or {"messages": messages_of("WORD")})).replace(b"WORD", word.encode())
        if not ascii:
            frame = json.dumps(json.loads(frame), ensure_ascii=False).encode() + FRAME_END
        exam.answer(call, *re.findall(cut, frame, re.DOTALL), pause=pause)
        if ascii:
            exam.must_show(word, call.typed, 2 * exam.patience)
        exam.works()
    return step


check("K11", 2, "jawaban byte demi byte | a reply in one-byte pieces",
      "Satu recv bukan satu jawaban: kumpulkan sampai \\r\\n\\r\\n. | "
      "One recv is not one reply: collect until \\r\\n\\r\\n.", replied(rb".", 0.001))
check("K12", 2, "akhir jawaban dipotong di tengah | the reply's end is cut in the middle",
      "Carilah \\r\\n\\r\\n dalam semua yang terkumpul, bukan dalam potongan terakhir. | "
      "Look for \\r\\n\\r\\n in all that was collected, not in the last piece.",
      replied(rb".+(?=\r\n\Z)|\r\n\Z", 0.2))
check("K13", 2, "UTF-8 dipotong di tengah huruf | UTF-8 cut in a character",
      "Decode jawaban yang utuh, bukan potongan. | Decode the whole reply, not its pieces.",
      replied(rb".*\xc3|.+", 0.2, ascii=False, messages=messages_of("café WORD")))
check("K14", 2, "jawaban 100 KB | a reply of 100 KB",
      "Kumpulkan dalam loop, tanpa batas yang kecil. | Collect in a loop, without a small limit.",
      replied(messages=messages_of(*50 * ("x" * 2000,), "WORD")))
check("K15", 2, "ERROR ditampilkan, lalu lanjut | an ERROR is shown, and the client goes on",
      "Tampilkan message dari ERROR dan kembali ke prompt. | Show the ERROR's message and go back to the prompt.",
      replied(line="send tidakada halo", status="ERROR", code="user_not_found", message="User tidak ditemukan WORD"))
check("K16", 2, "kunci JSON yang tidak dikenal | unknown JSON keys",
      "Pakai kunci yang Anda kenal, abaikan yang lain. | Use the keys you know, ignore the others.",
      replied(messages=messages_of("WORD", besok={"a": [1, None]}), baru=[{}]))


@check("K17", 2, "server menutup koneksi (FIN) | the server closes (FIN)",
       "recv memberi b'' pada akhir koneksi: keluar dari loop. | "
       "recv gives b'' at the end of the connection: leave the loop.")
def client_notices_fin(exam: ClientExam) -> None:
    call = exam.ask("inbox")
    with contextlib.suppress(OSError):
        call.connection.shutdown(socket.SHUT_WR)
    share = exam.cpu_share(1.0)
    exam.must_notice(call.connection)
    if share >= 0.2:
        raise Miss("value", "< 0.2 CPU s/s", path=f"{share:.2f} CPU s/s")


@check("K18", 2, "koneksi putus (RST) | the connection breaks (RST)",
       "recv dan send melempar ConnectionError: tangkap dan katakan. | "
       "recv and send raise ConnectionError: catch it and say so.")
def client_notices_rst(exam: ClientExam) -> None:
    call = exam.ask("inbox")
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        call.connection.shutdown(socket.SHUT_RD)       # wakes the thread that reads it, so that close takes effect
    call.connection.close()
    exam.must_notice(call.connection)
    if "Traceback" in (printed := exam.printed()):
        raise Miss("value", "a message", came=printed[-200:].encode(), path="stdout")


check("K19", 2, "jawaban sesudah 3 detik | a reply after 3 s",
      "Tunggu jawabannya: server boleh sibuk. | Wait for the reply: a server may be busy.",
      replied(pause=3.0))


@check("K20", 2, "inbox dengan file: isi sama, nama jahat | inbox with a file: same bytes, hostile name",
       "Tulis base64-nya yang sudah di-decode, dengan os.path.basename(nama). | "
       "Write its base64 decoded, under os.path.basename(name).")
def client_saves_files(exam: ClientExam) -> None:
    name, data = f"{marker()}.bin", secrets.token_bytes(500)
    content = {"file_name": f"../../{name}", "file_size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
               "file_content": base64.b64encode(data).decode()}
    described = {"id": 17, "name": content["file_name"], "size": len(data), "sha256": content["sha256"]}
    exam.answer(exam.ask("inbox"), messages=messages_of("", file=described, **content))
    if not exam.program:
        return
    exam.works()
    if not is_saved(exam, name, data):
        exam.type("getfile 17")
        with contextlib.suppress(Miss):
            exam.answer(exam.expect("getfile"), **content)
            exam.works()
        if not is_saved(exam, name, data):
            raise Miss("value", f"{name}: {len(data)} bytes", path="no such file")


def is_saved(exam: ClientExam, name: str, data: bytes) -> bool:
    """Whether the file lies in the client's folder with its bytes. Raises Miss where it lies elsewhere."""
    for path in exam.program.root.rglob("*"):
        if path.is_file() and path != exam.program.output and path.read_bytes() == data:
            if exam.folder not in path.parents:
                raise Miss("value", f"{exam.folder.name}/{name}", path=str(path.relative_to(exam.program.root)))
            return True
    return False


# ---- reports -----------------------------------------------------------------------------------


@dataclass
class Report:
    """What an examination found, and how it is told: in which language, and whether with what was expected."""

    target: str
    exam: Examination
    language: int
    brief: bool = False
    name: str = ""
    results: list[Result] = field(default_factory=list)
    when: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))

    @property
    def counted(self) -> list[Result]:
        """The results that make the points; where only a bonus was asked for, that."""
        return [result for result in self.results if result.check.section not in BONUS] or self.results

    @property
    def score(self) -> tuple[int, int]:
        return total(self.counted)

    @property
    def seconds(self) -> float:
        return sum(result.seconds for result in self.results)

    @property
    def was_judged(self) -> bool:
        """Whether anything could be said at all."""
        return self.exam.connected and any(not result.skipped for result in self.results)

    def status(self, percent: float) -> int:
        score, most = self.score
        return NOT_JUDGED if not self.was_judged else FULL_MARKS if score >= most * percent / 100 else LESS

    def sections(self) -> dict[str, list[Result]]:
        """The results of each section, in the order of SECTIONS."""
        found = {letter: [result for result in self.results if result.check.section == letter] for letter in SECTIONS}
        return {letter: results for letter, results in found.items() if results}

    def summary(self) -> str:
        """The line that says it all; the weakest section comes first."""
        score, most = self.score
        passed = sum(result.passed for result in self.counted)
        parts = sorted((points / best, letter, f"{points}/{best}") for letter, (points, best) in
                       ((letter, total(results)) for letter, results in self.sections().items()))
        sections = " · ".join(f"{in_language(SECTIONS[letter], self.language)} {text}" for _, letter, text in parts)
        return (f"{score}/{most} {say('points', self.language)}, {passed} {say('of', self.language)} "
                f"{len(self.counted)} {say('checks', self.language)}, {self.seconds:.0f} s     {sections}")

    def verdict(self) -> str:
        """Where the examination could not go on: why. Else nothing."""
        if not self.was_judged and isinstance(self.exam, ClientExam):
            return say("no_client", self.language, "{}:{}".format(*self.exam.place))
        if not self.was_judged:
            return say("unreachable", self.language, self.target, in_language(HOW["connect"], self.language))
        if self.exam.gone:
            place, data = self.exam.last_sent
            return say("server_gone", self.language, self.exam.gone, self.readable(data)[0] if place else "")
        return say("gate", self.language) if self.exam.gated else ""

    def why_skipped(self, result: Result) -> str:
        key, _, value = result.skipped.partition(":")
        return say(key, self.language, value) if key else ""

    def title(self, result: Result) -> str:
        return f"{result.check.id} {in_language(result.check.name, self.language)}"

    def readable(self, data: bytes, at: int | None = None, most: int = SHOWN) -> tuple[str, int | None]:
        """Bytes for people, without tokens, cut to what is near the caret; and the caret's column."""
        before, after = (printable(self.masked(part)) for part in (data[:at or 0][-KEPT:], data[at or 0:][:2 * KEPT]))
        if len(before) > most * 3 // 4:            # what stands far before the caret is left out
            before = "… " + before[-(most // 2):]
        text = before + after[:most]
        return text + (f" … ({len(data)} bytes)" if len(after) > most else ""), None if at is None else len(before)

    def masked(self, data: bytes) -> bytes:
        """The bytes with a few dots in place of each token, also of one that is cut off at their end."""
        for token in self.exam.tokens:
            word = token.encode(errors="replace")
            if len(word) >= 16:                    # a shorter one may be any word
                data = data.replace(word, HIDDEN)
                rest = data.rfind(word[:8])
                data = data if rest < 0 or not word.startswith(data[rest:]) else data[:rest] + HIDDEN
        return data

    def details(self, result: Result, most: int = SHOWN) -> list[str]:
        """A miss: what was sent, expected and came, a caret, and the sentence that helps."""
        miss, width = result.miss, 11
        came, column = self.readable(miss.came, miss.at, most)
        end = say(miss.end, self.language) if miss.end else "" if came else say("nothing", self.language)
        rows = {"sent": self.readable(miss.sent, None, most)[0],
                "expected": "" if self.brief else printable(miss.expected) or say("nothing", self.language),
                "came": f"{came}   {end}".strip()}
        lines = [f"{say(key, self.language):<{width}}{text}" for key, text in rows.items() if text]
        if column is not None:
            lines.append(" " * (width + column) + "^")
        if miss.path:
            lines.append(" " * width + printable(miss.path))
        return [*lines, result.sentence(self.language)]

    def exchange(self, result: Result) -> list[list[str]]:
        """Every byte of a check: `[">1", "inbox …"]`, an arrow with the number of its connection."""
        return [[arrow, self.readable(data, None, KEPT)[0]] for arrow, data in result.exchange]


def printable(data: bytes | str) -> str:
    """Bytes or text as text that cannot steer a terminal, the ends of lines written out."""
    text = data if isinstance(data, str) else visible(data)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def total(results: list[Result]) -> tuple[int, int]:
    return sum(result.score for result in results), sum(result.check.points for result in results)


COLOURS = {"passed": "32", "missed": "31;1", "skipped": "33"}


def print_result(report: Report, result: Result) -> None:
    """A check's line, in colour on a terminal."""
    word = f"{say(result.kind, report.language):<5}"
    why = f"  ({report.why_skipped(result)})" if result.skipped else ""
    if sys.stdout.isatty():
        word = f"\033[{COLOURS[result.kind]}m{word}\033[0m"
        print("\r\033[K", end="")                  # in place of the count
    name = in_language(result.check.name, report.language)
    print(f"{result.check.id} {word} {result.score}/{result.check.points}  {name}{why}", flush=True)


def print_end(report: Report) -> None:
    """The misses, and the sum."""
    for result in report.results:
        if result.miss:
            print(f"\n{result.check.id}  {in_language(result.check.name, report.language)}")
            print("\n".join(f"     {line}" for line in report.details(result)))
    if verdict := report.verdict():
        print(f"\n{verdict}")
    print(f"\n{report.summary()}", flush=True)


def escape(text: str) -> str:
    """Text within HTML, and within a table of Markdown."""
    return html.escape(text, quote=False).replace("|", "&#124;")


def block(lines: Iterable[str]) -> str:
    return "<pre>" + "\n".join(map(escape, lines)) + "</pre>"


def as_markdown(report: Report) -> str:
    """The report for people: a table, and a block that opens for each miss."""
    language = report.language
    lines = [f"# {escape(report.name or report.target)}", "", f"{report.when}, {escape(report.target)}", "",
             f"**{escape(report.summary())}**", ""]
    if verdict := report.verdict():
        lines += [f"> {escape(verdict)}", ""]
    lines += [f"| | | {say('points', language)} | |", "|---|---|---|---|"]
    for result in report.results:
        name = escape(f"{in_language(result.check.name, language)} {report.why_skipped(result)}")
        lines.append(f"| {result.check.id} | {say(result.kind, language)} | {result.score}/{result.check.points} | "
                     f"{name} |")
    for result in report.results:
        if result.miss:
            lines += ["", f"<details><summary>{escape(report.title(result))}</summary>", "",
                      block(report.details(result, KEPT)), f"<p>{say('exchange', language)}</p>", "",
                      block(map(" ".join, report.exchange(result))), "", "</details>"]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """Gradescope's results.json, with the bytes of each check in `extra_data`."""
    tests = []
    for result in report.results:
        row, miss, output = result.check, result.miss, report.why_skipped(result)
        extra: dict[str, object] = {"exchange": report.exchange(result), "seconds": round(result.seconds, 3)}
        if miss:
            output = block(report.details(result, KEPT))
            extra |= {key: report.readable(data, None, KEPT)[0] for key, data in
                      (("sent", miss.sent), ("came", miss.came))}
            extra |= {"how": miss.how, **({} if report.brief else {"expected": miss.expected})}
        tests.append({"number": row.id, "name": in_language(row.name, report.language), "score": result.score,
                      "max_score": row.points, "status": "passed" if result.passed else "failed", "output": output,
                      "output_format": "md", "tags": [in_language(SECTIONS[row.section], ENGLISH)],
                      "extra_data": extra})
    score, most = report.score
    return json.dumps({
        "score": score, "execution_time": round(report.seconds), "output": f"{report.summary()}\n\n{report.verdict()}",
        "output_format": "md", "tests": tests,
        "extra_data": {"target": report.target, "name": report.name, "when": report.when, "max_score": most}}, indent=1)


def as_xml(report: Report) -> str:
    """JUnit's XML: a suite for each section."""
    root = ElementTree.Element("testsuites", name=report.name or report.target)
    for letter, results in report.sections().items():
        kinds = [result.kind for result in results]
        suite = ElementTree.SubElement(
            root, "testsuite", name=in_language(SECTIONS[letter], ENGLISH), tests=str(len(results)), errors="0",
            failures=str(kinds.count("missed")), skipped=str(kinds.count("skipped")),
            time=f"{sum(result.seconds for result in results):.3f}")
        for result in results:
            case = ElementTree.SubElement(suite, "testcase", classname=f"progjar.{letter}", name=report.title(result),
                                          time=f"{result.seconds:.3f}")
            if result.miss:
                failure = ElementTree.SubElement(case, "failure", message=result.sentence(report.language))
                failure.text = "\n".join(report.details(result, KEPT))
            elif result.skipped:
                ElementTree.SubElement(case, "skipped", message=report.why_skipped(result))
    return ElementTree.tostring(root, "unicode", xml_declaration=True) + "\n"


def append_csv(path: Path, report: Report) -> None:
    """One line for this run; the first run of a file writes the header."""
    score, most = report.score
    row = {"name": report.name, "target": report.target, "when": report.when, "score": score, "max": most,
           "judged": int(report.was_judged), "seconds": round(report.seconds)}
    columns = [*row, *(each.id for each in CHECKS)]
    row |= {result.check.id: result.score for result in report.results if not result.skipped}
    with path.open("a+", encoding="utf-8", newline="") as stream:
        stream.seek(0)
        header = next(csv.reader([stream.readline()]))
        writer = csv.DictWriter(stream, header or columns, extrasaction="ignore")
        if not header:
            writer.writeheader()
        writer.writerow(row)


WRITERS = {".md": as_markdown, ".json": as_json, ".xml": as_xml}
GRADESCOPE = Path("/autograder/results")


def write_report(path: Path, report: Report) -> None:
    """The report in the form that the file's ending names."""
    if path.suffix == ".csv":
        append_csv(path, report)
        return
    path.write_text(WRITERS[path.suffix](report), "utf-8")
    if path.suffix == ".json" and GRADESCOPE.is_dir():
        (GRADESCOPE / "results.json").write_text(as_json(report), "utf-8")


# ---- start -------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; each option may come from the environment too."""
    parser = argparse.ArgumentParser(description="Marks a chat server, or with --client a chat client. Exit status: "
                                                 "0 enough points, 1 fewer, 2 nothing could be judged.")
    parser.add_argument("places", nargs="*", metavar="HOST:PORT", help="the server, and a second one linked to it")
    add_option(parser, "--names", default=",".join(REALMS), help=f"what their realms are called ({','.join(REALMS)})")
    add_option(parser, "--only", default="", metavar="F,C07", help="these sections and checks alone")
    add_option(parser, "--extra", action="store_true", help="also our own features (T), which make no points")
    add_option(parser, "--run", default="", metavar="CMD", help="start that server (or client) with this command")
    add_option(parser, "--client", action="store_true", help="mark a client: be its server")
    add_option(parser, "--listen", type=int, default=8889, metavar="PORT", help="where, for clients (8889; 0: any)")
    add_option(parser, "--class", dest="pupils", type=Path, metavar="FILE",
               help="mark a class: a name and one or two HOST:PORT on each line")
    add_option(parser, "--folder", type=Path, metavar="DIR", help="where a class's reports go (FILE-reports)")
    add_option(parser, "--report", type=Path, action="append", default=[], metavar="FILE",
               help="write a .md, .json (Gradescope), .xml (JUnit) or .csv (appended); may be repeated")
    add_option(parser, "--brief", action="store_true", help="do not show what was expected")
    add_option(parser, "--language", default="id", choices=list(LANGUAGES), help="of the reports (id)")
    add_option(parser, "--pass", dest="percent", type=float, default=100.0, metavar="PERCENT",
               help="exit status 0 from that share of the points on (100)")
    add_option(parser, "--patience", type=float, default=PATIENCE, metavar="SECONDS", help="for one reply (2)")
    options = parser.parse_args(arguments)
    try:
        options.places = [parse_host_port(place) for place in options.places]
    except ValueError as error:
        parser.error(str(error))
    options.report = [Path(path) for path in options.report]
    options.language = LANGUAGES[options.language]
    options.names = options.names.lower().split(",")
    options.only = [word.strip().upper() for word in options.only.split(",") if word.strip()]
    if wrong := next((text for is_wrong, text in wrong_options(options) if is_wrong), ""):
        parser.error(wrong)
    return options


def wrong_options(options: argparse.Namespace) -> list[tuple[object, str]]:
    """What does not fit together: whether it is so, and what is said of it."""
    unknown = sorted(set(options.only) - {row.id for row in CHECKS} - set(SECTIONS))
    endings = [str(path) for path in options.report if path.suffix not in (*WRITERS, ".csv")]
    of_one = options.places or options.client or options.run or options.report
    return [
        (unknown, f"--only: no check {', '.join(unknown)}"),
        (endings, f"--report: .md, .json, .xml or .csv, not {', '.join(endings)}"),
        (not 0 < options.patience <= 60, "--patience: more than 0, at most 60"),
        (options.pupils and of_one, "--class takes its addresses from the file, and its reports go to --folder"),
        (not options.pupils and not options.client and not 1 <= len(options.places) <= 2,
         "one or two HOST:PORT, or --client, or --class"),
        (len(options.names) < max(len(options.places), 1), "--names: one for each address"),
    ]


def chosen(options: argparse.Namespace, count: int) -> list[Check]:
    """The checks that are asked for, of a client or of that many servers."""
    def is_chosen(row: Check) -> bool:
        letter = row.section
        fits = (letter == "K") == options.client and (letter != "P" or options.run) and (count > 1 or not far(row))
        if options.only:
            return fits and (row.id in options.only or letter in options.only)
        return fits and (letter != "T" or options.extra)

    def far(row: Check) -> bool:
        """Whether it, or what it needs, takes two servers."""
        return row.needs == "2" or any(far(other) for other in CHECKS if other.id == row.needs)

    return [row for row in CHECKS if is_chosen(row)]


def place_names(places: list[tuple[str, int]]) -> str:
    return " ".join(f"{host}:{port}" for host, port in places)


def mark_one(options: argparse.Namespace) -> int:
    """Marks a server or a client; the exit status."""
    if options.client:
        exam: Examination = ClientExam(options.listen, options.run, options.patience, options.language)
    else:
        exam = Exam(options.places, options.names, options.patience, Program(options.run) if options.run else None)
    report = Report(place_names(options.places) or options.run or "client", exam, options.language, options.brief)
    rows = chosen(options, len(options.places))
    with contextlib.ExitStack() as stack:
        if isinstance(exam, ClientExam):
            stack.callback(exam.finish)
        elif exam.program:
            stack.callback(exam.program.close)
            try:
                exam.program.serve(exam.places[0])
            except Gone as gone:
                print(say("did_not_start", options.language, gone))
                return NOT_JUDGED
            exam.started = time.monotonic()
        for number, row in enumerate(rows, 1):
            if sys.stdout.isatty():
                print(f"\r\033[K{number}/{len(rows)} {row.id}", end="", flush=True)
            report.results.append(exam.result_of(row))
            print_result(report, report.results[-1])
        print_end(report)
        for path in options.report:
            write_report(path, report)
    return report.status(options.percent)


def read_class(path: Path) -> list[tuple[str, list[tuple[str, int]]]]:
    """A name and one or two addresses of each line. Raises ValueError."""
    pupils = []
    for line in path.read_text("utf-8").splitlines():
        words = line.partition("#")[0].split()
        places = []
        while len(words) > 1 and len(places) < 2 and re.search(r":\d+$", words[-1]):
            places.insert(0, parse_host_port(words.pop()))
        if words and not places:
            raise ValueError(f"no HOST:PORT: {line!r}")
        if words:
            pupils.append((" ".join(words), places))
    return pupils


def mark_class(options: argparse.Namespace) -> int:
    """Marks a class side by side: a row each here, a line each in class.csv, a report each; the exit status."""
    pupils, lock = read_class(options.pupils), threading.Lock()
    folder = options.folder or options.pupils.with_name(f"{options.pupils.stem}-reports")
    folder.mkdir(parents=True, exist_ok=True)
    width = max((len(name) for name, _ in pupils), default=0)

    def mark_pupil(name: str, places: list[tuple[str, int]]) -> int:
        exam = Exam(places, options.names, options.patience)
        report = Report(place_names(places), exam, options.language, options.brief, name)
        report.results = list(exam.judge(chosen(options, len(places))))
        file_name = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"
        with lock:
            write_report(folder / f"{file_name}.md", report)
            write_report(folder / "class.csv", report)
            print(f"{name:<{width}}  {report.summary() if report.was_judged else report.verdict()}", flush=True)
        return report.status(options.percent)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = set(pool.map(mark_pupil, *zip(*pupils, strict=True)))
    return LESS if len(statuses) > 1 else statuses.pop() if statuses else NOT_JUDGED


def main(arguments: list[str] | None = None) -> int:
    """Marks what the command line names; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")      # a terminal without UTF-8 must not end the examination
    options = parse_arguments(arguments)
    try:
        return mark_class(options) if options.pupils else mark_one(options)
    except (OSError, ValueError) as error:         # of our own files: a list of a class, a report
        print(error, file=sys.stderr)
        return NOT_JUDGED
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
