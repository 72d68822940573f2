"""The examiner: marks anybody's server or client of this protocol, and says what helps.

  python3 ChatMark.py HOST:PORT [HOST:PORT]      marks a server, with a second address also what passes between two
  python3 ChatMark.py HOST:PORT --run CMD        starts that server itself, kills it, and marks what survives
  python3 ChatMark.py --client --run CMD         is the server to a client, and marks that client
  python3 ChatMark.py --class hosts.txt          marks a class: a name and one or two addresses on each line

In this order:
  words         every text that is not a check's own, in both languages
  verdicts      a miss, a result, a check, and the decorator that adds a check
  wire          a connection that remembers what passed
  people        an account of the examiner's own, with its inbox
  examination   runs checks one by one; a dead server or a hang is a result, never a crash
  checks        C, F, E, X, S, R, T, P for servers, K for clients
  reports       terminal, Markdown, Gradescope's JSON, JUnit's XML, CSV
  start         options, a class, main

To add a check: write a function of a few lines and put its `@check(...)` row above it. A text for people is written
`Indonesian | English`.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import functools
import hashlib
import io
import itertools
import json
import os
import queue
import re
import secrets
import select
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import FRAME_END, KIB, LINE_BREAK, MIB, REALMS, add_option, parse_host_port, visible  # noqa: E402

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
    """A row of WORDS."""
    return in_language(WORDS[key], language).format(*values)


# ---- verdicts ----------------------------------------------------------------------------------


class Miss(Exception):
    """A check is missed: how (a key of HOW, or `value` for the check's own sentence), and the bytes that show it."""

    def __init__(self, how: str, expected: str, sent: bytes = b"", came: bytes = b"", at: int | None = None,
                 end: str = "", path: str = "") -> None:
        super().__init__(how)
        self.how, self.expected, self.sent, self.came = how, expected, sent, came
        self.at = at               # offset in `came` where a caret points
        self.end = end             # what came behind `came`: a key of WORDS, or nothing
        self.path = path           # where in the JSON it differs, and how


class Gone(Exception):
    """The server refuses connections: its process has ended, or never ran."""


@dataclass(frozen=True)
class Check:
    """One row of the table of checks."""

    id: str
    points: int
    name: str
    sentence: str                  # what helps where `how` says nothing better
    run: Callable
    needs: str = ""                # the check without which this one says nothing, or `2` for a second server

    @property
    def section(self) -> str:
        """The letter of its id."""
        return self.id[0]


@dataclass
class Result:
    """What came of one check. `skipped` is the reason why it was not tested."""

    check: Check
    miss: Miss | None = None
    skipped: str = ""
    exchange: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether it gets its points."""
        return not self.miss and not self.skipped

    @property
    def score(self) -> int:
        """Its points, all or none."""
        return self.check.points if self.passed else 0

    def sentence(self, language: int) -> str:
        """The one sentence that helps: by how it failed, else the check's own."""
        return in_language(HOW.get(self.miss.how, self.check.sentence), language)


CHECKS: list[Check] = []


def check(identity: str, points: int, name: str, sentence: str, needs: str = "C01") -> Callable:
    """Adds a function to the table of checks, which keeps the order of this file."""
    def add(function: Callable) -> Callable:
        CHECKS.append(Check(identity, points, name, sentence, function, needs))
        return function
    return add


# ---- wire --------------------------------------------------------------------------------------


class Wire:
    """A connection of the examiner's. It remembers what it sent and what came, for the report."""

    def __init__(self, exam: Exam, place: int = 0) -> None:
        self.exam = exam
        self.number = exam.open_wire(self)
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
        self.socket.setblocking(False)
        exam.connected = True

    def put(self, data: bytes, aside: bool = True) -> None:
        """Sends bytes. What came before and nobody asked for is set aside first: only F10 and F11 look for it.

        Without `aside` they go on with the request before them.
        """
        if aside and not self.subscribed:
            self.unasked(0)
        self.sent = data if aside else self.sent + data
        self.exam.note(f">{self.number}", data)
        deadline = time.monotonic() + self.exam.wait()
        view = memoryview(data)
        while view:
            _, writable, _ = select.select([], [self.socket], [], max(deadline - time.monotonic(), 0))
            if not writable:
                raise self.missed("a server that reads", "silent")
            try:
                view = view[self.socket.send(view[:256 * KIB]):]
            except BlockingIOError:
                continue
            except OSError:
                raise self.missed("a connection that stays open", "closed") from None

    def receive(self, deadline: float) -> bytes | None:
        """What the socket gives: empty at the connection's end, None if nothing came until the deadline."""
        if not select.select([self.socket], [], [], max(deadline - time.monotonic(), 0))[0]:
            return None
        try:
            data = self.socket.recv(256 * KIB)
        except OSError:
            data = b""
        if data:
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
        ends = {"silent": "then_nothing", "frame": "then_nothing", "fewer": "then_nothing", "late": "then_nothing",
                "closed": "then_closed"}
        waiting = bytes(self.buffer)
        came = waiting if how in ("silent", "frame", "closed", "endless") else self.came
        if how == "frame":
            at = len(came)
        elif how == "value" and at is None:
            found = re.search(rb'"status":\s*(?=")', came)
            at = found.end() if found and '"status"' in expected else None
        return Miss(how, expected, self.sent, came, at, ends.get(how, ""), path)

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

    def event(self, kind: str, **wanted: object) -> dict:
        """The next event of that kind which has these fields."""
        deadline = time.monotonic() + self.exam.wait()
        while True:
            for number, event in enumerate(self.events):
                if event["event"] == kind and wanted.items() <= event.items():
                    return self.events.pop(number)
            frame = self.frame(deadline - time.monotonic(), f'{{"event":"{kind}",…}}\\r\\n\\r\\n')
            self.events.append(json.loads(frame))

    def ask(self, line: str | bytes, patience: float | None = None) -> dict:
        """Sends one request, and gives the fields of its reply."""
        self.put((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return self.take(patience)

    def is_ok(self, reply: dict) -> dict:
        """The reply, which must be OK."""
        if reply.get("status") != "OK":
            raise self.missed('{"status":"OK",…}\\r\\n\\r\\n')
        return reply

    def is_error(self, reply: dict, code: str = "") -> dict:
        """The reply, which must be an ERROR, with that code if one is named."""
        if reply.get("status") != "ERROR" or code and reply.get("code") != code:
            named = f'"code":"{code}",' if code else ""
            path = f"code = {reply.get('code')}" if code else ""
            raise self.missed(f'{{"status":"ERROR",{named}…}}\\r\\n\\r\\n', path=path)
        return reply

    def ok(self, line: str | bytes, patience: float | None = None) -> dict:
        """Sends a request that must be granted."""
        return self.is_ok(self.ask(line, patience))

    def refused(self, line: str | bytes, code: str = "", patience: float | None = None) -> dict:
        """Sends a request that must be refused."""
        return self.is_error(self.ask(line, patience), code)

    def is_same(self, found: object, expected: object, path: str) -> None:
        """A value of the last reply is as it should be; the caret points at the first byte that differs."""
        if found == expected:
            return
        at = None
        if isinstance(found, str) and isinstance(expected, str):
            same = os.path.commonprefix([found, expected])
            place = self.came.rfind(json.dumps(found)[1:-1].encode())
            at = place + len(json.dumps(same)) - 2 if place >= 0 else None
        raise self.missed(f"{path} = {brief(expected)}", path=f"{path} = {brief(found)}", at=at)

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def brief(value: object, most: int = 120) -> str:
    """A value for people, cut where it is long."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(text)})"


# ---- people ------------------------------------------------------------------------------------


@dataclass
class Item:
    """One message of an inbox: under which sender it stood, and its fields."""

    sender: str
    fields: dict

    @property
    def text(self) -> object:
        """Its text without the spaces around it, or None."""
        text = self.fields.get("msg")
        return text.strip() if isinstance(text, str) else text


def items_of(messages: object) -> list[Item]:
    """What `messages` of an inbox holds: a map by sender or a list, of objects or of JSON texts."""
    groups = messages.items() if isinstance(messages, dict) else [("", messages)]
    items = []
    for sender, values in groups:
        for value in values if isinstance(values, list) else [values] if values else []:
            if isinstance(value, str):
                with contextlib.suppress(ValueError):
                    value = json.loads(value)
            items.append(Item(sender, value if isinstance(value, dict) else {"msg": value}))
    return items


class Person:
    """An account that only this check uses, logged in on a connection of its own."""

    def __init__(self, exam: Exam, place: int = 0, account: tuple[str, str] | None = None) -> None:
        self.exam, self.wire = exam, Wire(exam, place)
        self.nama, self.token = "", ""
        if account is None and exam.registers:
            number = next(exam.counter)
            self.name, self.password = f"u{exam.run}{number}", f"pw{secrets.token_hex(4)}"
            self.nama = f"Nama {number}"
            reply = self.wire.ask(f"register {self.name} {self.password} Nama_{number} Indonesia")
            if reply.get("status") == "OK" and is_token(reply.get("tokenid")):
                self.token = reply["tokenid"]
                return
            exam.registers = False                 # C04 says so; the others go on with the documented people
        self.name, self.password = account or exam.documented()
        self.token = self.login()
        if account is None:
            self.items()                           # what others left there

    def login(self, wire: Wire | None = None) -> str:
        """Logs in on that connection or one's own: the token."""
        wire = wire or self.wire
        token = wire.ok(f"auth {self.name} {self.password}").get("tokenid")
        if not is_token(token):
            raise wire.missed('{"status":"OK","tokenid":"…"}\\r\\n\\r\\n')
        return token

    def line(self, words: str) -> str:
        """`send messi hi` -> `send TOKEN messi hi`, a tag in front left where it is."""
        tag, words = words.split(" ", 1) if words.startswith("@") else ("", words)
        command, _, rest = words.partition(" ")
        return f"{tag} {command} {self.token} {rest}".strip(" ")

    def ok(self, words: str, patience: float | None = None) -> dict:
        """Sends a request that must be granted; the token is filled in."""
        return self.wire.ok(self.line(words), patience)

    def refused(self, words: str, code: str = "", patience: float | None = None) -> dict:
        """Sends a request that must be refused."""
        return self.wire.refused(self.line(words), code, patience)

    def items(self) -> list[Item]:
        """Takes the inbox."""
        return items_of(self.ok("inbox").get("messages") or {})

    def texts(self) -> list[object]:
        """The texts of the inbox."""
        return [item.text for item in self.items()]

    def has(self, text: str) -> Item:
        """Takes the inbox, in which this text must stand, be it twice; gives its item."""
        items = self.items()
        for item in items:
            if item.text == text:
                return item
        raise self.wire.missed(brief(text), path=f"inbox: {brief([item.text for item in items])}")

    def has_only(self, *texts: str) -> None:
        """Takes the inbox, in which of these texts each must stand once, in this order."""
        found = [text for text in self.texts() if text in texts]
        if found != list(texts):
            raise self.wire.missed(brief(list(texts)), path=f"inbox: {brief(found)}")

    def file(self, items: Iterable[Item], size: int, digest: str, name: str = "") -> Item:
        """The file among the items, which must have this size, SHA-256 and name."""
        for item in items:
            described = item.fields.get("file")
            content = item.fields.get("file_content")
            if isinstance(described, dict) and "id" in described:
                content = self.ok(f"getfile {described['id']}").get("file_content")
            if content is None:
                continue
            data = self.decoded(content)
            same = (len(data), hashlib.sha256(data).hexdigest()) == (size, digest)
            if not same:
                raise self.wire.missed(f"{size} bytes", path=f"{len(data)} bytes: {brief(repr(data), 40)}")
            found = str(item.fields.get("file_name") or (described or {}).get("name"))
            if name:
                self.wire.is_same(found, name, "file_name")
            return item
        raise self.wire.missed("file_content", path="inbox")

    def decoded(self, content: str) -> bytes:
        """A file's content, bare or in b'…'. Strict, for a stray letter must not pass."""
        inner = re.fullmatch(r"b'(.*)'|b\"(.*)\"|(.*)", content, re.DOTALL)
        try:
            return base64.b64decode(next((part for part in inner.groups() if part), ""), validate=True)
        except ValueError:
            raise self.wire.missed("base64", path=f"file_content: {brief(content)}") from None


def is_token(value: object) -> bool:
    """Whether it can be a token: one word, and not so long that requests with it would flood a server."""
    return isinstance(value, str) and 0 < len(value) <= KIB and value.isprintable() and " " not in value


def in_base64(data: bytes) -> str:
    """A file's content as old clients send it."""
    return str(base64.b64encode(data))


# ---- examination -------------------------------------------------------------------------------


class Examination:
    """Runs checks one after the other. Whatever one of them meets, the next begins with connections of its own."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self.limit = LIMIT
        self.started = time.monotonic()
        self.connected = False                     # whether anything ever answered
        self.results: dict[str, Result] = {}
        self.gone = ""                             # the check that the server died in
        self.last_sent: tuple[str, bytes] = ("", b"")
        self.tokens: set[str] = set()
        self.exchange: list[tuple[str, bytes]] = []
        self.current = ""
        self.gated = False
        self.second = False                        # whether there is a second server

    def wait(self, seconds: float | None = None) -> float:
        """How long something may take now: the patience, but never past the end of the examination."""
        left = self.started + self.limit - time.monotonic()
        return max(min(self.patience if seconds is None else seconds, left), 0.001)

    def is_late(self) -> bool:
        """Whether the time for the whole is up."""
        return time.monotonic() > self.started + self.limit

    def note(self, arrow: str, data: bytes) -> None:
        """Remembers what passed, for the report of this check."""
        if arrow.startswith(">"):
            self.last_sent = self.current, data
        if len(self.exchange) < 200:
            self.exchange.append((arrow, data[:KEPT]))

    def judge(self, checks: list[Check]) -> Iterator[Result]:
        """Gives a Result for each check."""
        for row in checks:
            yield self.result_of(row)

    def result_of(self, row: Check) -> Result:
        """What came of a check, which is run only once; what it needs is run before it."""
        if row.id not in self.results:
            reason = self.reason_to_skip(row)
            self.results[row.id] = Result(row, skipped=reason) if reason else self.examine(row)
        return self.results[row.id]

    def reason_to_skip(self, row: Check) -> str:
        """Why a check cannot say anything now, as `key:value` of WORDS, or nothing."""
        if row.needs not in ("", "2") and not (self.gone or self.gated or self.is_late()):
            needed = self.result_of(next(other for other in CHECKS if other.id == row.needs))
            if not (self.gone or self.gated or self.is_late() or needed.passed or self.goes_on()):
                return f"needs:{row.needs}"
        if self.gone:
            return f"gone:{self.gone}"
        if self.gated:
            return "gate:"
        if self.is_late():
            return "time:"
        return "needs:HOST:PORT 2" if row.needs == "2" and not self.second else ""

    def goes_on(self) -> bool:
        """Whether a check can be run although the one that it needs was missed."""
        return False

    def examine(self, row: Check) -> Result:
        """Runs one check. Nothing that a server does leaves here as anything but a Result."""
        self.current, self.exchange = row.id, []
        started = time.monotonic()
        try:
            row.run(self)
            miss = None
        except Miss as found:
            miss = found
        except Gone:
            miss = self.died()
            if self.gone != row.id:
                return Result(row, skipped=f"gone:{self.gone}")
        except Exception as fault:                 # the reply was JSON of a form that the check did not foresee
            miss = self.surprised(fault)
        if miss and miss.how in ("closed", "connect") and not self.gone:
            miss = self.died() if self.is_gone() else miss
        self.close(bool(miss))
        self.gated = self.gated or (row.id == "C01" and bool(miss) and miss.how in GATE)
        return Result(row, miss, "", self.exchange, time.monotonic() - started)

    def died(self) -> Miss:
        """The server is gone: the check whose bytes were the last is the one that it died in."""
        self.gone, last = self.last_sent
        self.gone = self.gone or self.current
        return Miss("gone", "a server that lives", last, end="then_closed")

    def surprised(self, fault: Exception) -> Miss:
        """A reply of another form than any that the check foresaw."""
        came = b"".join(data for arrow, data in self.exchange[-3:] if arrow.startswith("<"))
        return Miss("shape", "the documented reply", self.last_sent[1], came, path=f"{type(fault).__name__}: {fault}")

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
        self.used_documented = itertools.cycle(PEOPLE)
        self.wires: list[Wire] = []

    def open_wire(self, wire: Wire) -> int:
        """Remembers a connection of this check; gives its number."""
        self.wires.append(wire)
        return len(self.wires)

    def wire(self, place: int = 0) -> Wire:
        """A connection that has not logged in."""
        return Wire(self, place)

    def person(self, place: int = 0) -> Person:
        """Somebody new."""
        return Person(self, place)

    def people(self, count: int) -> list[Person]:
        """That many new people."""
        return [Person(self) for _ in range(count)]

    def documented(self) -> tuple[str, str]:
        """The next of the documented accounts."""
        return next(self.used_documented), PASSWORD

    def word(self, text: str) -> str:
        """A text that no other check sends."""
        return f"{text} {self.run}{next(self.counter)}"

    def group(self, *people: Person) -> str:
        """A new group: the first of the people makes it, the others join."""
        name = f"g{self.run}{next(self.counter)}"
        people[0].ok(f"addgroup {name}")
        for person in people[1:]:
            person.ok(f"joingroup {name}")
        return name

    def there(self, user: str) -> Person:
        """A documented person at the second server."""
        return Person(self, 1, (user, PASSWORD))

    def arrives(self, person: Person, wanted: Callable[[Item], bool], what: str) -> list[Item]:
        """Asks a person's inboxes until what another realm sent is there, at most four times the patience."""
        deadline = time.monotonic() + self.wait(4 * self.patience)
        found: list[Item] = []
        while time.monotonic() < deadline:
            for name in self.names:
                reply = person.wire.ask(person.line(f"getrealminbox {name}"))
                found += items_of(reply.get("messages") or reply.get("message") or [])
            found += items_of(person.wire.ask(person.line("inbox")).get("messages") or {})
            if any(wanted(item) for item in found):
                return found
            self.pause(0.1)
        raise person.wire.missed(what, path=f"{len(found)} items")

    @staticmethod
    def pause(seconds: float) -> None:
        """Lets another machine work before it is asked again: nothing announces what is awaited."""
        time.sleep(seconds)

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
            if hasattr(wire, "socket"):
                wire.socket.close()
        self.wires = []


# ---- checks: documented commands ---------------------------------------------------------------


@check("C01", 2, "auth: token | auth: a token",
       "auth mengembalikan tokenid yang dibawa oleh command berikutnya. | "
       "auth returns a tokenid that later commands bring back.", needs="")
def auth_gives_a_token(exam: Exam) -> None:
    Person(exam, 0, ("messi", PASSWORD))


@check("C02", 2, "auth: password salah | auth: wrong password",
       "Bandingkan password sebelum membuat token. | Compare the password before making a token.")
def auth_compares_the_password(exam: Exam) -> None:
    exam.wire().refused(f"auth {exam.person().name} salah")


@check("C03", 2, "auth: user yang tidak ada | auth: unknown user",
       "Cari user dengan get(), sebuah KeyError mengakhiri handler Anda. | "
       "Look the user up with get(), a KeyError ends your handler.", needs="")
def auth_of_nobody(exam: Exam) -> None:
    exam.wire().refused(f"auth tidakada{exam.run} surabaya")


@check("C04", 2, "register, lalu login | register, then log in",
       "register menyimpan user dan sekaligus login. | register stores the user and logs in.")
def register_stores_and_logs_in(exam: Exam) -> None:
    wire, name = exam.wire(), f"r{exam.run}{next(exam.counter)}"
    reply = wire.ok(f"register {name} admin Nama_Reg Indonesia")
    wire.ok(f"inbox {reply.get('tokenid')}")
    wire.ok(f"auth {name} admin")


@check("C05", 1, "register: nama sudah dipakai | register: a name that is taken",
       "Tolak nama yang sudah dipakai, jangan menimpanya. | Refuse a name that is taken, never overwrite.")
def register_refuses_a_taken_name(exam: Exam) -> None:
    exam.wire().refused("register messi lain Orang_Lain Indonesia")


@check("C06", 1, "NAMA dengan _ | NAMA with _",
       "`_` berarti spasi dalam NAMA. | `_` stands for a space in NAMA.", needs="C04")
def underscore_is_a_space(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('halo'))}")
    item = reader.has(text)
    name = item.fields.get("msg_from") or item.fields.get("from_name")
    reader.wire.is_same(name, sender.nama, "msg_from")


@check("C07", 3, "send: teks dengan spasi | send: a text with spaces",
       "Semua sesudah spasi kedua adalah teks: split(\" \", 3). | "
       "Everything after the second argument is the text: split(\" \", 3).")
def send_keeps_the_whole_text(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('hello world'))}")
    reader.has(text)


@check("C08", 1, "inbox: menurut pengirim | inbox: by sender",
       "Kelompokkan inbox menurut pengirim. | Group the inbox by sender.", needs="C07")
def inbox_groups_by_sender(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('halo'))}")
    item = reader.has(text)
    reader.wire.is_same(item.sender.partition("@")[0], sender.name, "messages: key")


@check("C09", 2, "inbox dua kali | inbox twice",
       "inbox mengambil: kosongkan antrean sesudah dijawab. | inbox takes: empty the queue when it was answered.")
def inbox_takes(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('halo'))}")
    reader.has(text)
    if items := reader.items():
        raise reader.wire.missed('{"status":"OK","messages":{}}', path=f"inbox: {[item.text for item in items]}")


@check("C10", 1, "sepuluh send: urutan | ten sends: order",
       "Tambahkan di belakang, baca dari depan, simpan sekali saja. | "
       "Append at the end, read from the front, store once.")
def messages_keep_their_order(exam: Exam) -> None:
    sender, reader = exam.people(2)
    texts = [exam.word(f"pesan {number}") for number in range(10)]
    for text in texts:
        sender.ok(f"send {reader.name} {text}")
    reader.has_only(*texts)


@check("C11", 1, "send kepada diri sendiri | send to oneself",
       "Pengirim boleh menjadi penerima. | The sender may be the recipient.")
def sender_may_be_recipient(exam: Exam) -> None:
    person = exam.person()
    person.ok(f"send {person.name} {(text := exam.word('catatan'))}")
    person.has(text)


@check("C12", 2, "send kepada yang tidak ada | send to nobody",
       "Periksa penerima sebelum menyimpan. | Check the recipient before storing.")
def send_to_nobody(exam: Exam) -> None:
    exam.person().refused(f"send tidakada{exam.run} halo")


@check("C13", 2, "sendgroup: setiap anggota | sendgroup: every member",
       "Masukkan satu pesan ke antrean setiap anggota. | Put one item into each member's queue.")
def group_message_reaches_members(exam: Exam) -> None:
    reach_members(exam, exam.people(3), lambda text, item: text in json.dumps(item.fields))


@check("C14", 2, "sendgroup: msg adalah teksnya | sendgroup: msg is the text",
       "Buat dict baru untuk setiap anggota; milik Anda memuat dict sebelumnya. | "
       "Build a new dict for each member; yours holds the one before.", needs="C13")
def group_message_is_flat(exam: Exam) -> None:
    reach_members(exam, exam.people(3), lambda text, item: item.text == text)


def reach_members(exam: Exam, people: list[Person], is_it: Callable[[str, Item], bool]) -> None:
    """The first of the people writes to a group, and every other member has it."""
    text = exam.word("halo semua")
    people[0].ok(f"sendgroup {exam.group(*people)} {text}")
    for person in people[1:]:
        items = person.items()
        if not any(is_it(text, item) for item in items):
            found = brief([item.fields.get("msg") for item in items])
            raise person.wire.missed(f'"msg":"{text}"', path=f"messages: {found}")


@check("C15", 1, "joingroup dua kali | joingroup twice", "Seorang anggota masuk satu kali. | A member joins once.")
def join_once(exam: Exam) -> None:
    maker, member = exam.people(2)
    member.refused(f"joingroup {exam.group(maker, member)}")


@check("C16", 1, "group yang tidak ada | unknown group",
       "Periksa apakah group ada. | Check that the group exists.")
def unknown_group(exam: Exam) -> None:
    person = exam.person()
    person.refused(f"joingroup tidakada{exam.run}")
    person.refused(f"sendgroup tidakada{exam.run} halo")


@check("C17", 1, "addgroup: nama sudah ada | addgroup: a name that exists",
       "addgroup dengan nama yang sudah ada tidak boleh menggantikan groupnya. | "
       "addgroup of an existing name must not replace it.", needs="C13")
def addgroup_keeps_the_members(exam: Exam) -> None:
    maker, member, stranger = exam.people(3)
    name, text = exam.group(maker, member), exam.word("masih ada")
    stranger.wire.ask(stranger.line(f"addgroup {name}"))
    maker.ok(f"sendgroup {name} {text}")
    if not any(text in json.dumps(item.fields) for item in member.items()):
        raise member.wire.missed(text, path="messages")


@check("C18", 1, "sendgroup sampai ke pembuatnya | sendgroup reaches the maker",
       "Pembuat group adalah anggota pertama. | The maker is the first member.", needs="C13")
def maker_is_a_member(exam: Exam) -> None:
    maker, member = exam.people(2)
    name, text = exam.group(maker, member), exam.word("untuk pembuat")
    member.ok(f"sendgroup {name} {text}")
    if not any(text in json.dumps(item.fields) for item in maker.items()):
        raise maker.wire.missed(text, path="messages")


def pass_file(exam: Exam, name: str, data: bytes) -> None:
    """A file goes from one person to another and is the same there."""
    sender, reader = exam.people(2)
    sender.ok(f"sendfile {reader.name} {name} {in_base64(data)}")
    reader.file(reader.items(), len(data), hashlib.sha256(data).hexdigest(), name)


@check("C19", 3, "sendfile: isi dan nama | sendfile: content and name",
       "base64 dua arah; buang pembungkus b'…'. | base64 both ways; strip the b'…' wrapper.")
def file_arrives(exam: Exam) -> None:
    pass_file(exam, "file.txt", f"isi file é {exam.run}".encode())


@check("C20", 1, "sendfile: 100 KiB, semua nilai byte | sendfile: 100 KiB, every byte value",
       "Data biner adalah base64, jangan pernah decode() sebagai teks. | "
       "Binary is base64, never decode() it as text.")
def large_binary_file(exam: Exam) -> None:
    pass_file(exam, "acak.bin", bytes(range(256)) * 400)


@check("C21", 1, "sendfile: file kosong | sendfile: an empty file",
       "File kosong adalah file. | An empty file is a file.")
def empty_file(exam: Exam) -> None:
    pass_file(exam, "kosong.txt", b"")


@check("C22", 2, "sendgroupfile: setiap anggota | sendgroupfile: every member",
       "Seperti sendgroup, dengan file. | As sendgroup, with a file.")
def group_file(exam: Exam) -> None:
    people = exam.people(3)
    data = f"isi {exam.run}".encode()
    people[0].ok(f"sendgroupfile {exam.group(*people)} file.txt {in_base64(data)}")
    for person in people[1:]:
        person.file(person.items(), len(data), hashlib.sha256(data).hexdigest())


@check("C23", 1, "sendfile kepada yang tidak ada | sendfile to nobody",
       "Periksa penerima sebelum menyimpan. | Check the recipient before storing.")
def file_to_nobody(exam: Exam) -> None:
    exam.person().refused(f"sendfile tidakada{exam.run} file.txt {in_base64(b'isi')}")


@check("C24", 2, "logout mengakhiri token | logout ends the token",
       "logout menghapus session. | logout deletes the session.")
def logout_ends_the_token(exam: Exam) -> None:
    person = exam.person()
    person.ok("logout")
    person.refused("inbox")


@check("C25", 2, "info sesudah ada pesan | info after messages",
       "json.dumps tidak dapat menulis Queue: pilih field yang Anda tampilkan. | "
       "json.dumps cannot write a Queue: pick the fields you show.")
def info_names_the_user(exam: Exam) -> None:
    person, _ = informed(exam)
    reply = person.wire.ok("info")
    if person.name not in json.dumps(reply):
        raise person.wire.missed(f"…{person.name}…", path="message")


def informed(exam: Exam) -> tuple[Person, Person]:
    """Two people between whom a message has passed that nobody has read yet."""
    person, other = exam.people(2)
    other.ok(f"send {person.name} {exam.word('halo')}")
    return person, other


# ---- checks: framing ---------------------------------------------------------------------------


@check("F01", 2, "satu permintaan byte demi byte | one request byte by byte",
       "TCP adalah aliran: kumpulkan sampai CR LF. | TCP is a stream: collect until CR LF.")
def byte_by_byte(exam: Exam) -> None:
    person = exam.person()
    line = f"auth {person.name} {person.password}\r\n".encode()
    for at in range(len(line)):
        person.wire.put(line[at:at + 1], aside=at == 0)
        exam.pause(0.003)
    person.wire.is_ok(person.wire.take())


@check("F02", 2, "dipotong di antara CR dan LF | cut between CR and LF",
       "TCP adalah aliran: kumpulkan sampai CR LF. | TCP is a stream: collect until CR LF.")
def cut_in_the_line_end(exam: Exam) -> None:
    person = exam.person()
    person.wire.put(person.line("inbox").encode() + b"\r")
    if early := person.wire.unasked(0.3):
        person.wire.came = early
        raise person.wire.missed("", path="")
    person.wire.put(b"\n")
    person.wire.is_ok(person.wire.take())


def several(wire: Wire, lines: list[str], statuses: list[str]) -> None:
    """Requests in one segment: a reply each, in their order."""
    wire.put("".join(line + "\r\n" for line in lines).encode())
    expected = '{"status":"…"}\\r\\n\\r\\n' + (f" × {len(lines)}" if len(lines) > 2 else '{"status":"…"}\\r\\n\\r\\n')
    for number, status in enumerate(statuses):
        try:
            reply = wire.take()
        except Miss as miss:
            if miss.how != "silent" or not number:
                raise
            raise wire.missed(expected, "fewer", f"replies: {number} of {len(lines)}") from None
        if reply.get("status") != status:
            how = "fewer" if not wire.unasked(wire.exam.wait(0.5)) and number < len(lines) - 1 else "value"
            raise wire.missed(expected, how, f"reply {number + 1}: not {status}")


@check("F03", 3, "dua permintaan dalam satu segmen | two requests in one segment: two replies",
       "Jawab setiap baris, menurut urutannya. | Answer each line, in order.")
def two_in_one_segment(exam: Exam) -> None:
    person = exam.person()
    several(person.wire, [person.line("inbox"), f"auth {person.name} {person.password}"], ["OK", "OK"])


@check("F04", 2, "satu setengah permintaan, lalu sisanya | one and a half requests, then the rest",
       "Jawab setiap baris begitu CR LF-nya ada, simpan sisanya. | "
       "Answer each line as soon as its CR LF is there, keep the rest.")
def one_and_a_half(exam: Exam) -> None:
    person = exam.person()
    half = f"auth {person.name} {person.password}\r\n".encode()
    person.wire.put(person.line("inbox").encode() + b"\r\n" + half[:9])
    early = None
    with contextlib.suppress(Miss):
        early = person.wire.take()
    person.wire.put(half[9:], aside=False)
    first = early or person.wire.take()
    if early is None:
        raise person.wire.missed('{"status":"OK",…}\\r\\n\\r\\n', "late")
    person.wire.is_ok(first)
    person.wire.is_ok(person.wire.take())


@check("F05", 2, "50 permintaan sekaligus, setiap kelima salah | 50 requests at once, every fifth wrong",
       "Jawab setiap baris, menurut urutannya. | Answer each line, in order.")
def fifty_at_once(exam: Exam) -> None:
    person = exam.person()
    lines = ["apaini" if number % 5 == 4 else person.line("inbox") for number in range(50)]
    several(person.wire, lines, ["ERROR" if line == "apaini" else "OK" for line in lines])


@check("F06", 2, "é dipotong di tengah | é cut in two",
       "Decode baris yang utuh, bukan potongan. | Decode whole lines, not pieces.")
def character_cut_in_two(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = exam.word("café enak")
    line = sender.line(f"send {reader.name} {text}").encode() + b"\r\n"
    at = line.index("é".encode()) + 1
    sender.wire.put(line[:at])
    exam.pause(0.1)
    sender.wire.put(line[at:], aside=False)
    sender.wire.is_ok(sender.wire.take())
    reader.has(text)


@check("F07", 1, "4.000 huruf dalam empat potong | 4,000 characters in four pieces",
       "TCP adalah aliran: kumpulkan sampai CR LF. | TCP is a stream: collect until CR LF.")
def long_text_in_pieces(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = (exam.word("panjang") + " ").ljust(4000, "x")
    line = sender.line(f"send {reader.name} {text}").encode() + b"\r\n"
    for at in range(0, len(line), 1050):
        sender.wire.put(line[at:at + 1050], aside=at == 0)
        exam.pause(0.05)
    sender.wire.is_ok(sender.wire.take())
    reader.has(text)


@check("F08", 1, "spasi sebelum CR LF | a space before CR LF",
       "Client lama menaruh spasi sebelum CR LF. | Old clients put a space before CR LF.")
def spaces_around(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.token = sender.wire.ok(f"auth {sender.name} {sender.password} ")["tokenid"]
    sender.wire.ok(sender.line(f"send {reader.name}  {(text := exam.word('hello world'))} "))
    reader.has(text)


@check("F09", 2, "é dan 🙂 melalui inbox | é and 🙂 through the inbox",
       "Kirim teks utuh, dalam ASCII. | Give the whole text back, in ASCII.", needs="C07")
def replies_are_ascii(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = exam.word("é 🙂")
    sender.ok(f"send {reader.name} {text}")
    items = reader.items()
    other = next((at for at, byte in enumerate(reader.wire.came) if byte > 127), None)
    if other is not None:
        raise reader.wire.missed(json.dumps(text), "ascii", at=other)
    if text not in [item.text for item in items]:
        raise reader.wire.missed(json.dumps(text))


@check("F10", 2, "tidak ada yang datang tanpa diminta | nothing comes unasked",
       "Jangan kirim apa pun yang tidak diminta. | Send nothing unasked.")
def nothing_unasked(exam: Exam) -> None:
    sender, silent = exam.people(2)
    silent.wire.unasked(0)
    sender.ok(f"send {silent.name} {exam.word('halo')}")
    if came := silent.wire.unasked(0.5):
        silent.wire.came = came
        raise silent.wire.missed("", "unasked", at=0)


@check("F11", 1, "satu jawaban, tidak ada di belakangnya | one reply, nothing behind it",
       "Satu permintaan, satu jawaban. | One request, one reply.")
def nothing_behind(exam: Exam) -> None:
    person = exam.person()
    person.ok("inbox")
    if came := person.wire.unasked(0.3):
        person.wire.came = came
        raise person.wire.missed("", at=0)


@check("F12", 1, "token di koneksi lain | the token on another connection",
       "Token adalah loginnya, bukan socketnya. | The token is the login, not the socket.")
def token_on_another_connection(exam: Exam) -> None:
    exam.wire().ok(exam.person().line("inbox"))


# ---- checks: errors ----------------------------------------------------------------------------


@check("E01", 2, "command yang tidak ada | unknown command",
       "Kata yang tidak dikenal: ERROR, koneksi tetap hidup. | Unknown word: ERROR, the connection lives.")
def unknown_command(exam: Exam) -> None:
    person = exam.person()
    person.wire.refused("apaini")
    person.login()


@check("E02", 2, "kata yang kurang | words missing",
       "IndexError: tangkap, atau hitung katanya. | IndexError: catch it or count words.")
def words_missing(exam: Exam) -> None:
    person = exam.person()
    for line in ("auth", "auth messi", "register x", "send", f"send {person.token}", "addgroup", "joingroup",
                 f"sendgroup {person.token}", f"sendfile {person.token} {person.name}", "logout"):
        person.wire.refused(line)


@check("E03", 2, "token yang salah | a wrong token",
       "Periksa token dahulu, di satu tempat. | Check the token first, in one place.")
def wrong_token(exam: Exam) -> None:
    wire, token = exam.wire(), secrets.token_hex(16)
    for line in ("send {} messi x", "sendfile {} messi a.txt b'YQ=='", "sendgroup {} g x", "addgroup {} g" + exam.run,
                 "joingroup {} g", "inbox {}", "logout {}"):
        wire.refused(line.format(token))


@check("E04", 1, "baris kosong | an empty line",
       "Baris kosong bukan alasan untuk mati. | An empty line is no reason to die.")
def empty_line(exam: Exam) -> None:
    person = exam.person()
    person.wire.put(b"\r\n")
    person.wire.unasked(0.3)
    person.ok("inbox")


@check("E05", 2, "byte yang bukan UTF-8 | bytes that are no UTF-8",
       "decode() dapat gagal: ERROR. | decode() can fail: ERROR.")
def no_utf8(exam: Exam) -> None:
    person = exam.person()
    person.wire.refused(b"auth \xff\xfe messi")
    person.ok("inbox")


@check("E06", 1, "base64 yang rusak | broken base64",
       "b64decode(…, validate=True) di dalam try. | b64decode(…, validate=True) inside try.")
def broken_base64(exam: Exam) -> None:
    person = exam.person()
    person.refused(f"sendfile {person.name} a.txt b'abc'")
    person.ok("inbox")


@check("E07", 1, "nama file yang jahat | hostile file names",
       "Nama adalah data: ambil bagian terakhir, potong, jangan membukanya sebagai path. | "
       "A name is data: take the last part, cut it, never open it as a path.")
def hostile_names(exam: Exam) -> None:
    person = exam.person()
    for name in ("..", "../../x", "/etc/x", "a/", "x" * 300):
        person.wire.ask(person.line(f"sendfile {person.name} {name} {in_base64(b'isi')}"))
    person.ok("inbox")


@check("E08", 1, "1 MB tanpa akhir baris | 1 MB without a line end",
       "Batasi buffer setiap koneksi. | Bound the buffer of each connection.")
def endless_line(exam: Exam) -> None:
    wire, other = exam.wire(), exam.person()
    with contextlib.suppress(Miss):                # a server may end that connection
        for _ in range(16):
            wire.put(b"x" * (64 * KIB), aside=False)
    other.ok("inbox")


# ---- checks: several at once -------------------------------------------------------------------


@check("X01", 3, "setengah permintaan menahan yang lain | half a request holds others up",
       "Satu thread setiap client, atau select: jangan menunggu di recv satu client. | "
       "A thread each, or select: never block in one client's recv.")
def half_a_request(exam: Exam) -> None:
    slow, other = exam.people(2)
    slow.wire.put(b"inbox ")
    other.ok("inbox", patience=1.0)
    exam.wire().refused(f"inbox {secrets.token_hex(8)}", patience=1.0)


@check("X02", 1, "20 koneksi dan login dalam 3 detik | 20 connections and logins in 3 s",
       "listen(1) membuang SYN, yang datang lagi sesudah 1, 3, 7 detik: listen(128). | "
       "listen(1) drops SYNs, which come again after 1, 3, 7 s: listen(128).")
def twenty_at_once(exam: Exam) -> None:
    person = exam.person()
    started = time.monotonic()

    def enter(_: int) -> bool:
        with contextlib.suppress(Miss):
            return bool(exam.wire().ok(f"auth {person.name} {person.password}", patience=3.0))
        return False

    with ThreadPoolExecutor(20) as pool:
        entered = list(pool.map(enter, range(20)))
    seconds = time.monotonic() - started
    if seconds > 3.0 or not all(entered):
        with contextlib.suppress(Miss):            # the next check begins when the server has caught up
            exam.wire().ask(person.line("inbox"), patience=4 * exam.patience)
        raise person.wire.missed("20 × OK < 3 s", path=f"{sum(entered)} × OK, {seconds:.1f} s")


@check("X03", 2, "10 pengirim × 20 pesan | 10 senders × 20 messages",
       "Kunci (lock) apa yang dipakai bersama oleh thread. | Lock what threads share.")
def many_senders(exam: Exam) -> None:
    reader, senders = exam.person(), exam.people(10)
    texts = {sender: [exam.word("banyak") for _ in range(20)] for sender in senders}
    for sender in senders:
        sender.wire.put("".join(sender.line(f"send {reader.name} {text}") + "\r\n" for text in texts[sender]).encode())
    for sender in senders:
        for number in range(20):
            try:
                sender.wire.is_ok(sender.wire.take())
            except Miss as miss:
                if miss.how != "silent" or not number:
                    raise
                raise sender.wire.missed("OK × 20", "fewer", f"replies: {number} of 20") from None
    arrived = reader.texts()
    for sender in senders:
        mine = [text for text in arrived if text in texts[sender]]
        if mine != texts[sender]:
            path = f"{sender.name}: {brief(mine[:3])}, {len(mine)} / 20"
            raise reader.wire.missed(brief(texts[sender][:3]), path=path)


@check("X04", 1, "RST di tengah baris | a reset in mid-line",
       "recv melempar exception: bereskan koneksi yang satu itu. | recv raises: clean up that one.")
def reset_in_mid_line(exam: Exam) -> None:
    broken, other = exam.people(2)
    broken.wire.put(b"inbox ")
    broken.wire.reset()
    other.ok("inbox")
    exam.wire().ok(other.line("inbox"))


@check("X05", 1, "satu user dua kali | one user twice",
       "Satu session setiap login, bukan satu setiap user. | A session each, not one per user.")
def one_user_twice(exam: Exam) -> None:
    person, other = exam.person(), exam.wire()
    token = person.login(other)
    person.ok("inbox")
    other.ok(f"inbox {token}")


# ---- checks: safety ----------------------------------------------------------------------------


@check("S01", 2, "info tanpa token | info holds no token",
       "Siapa yang punya token adalah usernya. | Whoever has the token is the user.", needs="C25")
def info_holds_no_token(exam: Exam) -> None:
    person, other = informed(exam)
    hide(person.wire, person.token, other.token)


@check("S02", 1, "info tanpa password | info holds no password",
       "Jangan pernah mengirim password yang tersimpan. | Never send stored passwords.", needs="C25")
def info_holds_no_password(exam: Exam) -> None:
    person, other = informed(exam)
    hide(person.wire, person.password, other.password)


def hide(wire: Wire, *secret: str) -> None:
    """None of these stands in the reply to `info`."""
    wire.ok("info")
    for word in secret:
        if (at := wire.came.find(word.encode())) >= 0:
            raise wire.missed("", at=at)


@check("S03", 1, "token: baru setiap login, panjang | tokens: new at each login, and long",
       "secrets.token_hex atau uuid4. | secrets.token_hex or uuid4.")
def tokens_are_random(exam: Exam) -> None:
    person = exam.person()
    tokens = [person.login() for _ in range(3)]
    if len(set(tokens)) < 3 or min(map(len, tokens)) < 16:
        raise person.wire.missed("3 tokens, ≥ 16", path=f"{len(set(tokens))}, ≥ {min(map(len, tokens))}")


@check("S04", 1, "sendgroup oleh orang luar | sendgroup by a stranger",
       "Periksa keanggotaan. | Check membership.", needs="C13")
def strangers_may_not_write(exam: Exam) -> None:
    maker, stranger = exam.people(2)
    stranger.refused(f"sendgroup {exam.group(maker)} halo")


# ---- checks: two realms ------------------------------------------------------------------------


def realm_route(exam: Exam, words: str, *, to: str, user: str = "henderson", sender: int = 0) -> None:
    """A text goes from one server to a person of the other, and arrives."""
    person = exam.person(sender)
    reader = exam.there(user) if sender == 0 else exam.person(0)
    text = exam.word("antar realm")
    user = user if sender == 0 else reader.name
    person.ok(f"{words} {to} {user} {text}", patience=4 * exam.patience)
    exam.arrives(reader, lambda item: item.text == text, text)


@check("R01", 1, "addrealm | addrealm",
       "addrealm mencatat nama, alamat, dan port server lain. | "
       "addrealm notes another server's name, address and port.",
       needs="2")
def addrealm(exam: Exam) -> None:
    replies = []
    for place, other in ((0, 1), (1, 0)):
        wire = exam.wire(place)
        host, port = exam.places[other]
        reply = wire.ask(f"addrealm {exam.names[other]} {host} {port}")
        replies.append(reply.get("status") == "OK" or "sudah" in str(reply.get("message")).lower())
    if not all(replies):                           # a fixed table passes, where it holds that row
        try:
            realm_route(exam, "sendprivaterealm", to=exam.names[1])
        except Miss:
            raise wire.missed('{"status":"OK",…}\\r\\n\\r\\n') from None


@check("R02", 3, "sendprivaterealm sampai | sendprivaterealm arrives",
       "Tunggu jawaban server lain, lalu teruskan. | Wait for the other server's reply and pass it on.", needs="R01")
def realm_message_arrives(exam: Exam) -> None:
    realm_route(exam, "sendprivaterealm", to=exam.names[1])


@check("R03", 1, "sendprivaterealm kepada user yang hanya ada di sana | to a user who lives only there",
       "Realm lain yang tahu siapa usernya. | The other realm decides who its users are.", needs="R01")
def realm_user_of_there(exam: Exam) -> None:
    sender, reader = exam.person(), exam.person(1)
    text = exam.word("hanya di sana")
    sender.ok(f"sendprivaterealm {exam.names[1]} {reader.name} {text}", patience=4 * exam.patience)
    exam.arrives(reader, lambda item: item.text == text, text)


@check("R04", 1, "realm yang tidak ada | unknown realm",
       "Periksa apakah realm ada dalam tabel. | Check that the realm is in the table.", needs="R01")
def unknown_realm(exam: Exam) -> None:
    exam.person().refused("sendprivaterealm realm9 henderson halo", patience=4 * exam.patience)


@check("R05", 1, "user yang tidak ada di realm lain | an unknown user of the other realm",
       "Teruskan ERROR dari realm lain. | Pass the other realm's ERROR on.", needs="R01")
def unknown_realm_user(exam: Exam) -> None:
    exam.person().refused(f"sendprivaterealm {exam.names[1]} tidakada{exam.run} halo", patience=4 * exam.patience)


@check("R06", 1, "sendgrouprealm kepada dua orang | sendgrouprealm to two people",
       "Kirim kepada setiap nama di antara koma. | Send to each name between the commas.", needs="R01")
def realm_message_to_two(exam: Exam) -> None:
    sender, text = exam.person(), exam.word("untuk berdua")
    sender.ok(f"sendgrouprealm {exam.names[1]} henderson,lineker {text}", patience=4 * exam.patience)
    for user in ("henderson", "lineker"):
        exam.arrives(exam.there(user), lambda item: text in json.dumps(item.fields), text)


def realm_file(exam: Exam, words: str, *users: str) -> None:
    """A file goes to people of the other realm, and is the same there."""
    sender, data = exam.person(), f"isi antar realm {exam.word('')}".encode()
    name = f"f{exam.run}{next(exam.counter)}.txt"
    sender.ok(f"{words} {exam.names[1]} {','.join(users)} {name} {in_base64(data)}", patience=4 * exam.patience)
    for user in users:
        reader = exam.there(user)
        items = exam.arrives(reader, lambda item: is_file(item, name), name)
        reader.file([item for item in items if is_file(item, name)], len(data), hashlib.sha256(data).hexdigest())


def is_file(item: Item, name: str) -> bool:
    """Whether the message holds the file of that name."""
    described = item.fields.get("file")
    return name in (item.fields.get("file_name"), described.get("name") if isinstance(described, dict) else None)


@check("R07", 2, "sendfilerealm: isi yang sama | sendfilerealm: the same bytes",
       "Server Anda berkata OK dan tidak ada yang datang: lihat jawaban dari sana. | "
       "Yours says OK and nothing comes: look at the other side's reply.", needs="R01")
def realm_file_arrives(exam: Exam) -> None:
    realm_file(exam, "sendfilerealm", "henderson")


@check("R08", 1, "sendgroupfilerealm: file, bukan teks | sendgroupfilerealm: a file, not a text",
       "Di antara server pakai baris untuk file, bukan baris untuk teks. | "
       "Use the file line, not the text line, between servers.", needs="R01")
def realm_file_to_two(exam: Exam) -> None:
    realm_file(exam, "sendgroupfilerealm", "henderson", "lineker")


@check("R09", 1, "getrealminbox dua kali | getrealminbox twice",
       "getrealminbox mengambil: kosongkan sesudah dijawab. | getrealminbox takes: empty it when it was answered.",
       needs="R02")
def realm_inbox_takes(exam: Exam) -> None:
    sender, reader = exam.person(), exam.there("lineker")
    text = exam.word("sekali saja")
    sender.ok(f"sendprivaterealm {exam.names[1]} lineker {text}", patience=4 * exam.patience)
    exam.arrives(reader, lambda item: item.text == text, text)
    for name in exam.names:
        reply = reader.wire.ask(reader.line(f"getrealminbox {name}"))
        if text in json.dumps(reply):
            raise reader.wire.missed('"messages":[]', path="getrealminbox 2")


@check("R10", 1, "dan kembali | and back", "Hubungkan dua arah. | Link both ways.", needs="R01")
def realm_and_back(exam: Exam) -> None:
    realm_route(exam, "sendprivaterealm", to=exam.names[0], sender=1)


@check("R11", 1, "pesan antar realm dari orang asing | a stranger speaks as a realm",
       "Siapa pun dapat membuka port Anda: realm harus membuktikan dirinya. | "
       "Anybody can open your port: let a realm prove itself.", needs="R01")
def stranger_is_no_realm(exam: Exam) -> None:
    reader = Person(exam, 0, ("henderson", PASSWORD))
    for name in exam.names:
        text = exam.word("palsu")
        wire = exam.wire()
        wire.put(f"recvrealmprivatemsg messi {name} henderson {text}\r\n".encode())
        with contextlib.suppress(Miss):
            wire.take(exam.patience / 2)
        lines = ["inbox", *(f"getrealminbox {other}" for other in exam.names)]
        if text in json.dumps([reader.wire.ask(reader.line(line)) for line in lines]):
            raise wire.missed(f"ERROR, {text} ∉ inbox", path=f"inbox: {text}")


# ---- checks: our own features (--extra) --------------------------------------------------------


@check("T01", 1, "@TAG kembali | @TAG comes back",
       "Jawaban membawa tag permintaannya. | A reply carries the tag of its request.")
def tag_comes_back(exam: Exam) -> None:
    person = exam.person()
    person.wire.is_same(person.ok("@satu.1 inbox").get("tag"), "satu.1", "tag")


@check("T02", 1, "tag yang sama disimpan sekali | a repeated tag is stored once",
       "Cari tag sebelum menyimpan. | Look the tag up before storing.", needs="T01")
def repeated_tag(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = exam.word("sekali")
    first, second = (sender.ok(f"@ulang send {reader.name} {text}") for _ in range(2))
    sender.wire.is_same(second.get("id"), first["id"], "id")
    reader.has_only(text)


@check("T03", 1, "LF saja, huruf besar, banyak spasi | a bare LF, capitals, runs of spaces",
       "Terima LF saja; abaikan huruf besar dan spasi. | Take a bare LF; ignore case and spaces.")
def lenient_lines(exam: Exam) -> None:
    person = exam.person()
    person.wire.put(f"  INBOX   {person.token}  \n".encode())
    person.wire.is_ok(person.wire.take())


@check("T04", 1, "subscribe: pesan datang sendiri | subscribe: messages come by themselves",
       "Kirim event ke koneksi yang subscribe. | Send events to connections that subscribed.")
def subscribe_pushes(exam: Exam) -> None:
    sender, reader = exam.people(2)
    subscribe(reader)
    sender.ok(f"send {reader.name} {(text := exam.word('langsung'))}")
    reader.wire.event("message", msg=text)


def subscribe(person: Person, after: str = "") -> int:
    """From here on the connection gets events; gives `last_id`."""
    person.wire.subscribed = True
    return person.ok(f"subscribe {after}".strip())["last_id"]


@check("T05", 1, "history dari dua arah | history, both ways",
       "Simpan juga pesan yang dikirim. | Keep what was sent, too.")
def history_both_ways(exam: Exam) -> None:
    one, other = exam.people(2)
    texts = [exam.word("pergi"), exam.word("pulang")]
    one.ok(f"send {other.name} {texts[0]}")
    other.ok(f"send {one.name} {texts[1]}")
    for person, whom in ((one, other), (other, one)):
        messages = person.ok(f"history {whom.name}")["messages"]
        person.wire.is_same([message.get("msg") for message in messages], texts, "messages")


@check("T06", 1, "code setiap ERROR | the code of each ERROR", "code adalah untuk program. | code is for programs.")
def error_codes(exam: Exam) -> None:
    person = exam.person()
    for line, code in (("apaini", "unknown_command"), ("auth", "bad_arguments"), ("inbox salah", "session_not_found"),
                       (f"auth {person.name} salah", "bad_credentials"),
                       (person.line("send tidakada x"), "user_not_found"),
                       (person.line("joingroup tidakada"), "group_not_found"), (b"auth \xff x", "bad_encoding"),
                       (person.line(f"sendfile {person.name} a b'abc'"), "bad_base64"),
                       (person.line("send realm9.x@realm9 x"), "realm_not_found")):
        person.wire.refused(line, code)


@check("T07", 1, "id selalu naik | ids rise", "Satu pencacah untuk semua pesan. | One counter for all messages.")
def ids_rise(exam: Exam) -> None:
    person, other = exam.people(2)
    ids = [(person, other)[number % 2].ok(f"send {other.name} x")["id"] for number in range(6)]
    person.wire.is_same(ids, sorted(set(ids)), "id")


@check("T08", 1, "subscribe T AFTER: tidak ada yang hilang atau dobel | subscribe T AFTER misses and doubles nothing",
       "Mulai dari id itu, menurut urutan id. | Begin at that id, in order of id.", needs="T04")
def subscribe_after(exam: Exam) -> None:
    sender, reader = exam.people(2)
    subscribe(reader)
    texts = [exam.word(f"pesan {number}") for number in range(6)]
    for text in texts[:3]:
        sender.ok(f"send {reader.name} {text}")
    last = reader.wire.event("message", msg=texts[0])["id"]
    reader.wire.reset()
    for text in texts[3:]:
        sender.ok(f"send {reader.name} {text}")
    reader.wire = exam.wire()
    subscribe(reader, str(last))
    found = [reader.wire.event("message")["msg"] for _ in texts[1:]]
    reader.wire.is_same(found, texts[1:], "events")
    reader.ok("inbox")
    reader.wire.is_same([event["msg"] for event in reader.wire.events if event["event"] == "message"], [], "events")


@check("T09", 1, "getfile: sha256 | getfile: sha256", "Hitung SHA-256 dari isi file. | SHA-256 of the file's content.")
def getfile_digest(exam: Exam) -> None:
    sender, reader = exam.people(2)
    data = secrets.token_bytes(3000)
    number = sender.ok(f"sendfile {reader.name} data%20saya.bin {base64.b64encode(data).decode()}")["file"]["id"]
    reply = reader.ok(f"getfile {number}")
    reader.wire.is_same((reply["sha256"], reply["file_size"], reply["file_name"]),
                        (hashlib.sha256(data).hexdigest(), 3000, "data saya.bin"), "sha256, file_size, file_name")
    exam.person().refused(f"getfile {number}", "file_not_found")


@check("T10", 1, "U+2028 kembali | U+2028 comes back", "Baris baru dalam pesan berjalan sebagai U+2028. | "
       "A line break inside a message travels as U+2028.")
def line_separator(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = f"{exam.word('baris satu')}{LINE_BREAK}baris dua"
    sender.ok(f"send {reader.name} {text}")
    reader.has(text)


@check("T11", 1, "teks 8.193 byte | a text of 8,193 bytes",
       "too_long, dan koneksi tetap hidup. | too_long, and the connection lives.")
def text_too_long(exam: Exam) -> None:
    person = exam.person()
    person.ok(f"send {person.name} {'x' * 8192}")
    person.refused(f"send {person.name} {'x' * 8193}", "too_long")
    person.ok("inbox")


@check("T12", 1, "login salah 10 kali | 10 wrong logins",
       "Batasi tebakan setiap akun. | Limit the guesses of each account.")
def login_throttle(exam: Exam) -> None:
    name, wire = exam.person().name, exam.wire()
    for _ in range(10):
        wire.refused(f"auth {name} salah", "bad_credentials")
    if not wire.refused(f"auth {name} salah", "rate_limited").get("retry_after"):
        raise wire.missed('"retry_after":…')


@check("T13", 1, "satu teks untuk user dan password yang salah | one text for unknown user and wrong password",
       "Jangan beri tahu user mana yang ada. | Do not tell which users exist.")
def one_text_for_both(exam: Exam) -> None:
    person, wire = exam.person(), exam.wire()
    wrong, unknown = wire.refused(f"auth {person.name} salah"), wire.refused(f"auth tidakada{exam.run} salah")
    wire.is_same(unknown.get("message"), wrong.get("message"), "message")


@check("T14", 1, "history hanya untuk anggota | history is for members", "Periksa keanggotaan. | Check membership.")
def history_is_for_members(exam: Exam) -> None:
    maker, stranger = exam.people(2)
    stranger.refused(f"history {exam.group(maker)}", "not_member")


@check("T15", 1, "send kepada user@realm | send to user@realm",
       "user@realm adalah alamat lengkap. | user@realm is a full address.")
def full_address(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name}@{exam.names[0]} {(text := exam.word('alamat lengkap'))}")
    reader.has(text)


@check("T16", 1, "uid: jawaban, inbox, history | uid: reply, inbox, history",
       "Satu nama untuk satu pesan, di mana-mana. | One name for a message, everywhere.")
def one_uid(exam: Exam) -> None:
    sender, reader = exam.people(2)
    reply = sender.ok(f"send {reader.name} {(text := exam.word('bernama'))}")
    sender.wire.is_same(reply.get("uid"), f"{exam.names[0]}:{reply['id']}", "uid")
    item = reader.has(text)
    reader.wire.is_same(item.fields.get("uid"), reply["uid"], "uid")
    (message,) = reader.ok(f"history {sender.name}")["messages"]
    reader.wire.is_same(message.get("uid"), reply["uid"], "uid")


def conversation(person: Person, whom: str) -> dict:
    """The row of `conversations` with that person or group."""
    rows = person.ok("conversations")["conversations"]
    found = [row for row in rows if (row.get("with") or row.get("group", "")).partition("@")[0] == whom]
    if len(found) != 1:
        raise person.wire.missed(f'"with":"{whom}@…"', path=f"conversations: {len(found)} × {whom}")
    return found[0]


@check("T17", 1, "conversations: belum dibaca | conversations: unread",
       "Hitung yang sesudah id terakhir yang dibaca. | Count what stands behind the last id that was read.")
def unread_count(exam: Exam) -> None:
    sender, reader = exam.people(2)
    texts = [exam.word("belum dibaca") for _ in range(3)]
    for text in texts:
        sender.ok(f"send {reader.name} {text}")
    row = conversation(reader, sender.name)
    found = row["unread"], row["last"]["msg"], row["name"]
    reader.wire.is_same(found, (3, texts[-1], sender.nama), "unread, last, name")


@check("T18", 1, "read: hitungan turun, yang lain mendengar | read: the count falls, the others hear of it",
       "read mencatat sampai mana, dan mengirim event. | read notes how far, and sends an event.", needs="T17")
def read_is_heard(exam: Exam) -> None:
    sender, reader = exam.people(2)
    subscribe(sender)
    first = sender.ok(f"send {reader.name} satu")["id"]
    sender.ok(f"send {reader.name} dua")
    reader.ok(f"read {sender.name} {first}")
    event = sender.wire.event("read", id=first)
    sender.wire.is_same(event["user"].partition("@")[0], reader.name, "user")
    reader.wire.is_same(conversation(reader, sender.name)["unread"], 1, "unread")


@check("T19", 1, "search tanpa melihat huruf besar | search, whatever the case",
       "Bandingkan dengan casefold(). | Compare with casefold().")
def search_finds(exam: Exam) -> None:
    sender, reader = exam.people(2)
    text = exam.word("Belajar Socket")
    sender.ok(f"send {reader.name} {text}")
    sender.ok(f"send {reader.name} lain")
    messages = reader.ok(f"search {sender.name} belajar socket")["messages"]
    reader.wire.is_same([message["msg"] for message in messages], [text], "messages")


@check("T20", 1, "groups: jumlah anggota | groups: the count of members",
       "Satu baris setiap group, dengan count. | A row for each group, with count.")
def groups_count(exam: Exam) -> None:
    maker, member = exam.people(2)
    name = exam.group(maker, member)
    rows = [row for row in member.ok("groups")["groups"] if row["group"].partition("@")[0] == name]
    found = [(row.get("count"), row["member"], len(row["members"])) for row in rows]
    member.wire.is_same(found, [(2, True, 2)], "groups")


@check("T21", 1, "info T REALM AFTER | info T REALM AFTER", "Lanjutkan sesudah nama itu. | Go on behind that name.")
def info_goes_on(exam: Exam) -> None:
    person, _ = sorted(exam.people(2), key=lambda person: person.name)
    users = person.ok(f"info {exam.names[0]} {person.name}")["users"]
    names = [user["user"].partition("@")[0] for user in users]
    person.wire.is_same([name for name in names if name <= person.name], [], "users")


@check("T22", 1, "state dan uid antar realm | state and uid between realms",
       "state tidak disimpan: ia turunan dari antrean. | state is not stored: it follows from the queue.", needs="R02")
def state_between_realms(exam: Exam) -> None:
    sender, reader = exam.person(), exam.person(1)
    text = exam.word("antar realm")
    reply = sender.ok(f"send {reader.name}@{exam.names[1]} {text}", patience=4 * exam.patience)
    (message,) = sender.ok(f"history {reader.name}@{exam.names[1]}")["messages"]
    sender.wire.is_same((message.get("state"), message.get("uid")), ("delivered", reply.get("uid")), "state, uid")
    items = exam.arrives(reader, lambda item: item.text == text, text)
    reader.wire.is_same([item.fields.get("uid") for item in items if item.text == text], [reply.get("uid")], "uid")


# ---- checks: what survives (--run) -------------------------------------------------------------


class Program:
    """The server that `--run` names: started, stopped and killed by the examiner."""

    START_SECONDS = 15.0

    def __init__(self, command: str, place: tuple[str, int], **environment: str) -> None:
        self.words = [absolute(word) for word in shlex.split(command)]
        self.place, self.environment = place, {**os.environ, **environment}
        self.output = tempfile.TemporaryFile()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = START_SECONDS) -> None:
        """Starts it and waits until it listens. Raises Gone where it does not, or where another program does."""
        with contextlib.suppress(OSError):
            socket.create_connection(self.place, 1.0).close()
            raise Gone(f"{self.place[0]}:{self.place[1]} is taken")
        self.process = subprocess.Popen(self.words, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
                                        env=self.environment, start_new_session=True)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(self.place, 1.0).close()
                return
            time.sleep(0.05)                       # nothing announces that another program listens
        self.end(signal.SIGTERM)
        raise Gone(self.said())

    def end(self, number: int) -> None:
        """Sends a signal to it and its children, and waits; what does not end is killed."""
        if not self.process:
            return
        for each in (number, getattr(signal, "SIGKILL", number)):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, each) if hasattr(os, "killpg") else self.process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5.0)
                break
        self.process = None

    def said(self) -> str:
        """The last line of its output."""
        self.output.seek(0)
        lines = self.output.read()[-KIB:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def absolute(word: str) -> str:
    """A word of a command line; the path of a file as it is found from any folder."""
    return str(Path(word).resolve()) if "/" in word or Path(word).is_file() else word


def again(exam: Exam, number: int) -> None:
    """The server ends by that signal and starts again. Raises Miss where it does not come back."""
    exam.program.end(number)
    try:
        exam.program.start(exam.wait(Program.START_SECONDS))
    except Gone as gone:
        raise Miss("restart", "listen()", came=str(gone).encode()) from None


@check("P01", 2, "SIGTERM dan mulai lagi: akun | SIGTERM and a new start: the account",
       "Simpan akun di disk pada saat register. | Store the account on disk at register.")
def account_survives(exam: Exam) -> None:
    person = exam.person()
    again(exam, signal.SIGTERM)
    exam.wire().ok(f"auth {person.name} {person.password}")


def killed(exam: Exam, person: Person) -> None:
    """kill -9, a new start, and the person logs in again."""
    again(exam, getattr(signal, "SIGKILL", signal.SIGTERM))
    person.wire = exam.wire()
    person.token = person.login()


@check("P02", 2, "kill -9 sesudah OK: pesan | kill -9 right after OK: the message",
       "Tulis ke disk (commit) sebelum menjawab OK. | Write to disk (commit) before you answer OK.", needs="P01")
def message_survives(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('tahan banting'))}")
    killed(exam, reader)
    reader.has(text)


@check("P03", 2, "kill -9: group | kill -9: groups",
       "Simpan group dan anggotanya di disk. | Store groups and their members on disk.", needs="P01")
def group_survives(exam: Exam) -> None:
    maker, member = exam.people(2)
    name, text = exam.group(maker, member), exam.word("masih satu group")
    killed(exam, maker)
    member.wire = exam.wire()
    member.token = member.login()
    maker.ok(f"sendgroup {name} {text}")
    member.has(text)


@check("P04", 2, "kill -9: yang sudah diambil tidak datang lagi | kill -9: what was taken does not come again",
       "Simpan juga sampai mana inbox sudah diambil. | Store how far an inbox was taken, too.", needs="P02")
def taken_stays_taken(exam: Exam) -> None:
    sender, reader = exam.people(2)
    sender.ok(f"send {reader.name} {(text := exam.word('sekali'))}")
    reader.has(text)
    reader.ok("inbox")
    killed(exam, reader)
    if text in reader.texts():
        raise reader.wire.missed('"messages":{}', path=f"inbox: {text}")


# ---- checks: a client (--client) ---------------------------------------------------------------


class Call:
    """One request that a client sent: where, its bytes, its tag and its words."""

    def __init__(self, connection: socket.socket, line: bytes) -> None:
        self.connection, self.line, self.typed = connection, line, ""
        words = line.decode(errors="replace").split()
        self.tag = words.pop(0)[1:] if words and words[0].startswith("@") else ""
        self.words = words

    @property
    def word(self) -> str:
        """Its command."""
        return self.words[0].lower() if self.words else ""


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
        self.root = Path(tempfile.mkdtemp(prefix="chat-mark-"))
        self.folder = self.root / "a" / "b" / "work"             # deep, so that `../../x` stays in `root`
        self.folder.mkdir(parents=True)
        self.shown_file = self.root / "shown"
        self.words = [absolute(word) for word in shlex.split(command)]
        self.limit = LIMIT if command else 60 * LIMIT            # a person types
        self.process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self.accept, daemon=True).start()

    # -- the server

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

    def expect(self, *words: str, typed: str = "") -> Call:
        """The next request with one of these commands; whatever else a client asks meanwhile is answered OK."""
        deadline = time.monotonic() + (self.TYPING_SECONDS if not self.words else self.wait(2.5 * self.patience))
        last = b""
        while (left := deadline - time.monotonic()) > 0:
            try:
                call = self.calls.get(timeout=left)
            except queue.Empty:
                break
            if call and call.word in words:
                return call
            if call:
                last = call.line
                self.answer(call)
        raise Miss("value", f"{' / '.join(words)} …\\r\\n", typed.encode(), last, end="then_nothing")

    def frame(self, call: Call, **fields: object) -> bytes:
        """The reply to a request, as it goes on the wire."""
        tag = {"tag": call.tag} if call.tag else {}
        fields = {"status": "OK", "message": "OK", **tag, **fields}
        return json.dumps(fields, separators=(",", ":")).encode() + FRAME_END

    def answer(self, call: Call, *pieces: bytes, pause: float = 0.0, **fields: object) -> None:
        """Sends a reply, whole or in these pieces with a pause before each."""
        for piece in pieces or (self.frame(call, **fields),):
            if pause:
                time.sleep(pause)
            self.note(f">{self.connections.index(call.connection) + 1}", piece)
            with contextlib.suppress(OSError):
                call.connection.sendall(piece)

    # -- the client

    def start(self) -> None:
        """Starts the client anew, with nothing in its folder but a file to send."""
        self.stop()
        self.calls = queue.Queue()
        (self.folder / "file.txt").write_bytes(FILE)
        host, port = self.place[0], str(self.place[1])
        if not self.words:
            self.asked = True
            print(say("start", self.language, f"{host}:{port}"), flush=True)
            return
        settings = {"SERVER_IP": host, "SERVER_PORT": port, "CHAT_SERVER": f"{host}:{port}", "PYTHONUNBUFFERED": "1",
                    "CHAT_DOWNLOADS": str(self.folder), "PYTHONIOENCODING": "utf-8"}
        with self.shown_file.open("wb") as output:     # a file: a pipe that nobody reads would block the client
            self.process = subprocess.Popen(self.words, stdin=subprocess.PIPE, stdout=output, stderr=output,
                                            cwd=self.folder, env={**os.environ, **settings}, start_new_session=True)

    def stop(self) -> None:
        """Ends the client and its connections."""
        self.token, self.asked = "", False
        if self.process:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL) if hasattr(os, "killpg") else self.process.kill()
            self.process.wait()
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process = None
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def type(self, line: str) -> None:
        """Types a line, or asks a person to."""
        if not self.words:
            print(say("type", self.language, line), flush=True)
        elif self.process:
            self.last_sent = self.current, line.encode()
            with contextlib.suppress(OSError):     # it has ended: no request will come
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()

    def ask(self, line: str) -> Call:
        """Types a command; its request."""
        self.type(line)
        call = self.expect(line.split()[0], typed=line)
        call.typed = line
        return call

    def login(self) -> Call:
        """Types the login and answers it with a token: its request."""
        call = self.ask("auth messi surabaya")
        self.token = secrets.token_hex(16)
        self.tokens.add(self.token)
        self.answer(call, tokenid=self.token, user="messi@mesin1")
        return call

    def ready(self) -> None:
        """A client that runs and is logged in."""
        if not self.token or self.has_ended():
            self.start()
            self.login()

    def has_ended(self) -> bool:
        """Whether the process that we started has ended, or nobody was asked to start a client yet."""
        return not self.asked if not self.words else self.process is None or self.process.poll() is not None

    def shows(self, text: str, seconds: float | None = None) -> bool:
        """Whether the client prints that text in time. Of a client that a person started it is believed."""
        deadline = time.monotonic() + self.wait(seconds)
        while self.words and text not in self.shown():
            if time.monotonic() > deadline or self.has_ended() and text not in self.shown():
                return False
            time.sleep(0.02)                       # nothing announces that a file has grown
        return True

    def shown(self) -> str:
        """All that the client has printed."""
        return self.shown_file.read_text("utf-8", "replace")

    def must_show(self, text: str, seconds: float | None = None) -> None:
        """The client prints that text, and its next command works."""
        if not self.shows(text, seconds):
            raise Miss("value", text, self.last_sent[1], self.shown()[-300:].encode(), path="stdout")
        self.works()

    def works(self) -> None:
        """The next command gets through, and its reply is shown.

        The reply comes after a pause: a client that left bytes of the reply before unread takes them for this one.
        """
        text = marker()
        call = self.ask("inbox")
        self.answer(call, inbox_reply(self, call, text), pause=0.3)
        if not self.shows(text):
            raise Miss("value", text, call.typed.encode(), self.shown()[-300:].encode(), path="stdout")

    def goes_on(self) -> bool:
        return bool(self.tokens)                   # K02 was missed by its CR LF alone

    def close(self, missed: bool) -> None:
        if missed and self.current != "K02":       # the next check begins with a new client
            self.stop()

    def cpu_share(self, seconds: float) -> float:
        """Seconds of computing in each second, over a while; 0 where the system does not say."""
        def used() -> float:
            try:
                fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
                return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            except (OSError, AttributeError):
                return 0.0
        before = used()
        time.sleep(seconds)
        return max(used() - before, 0.0) / seconds

    def finish(self) -> None:
        """Leaves nothing behind."""
        self.stop()
        self.listener.close()
        shutil.rmtree(self.root, ignore_errors=True)


FILE = b"isi file \xc3\xa9\x00\xff untuk diperiksa\n"


def client_check(identity: str, name: str, sentence: str) -> Callable:
    """A check of a client: two points; without a login (K02) nothing else can be seen."""
    return check(identity, 2, name, sentence, needs="" if identity in ("K01", "K02") else "K02")


def spelled(call: Call, *words: str) -> None:
    """The request has these words behind its command; `*` stands for any word, spaces are free."""
    expected = " ".join([call.word, *words])
    found = call.words[1:]
    if len(found) != len(words) or any(word not in ("*", other) for word, other in zip(words, found, strict=False)):
        raise Miss("value", f"{expected}\\r\\n", call.typed.encode(), call.line)


@client_check("K01", "terhubung, diam | connects, sends nothing unasked",
              "Kirim hanya yang diketik. | Send only what was typed.")
def client_is_silent(exam: ClientExam) -> None:
    exam.start()
    if not exam.words:
        return
    with contextlib.suppress(queue.Empty):
        call = exam.calls.get(timeout=0.5)
        raise Miss("value", "", came=call.line if call else b"", end="" if call else "then_closed")


@client_check("K02", "auth, diakhiri CR LF | auth, ended by CR LF",
              "Kirim `auth USER PASSWORD` dan akhiri dengan \\r\\n. | "
              "Send `auth USER PASSWORD` and end it with \\r\\n.")
def client_logs_in(exam: ClientExam) -> None:
    if exam.token or exam.has_ended():
        exam.start()
    call = exam.login()
    spelled(call, "messi", "surabaya")
    if not call.line.endswith(b"\r\n"):
        raise Miss("value", "auth messi surabaya\\r\\n", call.typed.encode(), call.line, len(call.line) - 1)


@client_check("K03", "memakai token | uses the token of the reply",
              "Simpan tokenid dari jawaban dan kirim bersama setiap command. | "
              "Keep the tokenid of the reply and send it with each command.")
def client_uses_the_token(exam: ClientExam) -> None:
    exam.ready()
    call = exam.ask("inbox")
    exam.answer(call, messages={})
    spelled(call, exam.token)


def typed_and_sent(exam: ClientExam, line: str) -> None:
    """A typed line stands on the wire with the token put in; which token, is looked at by K03 alone."""
    exam.ready()
    call = exam.ask(line)
    exam.answer(call, id=1, uid="mesin1:1", messages={})
    spelled(call, "*", *line.split()[1:])
    if call.word == "logout":
        exam.token = ""                            # the next check logs in again


TYPED = ("send henderson hello world", "sendgroup jarkom3 hallo guys welcome", "addgroup jarkom3", "joingroup jarkom3",
         "inbox", "logout")
for number, typed in enumerate(TYPED, 4):
    client_check(f"K{number:02}", f"{typed.split()[0]} | {typed.split()[0]}",
                 "Susunannya seperti di tabel command: command, token, lalu argumennya. | "
                 "As in the table of commands: the command, the token, then its arguments.",
                 )(functools.partial(typed_and_sent, line=typed))


@client_check("K10", "sendfile: base64 dari filenya | sendfile: base64 of the file",
              "Baca file dengan \"rb\" dan kirim base64-nya. | Open the file with \"rb\" and send its base64.")
def client_sends_file(exam: ClientExam) -> None:
    exam.ready()
    call = exam.ask("sendfile henderson file.txt")
    exam.answer(call, id=1, uid="mesin1:1", file={"id": 1, "name": "file.txt", "size": len(FILE)})
    spelled(call, "*", "henderson", "file.txt", "*")
    content = re.sub(r"^b'(.*)'$", r"\1", call.words[4])
    if content != base64.b64encode(FILE).decode():
        raise Miss("value", base64.b64encode(FILE).decode(), call.typed.encode(), call.line, path="base64")


def message(text: str, **fields: object) -> dict:
    """A message as a server gives it."""
    return {"id": 7, "uid": "mesin1:7", "ts": "2026-01-02T03:04:05.678Z", "from": "henderson@mesin1",
            "from_name": "Jordan Henderson", "to": "messi@mesin1", "msg_from": "Jordan Henderson",
            "msg_to": "Lionel Messi", "msg": text, **fields}


def marker() -> str:
    """A word that the client cannot have shown before."""
    return f"kata{secrets.token_hex(4)}"


def inbox_reply(exam: ClientExam, call: Call, *texts: str) -> bytes:
    """The reply to `inbox` with these texts from henderson."""
    return exam.frame(call, messages={"henderson@mesin1": [message(text) for text in texts]})


@client_check("K11", "jawaban byte demi byte | a reply in one-byte pieces",
              "Satu recv bukan satu jawaban: kumpulkan sampai \\r\\n\\r\\n. | "
              "One recv is not one reply: collect until \\r\\n\\r\\n.")
def client_takes_single_bytes(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("inbox"), marker()
    exam.answer(call, *(bytes([byte]) for byte in inbox_reply(exam, call, text)), pause=0.001)
    exam.must_show(text)


@client_check("K12", "akhir jawaban dipotong di tengah | the reply's end is cut in the middle",
              "Carilah \\r\\n\\r\\n dalam semua yang terkumpul, bukan dalam potongan terakhir. | "
              "Look for \\r\\n\\r\\n in all that was collected, not in the last piece.")
def client_takes_a_cut_end(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("inbox"), marker()
    frame = inbox_reply(exam, call, text)
    exam.answer(call, frame[:-2], frame[-2:], pause=0.2)
    exam.must_show(text)


@client_check("K13", "UTF-8 dipotong di tengah huruf | UTF-8 cut in a character",
              "Decode jawaban yang utuh, bukan potongan. | Decode the whole reply, not its pieces.")
def client_survives_cut_utf8(exam: ClientExam) -> None:
    exam.ready()
    call = exam.ask("inbox")
    fields = json.loads(inbox_reply(exam, call, "café"))
    frame = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + FRAME_END
    at = frame.index("é".encode()) + 1
    exam.answer(call, frame[:at], frame[at:], pause=0.2)
    exam.works()


@client_check("K14", "jawaban 100 KB | a reply of 100 KB",
              "Kumpulkan dalam loop, tanpa batas yang kecil. | Collect in a loop, without a small limit.")
def client_takes_a_long_reply(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("inbox"), marker()
    exam.answer(call, inbox_reply(exam, call, *("x" * 2000 for _ in range(50)), text))
    exam.must_show(text, 2 * exam.patience)


@client_check("K15", "ERROR ditampilkan, lalu lanjut | an ERROR is shown, and the client goes on",
              "Tampilkan message dari ERROR dan kembali ke prompt. | "
              "Show the ERROR's message and go back to the prompt.")
def client_shows_errors(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("send tidakada halo"), marker()
    exam.answer(call, status="ERROR", code="user_not_found", message=f"User tidak ditemukan {text}")
    exam.must_show(text)


@client_check("K16", "kunci JSON yang tidak dikenal | unknown JSON keys",
              "Pakai kunci yang Anda kenal, abaikan yang lain. | Use the keys you know, ignore the others.")
def client_ignores_unknown_keys(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("inbox"), marker()
    exam.answer(call, messages={"henderson@mesin1": [message(text, besok={"a": [1, None]})]}, more=False, baru=[{}])
    exam.must_show(text)


@client_check("K17", "server menutup koneksi (FIN) | the server closes (FIN)",
              "recv memberi b'' pada akhir koneksi: keluar dari loop. | "
              "recv gives b'' at the end of the connection: leave the loop.")
def client_notices_fin(exam: ClientExam) -> None:
    exam.ready()
    call = exam.ask("inbox")
    with contextlib.suppress(OSError):
        call.connection.shutdown(socket.SHUT_WR)
    share = exam.cpu_share(1.0)
    noticed(exam, call)
    if share >= 0.2:
        raise Miss("value", "< 0.2 CPU s/s", path=f"{share:.2f} CPU s/s")


def noticed(exam: ClientExam, call: Call) -> None:
    """After a break the client ends, or says so, or asks again on a new connection."""
    if not exam.words or exam.has_ended():
        exam.stop()
        return
    before = exam.shown()
    exam.type("inbox")
    deadline = time.monotonic() + exam.wait(2.5 * exam.patience)
    while time.monotonic() < deadline and not exam.has_ended():
        with contextlib.suppress(queue.Empty):
            again = exam.calls.get(timeout=0.1)
            if again and again.connection is not call.connection:
                exam.answer(again, messages={})
                exam.stop()
                return
        if exam.shown() != before:
            exam.stop()
            return
    if not exam.has_ended():
        exam.stop()
        raise Miss("value", "end, message or reconnect", path="nothing")
    exam.stop()


@client_check("K18", "koneksi putus (RST) | the connection breaks (RST)",
              "recv dan send melempar ConnectionError: tangkap dan katakan. | "
              "recv and send raise ConnectionError: catch it and say so.")
def client_notices_rst(exam: ClientExam) -> None:
    exam.ready()
    call = exam.ask("inbox")
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        call.connection.shutdown(socket.SHUT_RD)       # wakes the thread that reads it, so that close takes effect
    call.connection.close()
    noticed(exam, call)
    if exam.words and "Traceback" in exam.shown():
        raise Miss("value", "a message", came=exam.shown()[-200:].encode(), path="stdout")


@client_check("K19", "jawaban sesudah 3 detik | a reply after 3 s",
              "Tunggu jawabannya: server boleh sibuk. | Wait for the reply: a server may be busy.")
def client_waits(exam: ClientExam) -> None:
    exam.ready()
    call, text = exam.ask("inbox"), marker()
    exam.answer(call, inbox_reply(exam, call, text), pause=3.0)
    exam.must_show(text)


@client_check("K20", "inbox dengan file: isi sama, nama jahat | inbox with a file: same bytes, hostile name",
              "Tulis base64-nya yang sudah di-decode, dengan os.path.basename(nama). | "
              "Write its base64 decoded, under os.path.basename(name).")
def client_saves_files(exam: ClientExam) -> None:
    exam.ready()
    name, data = f"{marker()}.bin", secrets.token_bytes(500)
    described = {"id": 17, "name": f"../../{name}", "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    content = {"file_name": f"../../{name}", "file_size": len(data), "sha256": described["sha256"],
               "file_content": base64.b64encode(data).decode()}
    item = message("", file=described, **content)
    exam.answer(exam.ask("inbox"), messages={"henderson@mesin1": [item]})
    if not exam.words:
        return
    exam.works()
    if not saved(exam, name, data):
        exam.type("getfile 17")
        with contextlib.suppress(Miss):
            exam.answer(exam.expect("getfile"), **content)
            exam.works()
        if not saved(exam, name, data):
            raise Miss("value", f"{name}: {len(data)} bytes", path="no such file")


def saved(exam: ClientExam, name: str, data: bytes) -> bool:
    """Whether the file lies in the client's folder with its bytes. Raises Miss where it lies elsewhere."""
    for path in exam.root.rglob("*"):
        if path.is_file() and path != exam.shown_file and path.read_bytes() == data:
            if exam.folder not in path.parents:
                raise Miss("value", f"{exam.folder.name}/{name}", path=str(path.relative_to(exam.root)))
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
        """Points, and how many there could be."""
        return total(self.counted)

    @property
    def seconds(self) -> float:
        """How long the checks took."""
        return sum(result.seconds for result in self.results)

    @property
    def was_judged(self) -> bool:
        """Whether anything could be said at all."""
        return self.exam.connected and any(not result.skipped for result in self.results)

    def status(self, percent: float) -> int:
        """The exit status."""
        score, most = self.score
        if not self.was_judged:
            return NOT_JUDGED
        return FULL_MARKS if score >= most * percent / 100 else LESS

    def sections(self) -> str:
        """`framing 12/21 · commands 34/40`: the points of each section, the weakest first."""
        parts = []
        for letter, title in SECTIONS.items():
            if found := [result for result in self.results if result.check.section == letter]:
                score, most = total(found)
                parts.append((score / most, f"{in_language(title, self.language)} {score}/{most}"))
        return " · ".join(text for _, text in sorted(parts, key=lambda part: part[0]))

    def summary(self) -> str:
        """The line that says it all."""
        score, most = self.score
        passed = sum(result.passed for result in self.counted)
        return (f"{score}/{most} {say('points', self.language)}, {passed} {say('of', self.language)} "
                f"{len(self.counted)} {say('checks', self.language)}, {self.seconds:.0f} s     {self.sections()}")

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
        """Why a check was not tested."""
        key, _, value = result.skipped.partition(":")
        return say(key, self.language, value)

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
                data = data.replace(word, "•••".encode())
                rest = data.rfind(word[:8])
                data = data if rest < 0 or not word.startswith(data[rest:]) else data[:rest] + "•••".encode()
        return data

    def details(self, result: Result, most: int = SHOWN) -> list[str]:
        """A miss: what was sent, expected and came, a caret, and the sentence that helps."""
        miss, width, lines = result.miss, 10, []

        def row(key: str, text: str) -> None:
            lines.append(f"{say(key, self.language):<{width}} {text}")

        if miss.sent:
            row("sent", self.readable(miss.sent, None, most)[0])
        if not self.brief:
            row("expected", printable(miss.expected) or say("nothing", self.language))
        text, column = self.readable(miss.came, miss.at, most)
        end = say(miss.end, self.language) if miss.end else "" if text else say("nothing", self.language)
        row("came", f"{text}   {end}".strip())
        if column is not None:
            lines.append(" " * (width + 1 + column) + "^")
        if miss.path:
            lines.append(" " * (width + 1) + printable(miss.path))
        lines.append(result.sentence(self.language))
        return lines


def printable(data: bytes | str) -> str:
    """Bytes or text as text that cannot steer a terminal, the ends of lines written out."""
    text = data if isinstance(data, str) else visible(data)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def total(results: Iterable[Result]) -> tuple[int, int]:
    """Points, and how many there could be."""
    results = list(results)
    return sum(result.score for result in results), sum(result.check.points for result in results)


class Terminal:
    """The table as it grows: a line a check, the misses at the end."""

    COLOURS = {"passed": "32", "missed": "31;1", "skipped": "33"}

    def __init__(self, report: Report, count: int) -> None:
        self.report, self.count = report, count
        self.live = sys.stdout.isatty()

    def running(self, number: int, row: Check) -> None:
        """Says which check is under way, on a terminal."""
        if self.live:
            print(f"\r\033[K{number}/{self.count} {row.id}", end="", flush=True)

    def done(self, result: Result) -> None:
        """A check's line."""
        language, row = self.report.language, result.check
        kind = "passed" if result.passed else "skipped" if result.skipped else "missed"
        word = f"{say(kind, language):<5}"
        if self.live:
            word = f"\r\033[K{row.id} \033[{self.COLOURS[kind]}m{word}\033[0m"
        else:
            word = f"{row.id} {word}"
        why = f"  ({self.report.why_skipped(result)})" if result.skipped else ""
        print(f"{word} {result.score}/{row.points}  {in_language(row.name, language)}{why}", flush=True)

    def end(self) -> None:
        """The misses, and the sum."""
        for result in self.report.results:
            if result.miss:
                print(f"\n{result.check.id}  {in_language(result.check.name, self.report.language)}")
                print("\n".join(f"     {line}" for line in self.report.details(result)))
        if verdict := self.report.verdict():
            print(f"\n{verdict}")
        print(f"\n{self.report.summary()}", flush=True)


def escape(text: str) -> str:
    """Text within HTML, and within a table of Markdown."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")


def exchange_lines(report: Report, result: Result) -> list[list[str]]:
    """Every byte of a check: `[">1", "inbox …"]`, an arrow with the number of its connection."""
    return [[arrow, report.readable(data, None, KEPT)[0]] for arrow, data in result.exchange]


def as_markdown(report: Report) -> str:
    """The report for people: a table, and a block that opens for each miss."""
    language = report.language
    lines = [f"# {escape(report.name or report.target)}", "", f"{report.when}, {escape(report.target)}", "",
             f"**{escape(report.summary())}**", ""]
    if verdict := report.verdict():
        lines += [f"> {escape(verdict)}", ""]
    lines += [f"| | | {say('points', language)} | |", "|---|---|---|---|"]
    for result in report.results:
        kind = "passed" if result.passed else "skipped" if result.skipped else "missed"
        why = report.why_skipped(result) if result.skipped else ""
        lines.append(f"| {result.check.id} | {say(kind, language)} | {result.score}/{result.check.points} | "
                     f"{escape(in_language(result.check.name, language))} {escape(why)} |")
    for result in report.results:
        if result.miss:
            title = escape(f"{result.check.id} {in_language(result.check.name, language)}")
            lines += ["", f"<details><summary>{title}</summary>", "", block(report.details(result, KEPT)),
                      f"<p>{say('exchange', language)}</p>", "",
                      block(" ".join(row) for row in exchange_lines(report, result)), "", "</details>"]
    return "\n".join(lines) + "\n"


def block(lines: Iterable[str]) -> str:
    """Lines in Markdown as they stand."""
    return "<pre>" + "\n".join(escape(line) for line in lines) + "</pre>"


def as_json(report: Report) -> str:
    """Gradescope's results.json, with the bytes of each check in `extra_data`."""
    tests = []
    for result in report.results:
        row, miss = result.check, result.miss
        extra: dict[str, object] = {"exchange": exchange_lines(report, result), "seconds": round(result.seconds, 3)}
        output = report.why_skipped(result) if result.skipped else ""
        if miss:
            output = block(report.details(result, KEPT))
            extra |= {"sent": report.readable(miss.sent, None, KEPT)[0],
                      "came": report.readable(miss.came, None, KEPT)[0],
                      "how": miss.how, **({} if report.brief else {"expected": miss.expected})}
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
    for letter, results in itertools.groupby(report.results, key=lambda result: result.check.section):
        rows = list(results)
        suite = ElementTree.SubElement(
            root, "testsuite", name=in_language(SECTIONS[letter], ENGLISH), tests=str(len(rows)), errors="0",
            failures=str(sum(bool(row.miss) for row in rows)), skipped=str(sum(bool(row.skipped) for row in rows)),
            time=f"{sum(row.seconds for row in rows):.3f}")
        for row in rows:
            case = ElementTree.SubElement(suite, "testcase", classname=f"progjar.{letter}", time=f"{row.seconds:.3f}",
                                          name=f"{row.check.id} {in_language(row.check.name, report.language)}")
            if row.miss:
                failure = ElementTree.SubElement(case, "failure", message=row.sentence(report.language))
                failure.text = "\n".join(report.details(row, KEPT))
            elif row.skipped:
                ElementTree.SubElement(case, "skipped", message=report.why_skipped(row))
    return ElementTree.tostring(root, "unicode", xml_declaration=True) + "\n"


def append_csv(path: Path, report: Report) -> None:
    """One line for this run; the first run of a file writes the header."""
    score, most = report.score
    row = {"name": report.name, "target": report.target, "when": report.when, "score": score, "max": most,
           "judged": int(report.was_judged), "seconds": round(report.seconds),
           **{result.check.id: result.score for result in report.results if not result.skipped}}
    columns = [*list(row)[:7], *(each.id for each in CHECKS)]
    with path.open("a+", encoding="utf-8", newline="") as stream:
        stream.seek(0)
        header = next(csv.reader(io.StringIO(stream.readline())), None)
        writer = csv.DictWriter(stream, header or columns, extrasaction="ignore")
        if header is None:
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
    check_options(parser, options)
    return options


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends the program where the options do not fit together."""
    try:
        options.places = [parse_host_port(place) for place in options.places]
    except ValueError as error:
        parser.error(str(error))
    options.report = [Path(path) for path in options.report]
    options.language = LANGUAGES[options.language]
    options.names = options.names.lower().split(",")
    options.only = [word.strip().upper() for word in options.only.split(",") if word.strip()]
    known = {row.id for row in CHECKS} | set(SECTIONS)
    if unknown := set(options.only) - known:
        parser.error(f"--only: no check {', '.join(sorted(unknown))}")
    if wrong := [str(path) for path in options.report if path.suffix not in (*WRITERS, ".csv")]:
        parser.error(f"--report: .md, .json, .xml or .csv, not {', '.join(wrong)}")
    if not 0 < options.patience <= 60:
        parser.error("--patience: more than 0, at most 60")
    if options.pupils and (options.places or options.client or options.run or options.report):
        parser.error("--class takes its addresses from the file, and its reports go to --folder")
    if not options.pupils and not options.client and not 1 <= len(options.places) <= 2:
        parser.error("one or two HOST:PORT, or --client, or --class")
    if len(options.names) < max(len(options.places), 1):
        parser.error("--names: one for each address")


def chosen(options: argparse.Namespace, count: int) -> list[Check]:
    """The checks that are asked for, of a client or of that many servers."""
    def is_chosen(row: Check) -> bool:
        if row.section == "K" or options.client:
            fits = row.section == "K" and options.client
        elif needs_two(row):
            fits = count > 1
        else:
            fits = row.section != "P" or bool(options.run)
        if options.only:
            return fits and (row.id in options.only or row.section in options.only)
        return fits and (row.section != "T" or options.extra)
    return [row for row in CHECKS if is_chosen(row)]


def needs_two(row: Check) -> bool:
    """Whether it, or what it needs, takes two servers."""
    return row.needs == "2" or any(needs_two(other) for other in CHECKS if other.id == row.needs)


def mark(report: Report, rows: list[Check], terminal: Terminal | None = None) -> Report:
    """Runs the checks and fills the report."""
    for number, row in enumerate(rows, 1):
        if terminal:
            terminal.running(number, row)
        report.results.append(report.exam.result_of(row))
        if terminal:
            terminal.done(report.results[-1])
    if terminal:
        terminal.end()
    return report


def mark_one(options: argparse.Namespace) -> int:
    """Marks a server or a client; the exit status."""
    program = Program(options.run, options.places[0]) if options.run and not options.client else None
    if options.client:
        exam: Examination = ClientExam(options.listen, options.run, options.patience, options.language)
        target = options.run or "client"
    else:
        exam = Exam(options.places, options.names, options.patience, program)
        target = " ".join(f"{host}:{port}" for host, port in options.places)
    report = Report(target, exam, options.language, options.brief)
    try:
        if program:
            program.start()
            exam.started = time.monotonic()
        rows = chosen(options, len(options.places))
        mark(report, rows, Terminal(report, len(rows)))
        for path in options.report:
            write_report(path, report)
        return report.status(options.percent)
    except Gone as gone:
        print(say("did_not_start", options.language, gone))
        return NOT_JUDGED
    finally:
        if program:
            program.end(signal.SIGTERM)
        if isinstance(exam, ClientExam):
            exam.finish()


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
    folder = options.folder or options.pupils.with_name(f"{options.pupils.stem}-reports")
    folder.mkdir(parents=True, exist_ok=True)
    lock, width = threading.Lock(), max((len(name) for name, _ in read_class(options.pupils)), default=0)

    def mark_pupil(pupil: tuple[str, list[tuple[str, int]]]) -> int:
        name, places = pupil
        exam = Exam(places, options.names, options.patience)
        target = " ".join(f"{host}:{port}" for host, port in places)
        report = Report(target, exam, options.language, options.brief, name)
        mark(report, chosen(options, len(places)))
        file_name = re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "_"
        with lock:
            write_report(folder / f"{file_name}.md", report)
            write_report(folder / "class.csv", report)
            print(f"{name:<{width}}  {report.summary() if report.was_judged else report.verdict()}", flush=True)
        return report.status(options.percent)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        statuses = list(pool.map(mark_pupil, read_class(options.pupils)))
    if set(statuses) <= {NOT_JUDGED}:
        return NOT_JUDGED
    return FULL_MARKS if set(statuses) == {FULL_MARKS} else LESS


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
