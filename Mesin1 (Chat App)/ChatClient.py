"""The chat client: `python3 ChatClient.py` opens a page, `--prompt` a command line, `--demo` two realms at a glance.

In this order, each part using only what stands above it:
  texts              what a person reads, in Indonesian and English
  frames, files      bytes that arrive -> frames; a file that arrives -> a name on disk
  ServerConnection   requests, events, reconnecting; knows neither terminal nor page
  typed commands     a line as a person types it -> a request -> lines to show
  prompt             the terminal, or a script from a pipe
"""
from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import ctypes
import glob
import hashlib
import itertools
import json
import logging
import os
import random
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import (
    COMMANDS,
    ENCODE_SIZE,
    FRAME_END,
    KEEPALIVE_SECONDS,
    LINE_BREAK,
    PUBLIC_COMMANDS,
    REALMS,
    RECEIVE_SIZE,
    ROOT,
    USER,
    Base64Decoder,
    ChatError,
    Command,
    add_option,
    decode_file_name,
    encode_file,
    encode_file_name,
    help_text,
    parse_host_port,
    realm_of_folder,
    realm_table,
    split_arguments,
)

log = logging.getLogger("client")

CONNECT_SECONDS = 10           # for a server to take a connection; a lost packet or two are made good by then
RETRY_FIRST = 0.5              # seconds until a lost connection is tried again, doubled at each failure
RETRY_MOST = 10.0              # so that a class whose server restarts is back within ten seconds
FRAME_HEAD = 2048              # bytes of a frame that an observer is shown: a message whole, of a file the beginning

# ---- texts -------------------------------------------------------------------------------------

TEXTS = {                      # key: (Indonesian, English)
    "banner": ("Chat realm {realm}, server {place}. Mulai dengan: auth USER PASSWORD. Bantuan: help. Keluar: Ctrl-D.",
               "Chat realm {realm}, server {place}. Begin with: auth USER PASSWORD. Help: help. Leave: Ctrl-D."),
    "welcome": ("Selamat datang, {user}", "Welcome, {user}"),
    "unreachable": ("Tidak dapat terhubung ke {place}", "Cannot reach {place}"),
    "lost": ("Koneksi terputus, dicoba lagi dalam {seconds} detik", "Connection lost, next attempt in {seconds} s"),
    "back": ("Terhubung kembali", "Connected again"),
    "ended": ("Sesi telah berakhir, silakan login lagi", "The session has ended, please log in again"),
    "queued": ("menunggu realm tujuan", "waiting for the other realm"),
    "queued_count": ("{count} menunggu", "{count} waiting"),
    "nothing_new": ("Tidak ada pesan baru", "No new messages"),
    "nothing": ("Kosong", "Nothing here"),
    "more": ("masih ada lagi", "there is more"),
    "saved": ("Disimpan: {path} ({size})", "Saved: {path} ({size})"),
    "no_file": ("Tidak dapat membaca file {path}", "Cannot read the file {path}"),
    "damaged": ("Isi file rusak dalam perjalanan", "The file was damaged on its way"),
    "failed": ("GAGAL: {reason}", "FAILED: {reason}"),
    "cancelled": ("Dibatalkan", "Cancelled"),
    "waiting": ("Belum terjawab, ditunggu: {line}", "Not answered yet, waiting: {line}"),
    "online": ("{user} online", "{user} is online"),
    "offline": ("{user} offline", "{user} is offline"),
    "created": ("{user} membuat group {group}", "{user} made the group {group}"),
    "joined": ("{user} masuk ke group {group}", "{user} joined the group {group}"),
    "left": ("{user} keluar dari group {group}", "{user} left the group {group}"),
    "up": ("Realm {realm} terhubung", "Realm {realm} is connected"),
    "down": ("Realm {realm} terputus", "Realm {realm} is cut off"),
    "file": ("[file {id}] {name}, {size}", "[file {id}] {name}, {size}"),
    "members": ("anggota", "members"),
}
INDONESIAN, ENGLISH = 0, 1


def say(key: str, language: int = INDONESIAN, **fields: object) -> str:
    """A text of the block above in one of the two languages."""
    return TEXTS[key][language].format(**fields)


def show_size(size: float) -> str:
    """A number of bytes for people: `3.2 KB`."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            break
        size, unit = size / 1000, "GB"
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def local_time(ts: str) -> datetime:
    """A message's `ts` on this computer's clock."""
    return datetime.fromisoformat(ts.replace("Z", "+00:00")).astimezone()


# ---- frames and files ----------------------------------------------------------------------------

Progress = Callable[[int, int], None]              # bytes done, and of how many

class Refused(Exception):
    """An ERROR reply, or what the client itself refuses before it asks the server."""

    def __init__(self, reply: dict) -> None:
        super().__init__(reply.get("message", ""))
        self.reply = reply
        self.code = reply.get("code", "")

    @classmethod
    def locally(cls, code: str, detail: str = "") -> Refused:
        """The refusal that the server would give."""
        return cls(ChatError(code, detail).reply())


class Frame(NamedTuple):
    """One request, reply or event as it crossed the connection. Its head may hold a password or token: see `mask`."""

    when: float
    outgoing: bool
    head: bytes
    size: int
    elapsed: float | None      # of a reply: seconds since its request


class FrameBuffer:
    """Bytes as they arrive -> whole frames, each byte searched once.

    With a `sink`, the content of a file goes there in pieces, so that a `getfile` reply of any size needs no memory:
    `begin` is given the reply's other fields, `write` the base64.
    """

    CONTENT = b'"file_content":"'                  # a quote within a JSON string is escaped: this is nothing else

    def __init__(self, sink: ArrivingFile | None = None) -> None:
        self._sink = sink
        self._data = bytearray()
        self._searched = 0
        self._head: bytes | None = None            # the reply up to its content, while that is passing through

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that are whole by now, without their end."""
        self._data += data
        if self._sink and self._take_content():
            return
        while (end := self._data.find(FRAME_END, self._searched)) >= 0:
            yield bytes(self._data[:end])
            del self._data[: end + len(FRAME_END)]
            self._searched = 0
        self._searched = max(0, len(self._data) - len(FRAME_END) + 1)

    def _take_content(self) -> bool:
        """Whether the data was a piece of a file, with more to come."""
        if self._head is None:
            at = self._data.find(self.CONTENT)
            if at < 0:
                return False
            self._head = bytes(self._data[: at + len(self.CONTENT)])
            del self._data[: len(self._head)]
            self._sink.begin(json.loads(self._head + b'"}'))
        end = self._data.find(b'"')
        self._sink.write(bytes(self._data if end < 0 else self._data[:end]))
        if end < 0:
            self._data.clear()
            return True
        self._data[:end] = self._head              # what is left reads as a reply with an empty file
        self._sink = None
        return False


class ArrivingFile:
    """Base64 in pieces -> a file in `folder` that is there whole, and its SHA-256 right, or not at all."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._progress = progress
        self._done = self._size = 0
        self._digest = hashlib.sha256()
        self._decoder = Base64Decoder()
        self._file = (folder / f".{secrets.token_hex(8)}.part").open("xb")

    def begin(self, reply: dict) -> None:
        """Hears of the file that is about to come."""
        self._size = reply["file_size"]

    def write(self, text: bytes) -> None:
        """Takes a piece of base64."""
        self._store(self._decoder.feed(text))

    def finish(self, reply: dict) -> Path:
        """Checks the file and gives it its name, or another if there is one of that name. Raises Refused."""
        self._store(self._decoder.finish())
        self._file.close()
        if self._digest.hexdigest() != reply["sha256"]:
            raise Refused({"code": "bad_base64", "message": say("damaged")})
        path = reserve_name(self._folder, reply["file_name"])
        os.replace(self._file.name, path)
        return path

    def discard(self) -> None:
        """Leaves nothing behind, unless `finish` has been reached."""
        self._file.close()
        Path(self._file.name).unlink(missing_ok=True)

    def _store(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._done += len(data)
        self._progress(self._done, self._size)


def reserve_name(folder: Path, name: str) -> Path:
    """Makes an empty file called `name`, or `name (2)` …: never outside `folder`, never one that exists."""
    name = re.sub(r'[<>:"|?*/\\]', "_", decode_file_name(name))
    stem, ending = os.path.splitext(name)
    for count in itertools.count(1):
        path = folder / (name if count == 1 else f"{stem[:60]} ({count}){ending}")
        try:
            path.open("xb").close()
            return path
        except FileExistsError:
            continue


# ---- ServerConnection --------------------------------------------------------------------------


class ConnectionLost(ConnectionError):
    """The server can't be reached, or is gone in the middle."""


@dataclass
class Pending:
    """A request that has no answer yet."""

    line: bytes
    answer: asyncio.Future
    patient: bool              # sent again after a break, instead of failing
    sent: float = 0.0


class ServerConnection:
    """A client's connection to its server, kept up across breaks. All of it runs in one asyncio loop.

    `await request("send", "messi", "hello")` gives the reply's fields or raises Refused. After login a request waits
    out a break and is sent again under its tag, by which the server knows a send that it has stored already; before
    login it raises OSError instead. Files go over connections of their own, so that talk does not wait for them.

    After `subscribe`, `on_event` is called with each event as it came, each message once; also with the connection's
    own: `{"event": "connection", "state": "up" | "lost" | "ended", "retry": seconds}`. `on_frame` sees every Frame.
    """

    def __init__(self, host: str, port: int, realm: str, on_event: Callable[[dict], None] = lambda event: None,
                 on_frame: Callable[[Frame], None] = lambda frame: None) -> None:
        self.host, self.port = host, port
        self.realm = realm                         # what a bare name means; `realms` may know better
        self.user = ""                             # a bare name
        self.token: str | None = None
        self.last_id: int | None = None            # of the newest message that came as an event
        self.is_up = False
        self._on_event = on_event
        self._on_frame = on_frame
        self._subscribed = False
        self._tag = f"{secrets.token_hex(6)}."     # no two clients share a tag
        self._count = itertools.count(1)
        self._pending: dict[str, Pending] = {}
        self._wake = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._agreeing: asyncio.Task | None = None
        self._task = asyncio.ensure_future(self._keep_connected())

    # -- requests

    async def request(self, word: str, *arguments: str) -> dict:
        """The OK reply to a command; the token is filled in. Raises Refused, and before login OSError."""
        entering = word in ("auth", "register")
        tag = self._new_tag()
        reply = await self._ask(tag, self._line(tag, word, *arguments), patient=bool(self.token) and not entering)
        if entering:
            self.token, self.user, self._subscribed = reply["tokenid"], arguments[0].lower(), False
        elif word == "logout":
            self.token = None
        return reply

    async def resume(self, user: str, token: str) -> None:
        """Goes on with the session of another connection. Raises Refused, OSError."""
        tag = self._new_tag()
        await self._ask(tag, f"@{tag} realms {token}\r\n".encode(), patient=False)
        self.user, self.token, self._subscribed = user, token, False

    async def subscribe(self, after: int | None = None) -> None:
        """From here on there are events, first the messages after that id; also after every break."""
        self.last_id, self._subscribed = after, True
        await self._ask_for_events()

    async def send_file(self, word: str, *target: str, path: Path, name: str = "",
                        progress: Progress = lambda done, size: None) -> dict:
        """Sends a file, never held in memory. Cancelled, it sends nothing. Raises Refused, OSError for the file."""
        tag = self._new_tag()
        head = self._line(tag, word, *target, encode_file_name(name or path.name)).rstrip()

        async def write(writer: asyncio.StreamWriter) -> None:
            stream.seek(0)
            self._show(True, head + " …".encode(), len(head) + 3 + (size + 2) // 3 * 4)
            writer.write(head + (b" " if size else b" b''"))
            for number, piece in enumerate(encode_file(stream, size)):
                writer.write(piece)
                await writer.drain()
                progress(min(size, (number + 1) * ENCODE_SIZE), size)
            writer.write(b"\r\n")

        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return await self._persist(lambda: self._exchange(write))

    async def fetch_file(self, file_id: str, folder: Path, progress: Progress = lambda done, size: None) -> Path:
        """Saves a message's file in `folder`: where it now lies. Raises Refused, OSError for the folder."""
        tag = self._new_tag()
        line = self._line(tag, "getfile", file_id)

        async def write(writer: asyncio.StreamWriter) -> None:
            self._show(True, line, len(line))
            writer.write(line)

        async def fetch() -> Path:
            sink = ArrivingFile(folder, progress)
            try:
                return sink.finish(await self._exchange(write, sink))
            finally:
                sink.discard()

        return await self._persist(fetch)

    async def close(self) -> None:
        """Ends the connection for good."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _new_tag(self) -> str:
        return self._tag + str(next(self._count))

    def _line(self, tag: str, word: str, *arguments: str) -> bytes:
        """A request as it goes on the wire. Raises Refused where it needs a login that there is not."""
        command = COMMANDS[word]
        words = [word, *arguments]
        if "T" in command.names and (self.token or command.caller == USER):
            if not self.token:
                raise Refused.locally("session_not_found")
            words.insert(1, self.token)
        text = re.sub("\r\n?|\n", LINE_BREAK, " ".join(words))
        return f"@{tag} {text}\r\n".encode(errors="replace")

    def _begin(self, tag: str, line: bytes, patient: bool) -> Pending:
        pending = self._pending[tag] = Pending(line, asyncio.get_running_loop().create_future(), patient)
        pending.answer.add_done_callback(lambda answer: self._pending.pop(tag, None))
        self._wake.set()
        if self.is_up:
            self._write(pending)
        return pending

    async def _ask(self, tag: str, line: bytes, patient: bool) -> dict:
        return self._checked(await self._begin(tag, line, patient).answer)

    def _checked(self, reply: dict) -> dict:
        """The reply if it is OK. Raises Refused."""
        if reply.get("status") == "OK":
            return reply
        if reply.get("code") == "session_not_found" and self.token:
            self.token = None
            self._notify(state="ended")
        raise Refused(reply)

    def _ask_for_events(self) -> asyncio.Task:
        """Subscribes from the last message on; done once the server has agreed, or the connection is gone."""
        tag = self._new_tag()
        after = () if self.last_id is None else (str(self.last_id),)
        answer = self._begin(tag, self._line(tag, "subscribe", *after), patient=False).answer

        async def agree() -> None:
            with contextlib.suppress(Refused, OSError):
                reply = self._checked(await answer)
                if not after:                      # else the messages up to there are still to come
                    self.last_id = max(self.last_id or 0, reply["last_id"])

        self._agreeing = asyncio.ensure_future(agree())
        return self._agreeing

    # -- the connection

    async def _keep_connected(self) -> None:
        """Connects when there is something to ask or to hear, as often as it takes."""
        failures = 0
        while True:
            if not (self.token or self._pending):
                self._wake.clear()
                await self._wake.wait()
            try:
                reader, writer = await self._connect()
                failures = 0
                try:
                    await self._converse(reader, writer)
                finally:
                    self.is_up = False
                    writer.transport.abort()
            except (OSError, ValueError):          # ValueError: that is no chat server
                pass
            lost = ConnectionLost(f"{self.host}:{self.port}")
            for pending in self._pending.values():
                if not pending.patient and not pending.answer.done():
                    pending.answer.set_exception(lost)
            await asyncio.sleep(0)                 # they leave self._pending
            if self.token or self._pending:
                delay = min(RETRY_FIRST * 2 ** failures, RETRY_MOST) * random.uniform(0.7, 1.0)
                failures += 1
                self._notify(state="lost", retry=delay)
                await asyncio.sleep(delay)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            opening = asyncio.open_connection(self.host, self.port, limit=4 * RECEIVE_SIZE)
            reader, writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConnectionLost(f"{self.host}:{self.port}") from error
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3),
                              ("TCP_USER_TIMEOUT", 1000 * KEEPALIVE_SECONDS)):
            if hasattr(socket, option):            # a server whose machine vanished is noticed
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return reader, writer

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Sends what waited, then takes in frames until the connection ends."""
        waiting = list(self._pending.values())
        self._writer, self.is_up = writer, True
        if self.token and self._subscribed:
            self._ask_for_events()
        for pending in waiting:
            self._write(pending)
        self._notify(state="up")
        buffer = FrameBuffer()
        while data := await reader.read(RECEIVE_SIZE):
            for frame in buffer.feed(data):
                self._take(frame)

    def _write(self, pending: Pending) -> None:
        pending.sent = time.monotonic()
        self._show(True, pending.line, len(pending.line))
        self._writer.write(pending.line)

    def _take(self, frame: bytes) -> None:
        """One frame that came: an event, or the answer to a request."""
        fields = json.loads(frame)
        pending = self._pending.get(fields.get("tag", ""))
        self._show(False, frame, len(frame) + len(FRAME_END), pending and time.monotonic() - pending.sent)
        if pending and not pending.answer.done():
            pending.answer.set_result(fields)
        elif "event" in fields and self._subscribed:
            if fields["event"] == "message":
                if fields["id"] <= (self.last_id or 0):
                    return                         # it was seen before the break
                self.last_id = fields["id"]
            self._tell(fields)

    # -- files

    async def _persist(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """What `attempt` gives, made again after every break. Raises all but ConnectionLost."""
        for failures in itertools.count():
            try:
                return await attempt()
            except ConnectionLost:
                await asyncio.sleep(min(RETRY_FIRST * 2 ** failures, RETRY_MOST) * random.uniform(0.7, 1.0))

    async def _exchange(self, write: Callable[[asyncio.StreamWriter], Awaitable[None]],
                        sink: ArrivingFile | None = None) -> dict:
        """One request on a connection of its own, cut off with it: half a line is nothing to the server."""
        reader, writer = await self._connect()
        started = time.monotonic()
        writing = asyncio.ensure_future(write(writer))
        writing.add_done_callback(lambda task: task.cancelled() or task.exception() and writer.transport.abort())
        buffer = FrameBuffer(sink)
        try:
            while data := await self._read(reader):
                for frame in buffer.feed(data):    # a refusal may come before all has been written
                    self._show(False, frame, len(frame) + len(FRAME_END), time.monotonic() - started)
                    return self._checked(json.loads(frame))
            fault = writing.exception() if writing.done() else None
            raise fault if fault and not isinstance(fault, (ConnectionError, TimeoutError)) else ConnectionLost
        finally:
            writer.transport.abort()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.read(RECEIVE_SIZE)
        except OSError:
            return b""

    # -- those who watch

    def _show(self, outgoing: bool, data: bytes, size: int, elapsed: float | None = None) -> None:
        self._on_frame(Frame(time.time(), outgoing, data[:FRAME_HEAD], size, elapsed))

    def _notify(self, **fields: object) -> None:
        self._tell({"event": "connection", **fields})

    def _tell(self, event: dict) -> None:
        try:
            self._on_event(event)
        except Exception:                          # a fault of the page's must not cost the connection
            log.exception("event %s", event["event"])


# ---- typed commands ----------------------------------------------------------------------------


def parse_typed(line: str, logged_in: bool) -> tuple[Command, list[str]]:
    """A line as a person types it -> its command, and the arguments without token; a file is a path. Raises Refused."""
    word, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(word.lower())
    if command not in PUBLIC_COMMANDS:
        raise Refused.locally("unknown_command")
    names = [name for name in command.names if name != "T"]
    required = command.required - ("T" in command.parameters.split())
    if command.takes_file:                         # the last two words are one path
        names.pop()
        required -= 1
    arguments = split_arguments(rest, len(names), command.takes_rest or command.takes_file)
    if not required <= len(arguments) <= len(names):
        raise Refused.locally("bad_arguments", command.prompt_usage)
    if command.caller == USER and not logged_in:
        raise Refused.locally("session_not_found")
    return command, arguments


async def perform(conn: ServerConnection, line: str, downloads: Path,
                  progress: Progress = lambda done, size: None) -> list[str]:
    """Carries out a typed line: the lines to show. Raises Refused, OSError."""
    command, arguments = parse_typed(line, bool(conn.token))
    if command.word == "help":
        try:
            return help_text(*arguments).split("\n")
        except ChatError as error:
            raise Refused(error.reply()) from None
    if command.word == "getfile":
        path = await conn.fetch_file(arguments[0], downloads, progress)
        return [say("saved", path=path, size=show_size(path.stat().st_size))]
    if command.takes_file:
        path = Path(arguments.pop().strip("'\"")).expanduser()
        try:
            reply = await conn.send_file(command.word, *arguments, path=path, progress=progress)
        except OSError:
            raise Refused({"message": say("no_file", path=path)}) from None
    else:
        reply = await conn.request(command.word, *arguments)
    if command.word in ("auth", "register"):
        return [say("welcome", user=f"{conn.user}@{conn.realm}")]
    return describe(command.word, reply, conn.realm) or [reply.get("message") or say("nothing")]


def describe(word: str, reply: dict, home: str) -> list[str]:
    """A reply as lines for people; empty where its own message says it all, or there is nothing."""
    if word == "inbox":
        lines = [describe_message(message, home) for part in reply["messages"].values() for message in part]
        return (lines or [say("nothing_new")]) + [say("more")] * bool(reply.get("more"))
    if word in ("history", "getrealminbox"):
        return [describe_message(message, home) for message in reply["messages"]]
    if word == "info":
        return [f"{'●' if person['online'] else '○'} {short(person['user'] + '@' + person['realm'], home):<20} "
                f"{person['nama']}, {person['negara']}" for person in reply["users"]]
    if word == "groups":
        return [f"{'●' if group['member'] else '○'} {short(group['group'], home):<20} {say('members')}: "
                + ", ".join(short(member, home) for member in group["members"]) for group in reply["groups"]]
    if word == "realms":
        return [f"{name:<12} {row['address']}:{row['port']}  {row['link']}" +
                (f", {say('queued_count', count=row['queued'])}" if row.get("queued") else "") +
                (f", {row['rtt_ms']:.0f} ms" if row.get("rtt_ms") is not None else "")
                for name, row in reply["realms"].items()]
    if "id" in reply:
        queued = f", {say('queued')}" if reply.get("queued") else ""
        return [f"{reply.get('message') or 'OK'} (#{reply['id']}{queued})"]
    return []


def short(address: str, home: str) -> str:
    """An address without the realm where it is one's own."""
    return address.removesuffix(f"@{home}")


def describe_message(message: dict, home: str) -> str:
    """A message as one line, a line break in it as an arrow."""
    group = f"{short(message['group'], home)} | " if "group" in message else ""
    if "file" in message:
        text = say("file", **{**message["file"], "size": show_size(message["file"]["size"])})
    else:
        text = " ↵ ".join(message["msg"].split(LINE_BREAK))
    moment = local_time(message["ts"])
    day = "" if moment.date() == datetime.now().date() else f"{moment:%d-%m} "
    return clean(f"[{day}{moment:%H:%M}] {group}{short(message['from'], home)}: {text}")


def clean(text: str) -> str:
    """Text that can't steer a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def describe_event(event: dict, home: str) -> str:
    """An event as one line."""
    kind = event["event"]
    if kind == "message":
        return describe_message(event, home)
    if kind == "presence":
        return say("online" if event["online"] else "offline", user=short(event["user"], home))
    if kind == "group":
        return say(event["change"], user=short(event["user"], home), group=short(event["group"], home))
    if kind == "realm":
        return say(event["link"], realm=event["realm"])
    return ""


# ---- prompt ------------------------------------------------------------------------------------


class Prompt:
    """A command line on a terminal, or a script from a pipe.

    The main thread reads lines, everything else happens in the loop of another: so a message is shown while a line is
    being typed, and Ctrl-C ends what is being waited for.
    """

    PATIENCE = 3.0             # seconds that the next line waits for an answer; later the answer comes in between

    def __init__(self, host: str, port: int, realm: str, downloads: Path) -> None:
        self.place = f"{host}:{port}"
        self.downloads = downloads
        self.is_script = not (sys.stdin.isatty() and sys.stdout.isatty())
        self.readline: Any = None                  # Python's module, where there is one
        self.editor: Any = None                    # and the library below it
        self.names: set[str] = set()               # people and groups, for completion
        self.typing = ""                           # the prompt, while it is on the screen
        self.was_lost = False
        self.drawn = 0.0                           # when the progress line was
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.conn = self.start(self.connect(host, port, realm)).result()

    async def connect(self, host: str, port: int, realm: str) -> ServerConnection:
        """Makes the connection within its loop."""
        return ServerConnection(host, port, realm, (lambda event: None) if self.is_script else self.hear)

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future:
        """Begins the work in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def carry_out(self, line: str) -> tuple[list[str], bool]:
        """A typed line -> the lines to show, and whether it went well."""
        try:
            return await perform(self.conn, line, self.downloads, self.show_progress), True
        except Refused as refusal:
            wait = refusal.reply.get("retry_after")
            reason = str(refusal) + (f" ({wait} s)" if wait else "")
        except ConnectionError:
            reason = say("unreachable", place=self.place)
        except OSError as error:
            reason = str(error)
        return [say("failed", reason=reason)], False

    def run_script(self) -> int:
        """Carries out standard input, one line of result for each command; 1 if any failed."""
        status = 0
        for line in sys.stdin:
            if line.strip() and not line.lstrip().startswith("#"):
                lines, well = self.start(self.carry_out(line)).result()
                status |= not well
                print(" | ".join(lines), flush=True)
        return status

    def run_terminal(self) -> int:
        """Reads lines until Ctrl-D, then waits for what is not answered yet."""
        self.prepare_readline()
        self.show(say("banner", realm=self.conn.realm, place=self.place))
        unanswered: dict[concurrent.futures.Future, str] = {}
        while True:
            try:
                line = self.read_line().strip()
            except KeyboardInterrupt:
                print()
                continue
            except EOFError:
                print()
                break
            if line in ("quit", "exit"):
                break
            if line:
                future = self.start(self.answer(line))
                unanswered[future] = line
                word = line.split()[0].lower()
                patience = None if word == "getfile" or "file" in word else self.PATIENCE
                self.wait(future, patience)
            unanswered = {future: line for future, line in unanswered.items() if not future.done()}
        for future, line in unanswered.items():
            self.show(say("waiting", line=line))
            self.wait(future)
        return 0

    def wait(self, future: concurrent.futures.Future, seconds: float | None = None) -> None:
        """Lets it come to its end; Ctrl-C cancels it."""
        try:
            concurrent.futures.wait([future], seconds)
        except KeyboardInterrupt:
            future.cancel()
            self.show(say("cancelled"))

    async def answer(self, line: str) -> None:
        """Carries out a line and shows what came of it."""
        lines, well = await self.carry_out(line)
        self.show(*lines)
        word = line.split()[0].lower()
        if well and word in ("auth", "register", "addgroup", "joingroup", "info"):
            with contextlib.suppress(Refused, OSError):
                if word in ("auth", "register"):
                    await self.conn.subscribe()
                people, groups = await self.conn.request("info"), await self.conn.request("groups")
                self.names |= {person["user"] for person in people["users"]}
                self.names |= {short(group["group"], self.conn.realm) for group in groups["groups"]}

    def hear(self, event: dict) -> None:
        """Shows what comes in by itself."""
        own = f"{self.conn.user}@{self.conn.realm}"
        if event["event"] == "connection":
            if event["state"] == "lost":
                self.show(say("lost", seconds=f"{event['retry']:.1f}"))
            elif event["state"] == "ended" or self.was_lost:
                self.show(say("ended" if event["state"] == "ended" else "back"))
            self.was_lost = event["state"] == "lost"
        elif own not in (event.get("from"), event.get("user")):
            self.names.add(short(event.get("from") or event.get("user") or "", self.conn.realm))
            self.show(describe_event(event, self.conn.realm))

    # -- the terminal

    def read_line(self) -> str:
        """A line with editing, history and completion where Python has readline."""
        user = f"{self.conn.user}@{self.conn.realm}" if self.conn.token else self.conn.realm
        self.typing = f"{user}> "
        try:
            line = input(self.typing)
        finally:
            self.typing = ""
        if self.readline and line.split()[:1] in (["auth"], ["register"]):
            with contextlib.suppress(ValueError):  # a password is not recalled
                self.readline.remove_history_item(self.readline.get_current_history_length() - 1)
        return line

    def show(self, *lines: str) -> None:
        """Prints lines; a line that is being typed is taken off the screen and put back below them."""
        typing = self.typing
        if typing and self.editor:
            self.editor.rl_clear_visible_line()
            self.editor.fflush(None)
        sys.stdout.write(("" if typing and self.editor else "\r\033[K") + "".join(line + "\n" for line in lines))
        if typing and not self.editor:
            sys.stdout.write(typing)
        sys.stdout.flush()
        if typing and self.editor:
            self.editor.rl_forced_update_display()

    def show_progress(self, done: int, size: int) -> None:
        """A line that counts, for a file large enough to wait for."""
        if self.is_script or size < 1_000_000 or time.monotonic() - self.drawn < 0.1 and done < size:
            return
        self.drawn = time.monotonic()
        sys.stdout.write(f"\r\033[K{done * 100 // size:3d} %  {show_size(done)} / {show_size(size)}")
        sys.stdout.flush()

    def prepare_readline(self) -> None:
        """Completion and history, where there is readline."""
        with contextlib.suppress(ImportError):
            import readline
            self.readline = readline
            with contextlib.suppress(OSError, AttributeError):     # what Python's module doesn't offer of the library
                library = ctypes.CDLL(readline.__file__)
                self.editor = library.rl_clear_visible_line and library.rl_forced_update_display and library
            readline.set_completer(self.complete)
            readline.set_completer_delims(" ")
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")

    def complete(self, text: str, number: int) -> str | None:
        """The completion of that number: a command, a name, or a path, by its place in the line."""
        words = self.readline.get_line_buffer()[: self.readline.get_begidx()].split()
        command = COMMANDS.get(words[0].lower()) if words else None
        if not words or words == ["help"]:
            choices = [command.word + " " for command in PUBLIC_COMMANDS]
        elif command and command.takes_file and len(words) == command.required - 2:
            choices = [str(path) + ("/" if path.is_dir() else "") for path in Path().glob(glob.escape(text) + "*")]
        else:
            choices = [name + " " for name in sorted(self.names | set(REALMS))]
        matching = [choice for choice in choices if choice.startswith(text)]
        return matching[number] if number < len(matching) else None


# ---- start -------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; each option may come from the environment too."""
    parser = argparse.ArgumentParser(description="A chat client: a page, or with --prompt a command line.")
    home = realm_of_folder(Path(__file__).resolve().parent.name)
    add_option(parser, "--realm", default=home, choices=list(REALMS), help=f"the realm to log in at ({home})")
    add_option(parser, "--server", metavar="HOST:PORT", help="a server elsewhere than the realm table says")
    add_option(parser, "--local", action="store_true", help="every realm is on this computer")
    add_option(parser, "--prompt", action="store_true", help="type commands; from a pipe, run them as a script")
    add_option(parser, "--downloads", type=Path, help="where `getfile` saves (received/ in the realm's folder)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the client as the command line says."""
    options = parse_arguments(arguments)
    row = realm_table(options.local)[options.realm]
    try:
        host, port = parse_host_port(options.server) if options.server else (row.address, row.port)
    except ValueError as error:
        sys.exit(str(error))
    prompt = Prompt(host, port, row.name, options.downloads or ROOT / row.folder / "received")
    try:
        return prompt.run_script() if prompt.is_script else prompt.run_terminal()
    except KeyboardInterrupt:
        return 130
    finally:
        prompt.start(prompt.conn.close()).result()


if __name__ == "__main__":
    sys.exit(main())
