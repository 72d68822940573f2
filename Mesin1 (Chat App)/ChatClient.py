"""The chat client: `python3 ChatClient.py` opens a page, `--prompt` a command line, `--demo` two realms at a glance.

In this order, each part using only what stands above it:
  texts              what a person reads, in Indonesian and English
  files              a file that arrives -> a name on disk
  ServerConnection   requests, events, reconnecting; knows neither terminal nor page
  typed commands     a line as a person types it -> a request -> lines to show
  prompt             the terminal, or a script from a pipe
  what a chat shows  conversations and messages, no control in them
  the page's parts   ChatView (one whole chat: LoginView, TalkList, TalkView), Tools below it, Window
  serving the page   to browsers or in a window
"""
from __future__ import annotations

import argparse
import asyncio
import atexit
import bisect
import concurrent.futures
import contextlib
import getpass
import glob
import gzip
import hashlib
import itertools
import json
import logging
import math
import os
import random
import re
import secrets
import shutil
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
import webbrowser
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
from common import COMMANDS, FRAME_END, LINE_BREAK, MIB, PUBLIC_COMMANDS, REALMS, USER, ChatError, Command, add_option

log = logging.getLogger("client")

CONNECT_SECONDS = 10           # for a server to take a connection; a lost packet or two are made good by then
RETRY_FIRST = 0.5              # seconds until a lost connection is tried again, doubled at each failure
RETRY_MOST = 10.0              # so that a class whose server restarts is back within ten seconds
FRAME_MOST = 256 * MIB         # bytes of a frame: a whole INBOX_PAGE of the longest texts, each byte escaped six-fold
FRAME_HEAD = 2048              # bytes of a frame that an observer is shown: a message whole, of a file the beginning

# ---- texts -------------------------------------------------------------------------------------

ASSETS = Path(__file__).resolve().parent / "assets"
TEXTS = json.loads((ASSETS / "texts.json").read_text("utf-8"))     # key: [Indonesian, English], or the text of both
INDONESIAN, ENGLISH = 0, 1


def say(key: str, language: int = INDONESIAN, **fields: object) -> str:
    text = TEXTS[key]
    return (text if isinstance(text, str) else text[language]).format(**fields)


def show_size(size: float) -> str:
    """A number of bytes for people, in the units of the limits: `3.2 KB`, `64 MB`."""
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            break
        size, unit = size / 1024, "GB"
    return f"{size:.0f} {unit}" if size >= 100 or size == int(size) else f"{size:.1f} {unit}"


def local_time(ts: str) -> datetime:
    return datetime.fromisoformat(ts.replace("Z", "+00:00")).astimezone()


class Refused(ChatError):
    """An ERROR reply; what the client refuses by itself is a plain ChatError."""

    def __init__(self, reply: dict) -> None:
        Exception.__init__(self, reply.get("code", ""))
        self.code, self.message, self.fields = reply.get("code", ""), reply.get("message", ""), reply


def reason(error: Exception, language: int = INDONESIAN) -> str:
    """Why something failed, in that language where it has the words."""
    if isinstance(error, ConnectionError):
        return say("unreachable", language, place=error)
    if not isinstance(error, ChatError):
        return str(error)
    usage = error.message.partition(": ")[2] if error.code == "bad_arguments" else ""
    words = say(f"code.{error.code}", language) if f"code.{error.code}" in TEXTS and language else error.message
    words += f": {usage}" if usage and usage not in words else ""
    return f"{words} ({error.fields['retry_after']} s)" if "retry_after" in error.fields else words


# ---- files ---------------------------------------------------------------------------------------

Progress = Callable[[int, int], None]              # bytes done, and of how many


def unwatched(done: int, size: int) -> None:
    """The Progress of a file that nobody watches."""


CONTENT = re.compile(rb'"file_content"\s*:\s*"')    # a quote within a JSON string is escaped: this is nothing else


class ArrivingFile:
    """Base64 in pieces -> a file in `folder` that is there whole, and its SHA-256 right, or not at all."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._progress = progress
        self._done = self._size = 0
        self._digest = hashlib.sha256()
        self._decoder = common.Base64Decoder()
        self._file = (folder / f".{secrets.token_hex(8)}.part").open("xb")

    def begin(self, reply: dict) -> None:
        """Hears of the file that is about to come."""
        self._size = reply["file_size"]

    def write(self, text: bytes) -> None:
        self._store(self._decoder.feed(text))

    def finish(self, reply: dict) -> Path:
        """Checks the file and gives it its name, or another if there is one of that name. Raises Refused."""
        self._store(self._decoder.finish())
        self._file.close()
        if self._digest.hexdigest() != reply["sha256"]:
            raise Refused({"message": say("damaged")})
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
    name = re.sub(r'[<>:"|?*/\\]', "_", common.decode_file_name(name))
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


def backoff(failures: int) -> float:
    """Seconds until the next attempt; never the same for a whole class."""
    return min(RETRY_FIRST * 2 ** failures, RETRY_MOST) * random.uniform(0.7, 1.0)


class ServerConnection:
    """A client's connection to its server, kept up across breaks. All of it runs in one asyncio loop.

    `await request("send", "messi", "hello")` gives the reply's fields or raises ChatError. After login a request waits
    out a break and is sent again under its tag, by which the server knows a send that it has stored already; before
    login it raises OSError instead. Files go over connections of their own, so that talk does not wait for them.

    After `subscribe`, `on_event` is called with each event as it came, each message once; also with the connection's
    own: `{"event": "connection", "state": "up" | "lost" | "ended", "retry": seconds}`, or the state "restored" when the
    server was put back to an older copy of its data. `on_frame` is called with each request, reply and event: whether
    it went out, its first bytes (with passwords and tokens: see `common.mask`), its size, and of a reply the seconds
    since its request.
    """

    def __init__(self, host: str, port: int, realm: str, on_event: Callable[[dict], None] = lambda event: None,
                 on_frame: Callable[..., None] = lambda *frame: None, tls: ssl.SSLContext | None = None) -> None:
        self.host, self.port, self.tls = host, port, tls
        self.realm = realm                         # what a bare name means; `realms` may know better
        self.user = ""                             # a bare name
        self.token: str | None = None
        self.last_id: int | None = None            # of the newest message that came as an event
        self._on_event = on_event
        self._on_frame = on_frame
        self._subscribed = False
        self._tag = f"{secrets.token_hex(6)}."     # no two clients share a tag
        self._count = itertools.count(1)
        self._pending: dict[str, Pending] = {}
        self._wake, self._hurry = asyncio.Event(), asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None       # while the connection is up
        self._failures = 0                         # attempts since the last answer
        self._agreeing: asyncio.Task | None = None
        self._task = asyncio.ensure_future(self._keep_connected())

    # -- requests

    async def request(self, word: str, *arguments: str) -> dict:
        """The OK reply to a command; the token is filled in. Raises ChatError, and before login OSError."""
        entering = word in ("auth", "register")
        reply = await self._ask(self._line(word, *arguments), patient=bool(self.token) and not entering)
        if entering:
            self.token, self.user, self._subscribed = reply["tokenid"], arguments[0].lower(), False
        elif word == "logout":
            self.token = None
        return reply

    async def send_raw(self, line: str) -> dict:
        """The reply to a line as it is, right or wrong, with the token where it says T."""
        words = line.split(" ")
        command = COMMANDS.get(words[0].lower())
        if self.token and command and "T" in command.names and words[1:2] == ["T"]:
            words[1] = self.token
        words = [f"@{self._tag}{next(self._count)}", *words]
        return await self._begin(f"{' '.join(words)}\r\n".encode(errors="replace"), patient=False)

    async def resume(self, user: str, token: str) -> None:
        """Goes on with the session of another connection. Raises ChatError, OSError."""
        await self._ask(self._line("realms", token=token), patient=False)
        self.user, self.token, self._subscribed = user, token, False

    async def subscribe(self, after: int | None = None) -> None:
        """From here on there are events, first the messages after that id; also after every break."""
        self.last_id, self._subscribed = after, True
        await self._ask_for_events()

    async def send_file(self, word: str, *target: str, path: Path, name: str = "",
                        progress: Progress = unwatched) -> dict:
        """Sends a file, never held in memory. Cancelled, it sends nothing. Raises ChatError, OSError for the file."""
        head = self._line(word, *target, common.encode_file_name(name or path.name)).rstrip()

        async def write(writer: asyncio.StreamWriter) -> None:
            stream.seek(0)
            self._show(True, head + " …".encode(), len(head) + 3 + (size + 2) // 3 * 4)
            writer.write(head + (b" " if size else b" b''"))
            for number, piece in enumerate(common.encode_file(stream, size)):
                writer.write(piece)
                await writer.drain()
                progress(min(size, (number + 1) * common.ENCODE_SIZE), size)
            writer.write(b"\r\n")

        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return await self._persist(lambda: self._exchange(head, write))

    async def fetch_file(self, file_id: str, folder: Path, progress: Progress = unwatched) -> Path:
        """Saves a message's file in `folder`: where it now lies. Raises ChatError, OSError for the folder."""
        line = self._line("getfile", file_id)

        async def write(writer: asyncio.StreamWriter) -> None:
            self._show(True, line, len(line))
            writer.write(line)

        async def fetch() -> Path:
            sink = ArrivingFile(folder, progress)
            try:
                return sink.finish(await self._exchange(line, write, sink))
            finally:
                sink.discard()

        return await self._persist(fetch)

    def try_now(self) -> None:
        """Ends the wait until the next attempt to connect."""
        self._failures = 0
        self._hurry.set()

    async def close(self) -> None:
        """Ends the connection for good, and whoever still waits for an answer."""
        self._task.cancel()
        for pending in list(self._pending.values()):
            pending.answer.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _line(self, word: str, *arguments: str, token: str | None = None) -> bytes:
        """A request under a new tag. Raises ChatError where it needs a login that there is not."""
        command, token = COMMANDS.get(word), token or self.token
        words = [f"@{self._tag}{next(self._count)}", word, *arguments]
        if "T" in command.names and (token or command.caller == USER):
            if not token:
                raise ChatError("session_not_found")
            words.insert(2, token)
        text = re.sub("\r\n?|\n", LINE_BREAK, " ".join(words))
        return f"{text}\r\n".encode(errors="replace")

    def _begin(self, line: bytes, patient: bool) -> asyncio.Future:
        """Sends a request, now or once there is a connection; what it gives will be the reply."""
        tag = line[1:line.index(b" ")].decode()
        pending = self._pending[tag] = Pending(line, asyncio.get_running_loop().create_future(), patient)
        pending.answer.add_done_callback(lambda answer: self._pending.pop(tag, None))
        self._wake.set()
        if self._writer:
            self._write(pending)
        return pending.answer

    async def _ask(self, line: bytes, patient: bool) -> dict:
        return self._checked(await self._begin(line, patient), line)

    def _checked(self, reply: dict, line: bytes) -> dict:
        """The reply to that line if it is OK. Raises Refused; where it says so, the session that asked has ended."""
        if reply.get("status") == "OK":
            return reply
        if reply.get("code") == "session_not_found" and self.token and self.token.encode() in line.split():
            self.token = None
            self._notify(state="ended")
        raise Refused(reply)

    def _ask_for_events(self) -> asyncio.Task:
        """Subscribes from the last message on; done once the server has agreed, or the connection is gone."""
        after = () if self.last_id is None else (str(self.last_id),)
        line = self._line("subscribe", *after)
        answer = self._begin(line, patient=False)

        async def agree() -> None:
            with contextlib.suppress(ChatError, OSError):
                reply = self._checked(await answer, line)
                if after and reply["last_id"] < int(after[0]):
                    self.last_id = reply["last_id"]
                    self._notify(state="restored")
                elif not after:                    # else the messages up to there are still to come
                    self.last_id = max(self.last_id or 0, reply["last_id"])

        self._agreeing = asyncio.ensure_future(agree())
        return self._agreeing

    # -- the connection

    async def _keep_connected(self) -> None:
        """Connects when there is something to ask or to hear, as often as it takes."""
        while True:
            if not (self.token or self._pending):
                self._wake.clear()
                await self._wake.wait()
            try:
                reader, writer = await self._connect(FRAME_MOST)
                try:
                    await self._converse(reader, writer)
                finally:
                    self._writer = None
                    writer.transport.abort()
            except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):     # the last two: no chat server
                pass
            lost = ConnectionLost(f"{self.host}:{self.port}")
            for pending in self._pending.values():
                if not pending.patient and not pending.answer.done():
                    pending.answer.set_exception(lost)
            await asyncio.sleep(0)                 # they leave self._pending
            if self.token or self._pending:
                delay = backoff(self._failures)
                self._failures += 1
                self._notify(state="lost", retry=delay)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), delay)
            self._hurry.clear()

    async def _connect(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            opening = asyncio.open_connection(self.host, self.port, limit=limit, ssl=self.tls)
            reader, writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConnectionLost(f"{self.host}:{self.port}") from error
        sock = writer.get_extra_info("socket")
        if sock is None:                           # uvloop: it was reset at once
            raise ConnectionLost(f"{self.host}:{self.port}")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", common.KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3),
                              ("TCP_USER_TIMEOUT", 1000 * common.KEEPALIVE_SECONDS)):
            if hasattr(socket, option):            # a server whose machine vanished is noticed
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return reader, writer

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Sends what waited, then takes in frames until the connection ends."""
        waiting = list(self._pending.values())
        self._writer = writer
        if self.token and self._subscribed:
            self._ask_for_events()
        for pending in waiting:
            self._write(pending)
        self._notify(state="up")
        while True:
            self._take((await reader.readuntil(FRAME_END)).removesuffix(FRAME_END))

    def _write(self, pending: Pending) -> None:
        pending.sent = time.monotonic()
        self._show(True, pending.line, len(pending.line))
        with contextlib.suppress(RuntimeError):    # uvloop: it is closed, and the line goes out on the next one
            self._writer.write(pending.line)

    def _take(self, frame: bytes) -> None:
        """One frame that came: an event, or the answer to a request."""
        fields = json.loads(frame)
        pending = self._pending.get(fields.get("tag", ""))
        self._show(False, frame, len(frame) + len(FRAME_END), pending and time.monotonic() - pending.sent)
        if pending:
            self._failures = 0
            if not pending.answer.done():
                pending.answer.set_result(fields)
        elif fields.get("status") == "ERROR":      # without a tag: to none of us in particular, the server is full
            for pending in self._pending.values():
                if not pending.patient and not pending.answer.done():
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
                await asyncio.sleep(backoff(failures))

    async def _exchange(self, line: bytes, write: Callable[[asyncio.StreamWriter], Awaitable[None]],
                        sink: ArrivingFile | None = None) -> dict:
        """One request on a connection of its own, cut off with it: half a line is nothing to the server."""
        reader, writer = await self._connect(4 * common.RECEIVE_SIZE)
        started = time.monotonic()
        writing = asyncio.ensure_future(write(writer))
        writing.add_done_callback(lambda task: task.cancelled() or task.exception() and writer.transport.abort())
        try:
            frame = await self._receive(reader, sink)      # a refusal may come before all has been written
            self._show(False, frame, len(frame) + len(FRAME_END), time.monotonic() - started)
            return self._checked(json.loads(frame), line)
        except ConnectionLost:
            fault = writing.exception() if writing.done() else None
            if fault and not isinstance(fault, (ConnectionError, TimeoutError)):
                raise fault from None
            raise
        finally:
            writer.transport.abort()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _receive(self, reader: asyncio.StreamReader, sink: ArrivingFile | None) -> bytes:
        """The only reply of a connection; a file's content goes to the sink in pieces, and is left out."""
        head, found = b"", None
        while not (head.endswith(FRAME_END) or found):
            head += await self._read(reader)
            found = CONTENT.search(head) if sink else None
        if not found:
            return head.removesuffix(FRAME_END)
        head, content = head[: found.end()], head[found.end():]
        sink.begin(json.loads(head + b'"}'))
        while b'"' not in content:
            sink.write(content)
            content = await self._read(reader)
        content, _, end = content.partition(b'"')
        sink.write(content)
        while not end.endswith(FRAME_END):
            end += await self._read(reader)
        return head + b'"' + end.removesuffix(FRAME_END)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        """What has come. Raises ConnectionLost where nothing comes any more."""
        with contextlib.suppress(OSError):
            if data := await reader.read(common.RECEIVE_SIZE):
                return data
        raise ConnectionLost

    # -- those who watch

    def _show(self, outgoing: bool, data: bytes, size: int, elapsed: float | None = None) -> None:
        self._on_frame(outgoing, data[:FRAME_HEAD], size, elapsed)

    def _notify(self, **fields: object) -> None:
        self._tell({"event": "connection", **fields})

    def _tell(self, event: dict) -> None:
        try:
            self._on_event(event)
        except Exception:                          # a fault of the page's must not cost the connection
            log.exception("event %s", event["event"])


# ---- typed commands ----------------------------------------------------------------------------


SECRET = re.compile(r"[\s!/]*(auth|register|passwd)\b", re.IGNORECASE)     # lines with a password are not recalled


def parse_typed(line: str, logged_in: bool) -> tuple[Command, list[str]]:
    """A line as a person types it -> its command, and the arguments without token; a file is a path.

    Raises ChatError.
    """
    word, _, rest = line.strip().partition(" ")
    command = COMMANDS.get(word.lower())
    if command not in PUBLIC_COMMANDS:
        raise ChatError("unknown_command")
    names = [name for name in command.names if name != "T"]
    required = command.required - ("T" in command.parameters.split())
    if command.takes_file:                         # the last two words are one path
        names.pop()
        required -= 1
    arguments = common.split_arguments(rest, len(names), command.takes_rest or command.takes_file)
    if not required <= len(arguments) <= len(names):
        raise ChatError("bad_arguments", command.prompt_usage)
    if command.caller == USER and not logged_in:
        raise ChatError("session_not_found")
    return command, arguments


def parameter_after(words: list[str]) -> str:
    """The name of the parameter that a person types after these words; empty where there is none."""
    if not words:
        return "COMMAND"
    command = COMMANDS.get(words[0].lower())
    names = [name for name in command.names if name != "T"] if command else []
    return names[len(words) - 1] if len(words) <= len(names) else ""


Paint = Callable[[str], str]                                # an address -> its name as it is shown
Choose = Callable[[str], Awaitable[tuple[Path, str]]]       # the path of a file to send as typed -> the file, its name
Fetch = Callable[[str], Awaitable[Path]]                    # the id of a message's file -> where it now lies


def unpainted(name: str) -> str:
    """The Paint of a page, or of a pipe."""
    return name


async def perform(conn: ServerConnection, line: str, language: int, choose: Choose, fetch: Fetch,
                  progress: Progress = unwatched, paint: Paint = unpainted) -> list[str]:
    """Carries out a typed line: the lines to show, in that language. Raises ChatError, OSError."""
    if line.startswith("!"):                       # as it is, so that a wrong command can be watched
        reply = json.dumps(await conn.send_raw(line[1:].strip()), separators=(",", ":"), ensure_ascii=False)
        return [clean(common.mask(reply.encode()).decode())]
    command, arguments = parse_typed(line, bool(conn.token))
    if command.word == "help":
        return common.help_text(*arguments).split("\n") if arguments else [
            f"{each.prompt_usage:<48} {each.english if language else each.indonesian}" for each in PUBLIC_COMMANDS]
    if command.word == "getfile":
        path = await fetch(arguments[0])
        return [say("saved", language, path=path, size=show_size(path.stat().st_size))]
    if command.takes_file:
        path, name = await choose(arguments.pop())
        try:
            reply = await conn.send_file(command.word, *arguments, path=path, name=name, progress=progress)
        except OSError:
            raise Refused({"message": say("no_file", language, path=path)}) from None
    else:
        reply = await conn.request(command.word, *arguments)
    if command.word in ("auth", "register"):
        return [say("welcome", language, user=f"{conn.user}@{conn.realm}")]
    return describe(command.word, reply, conn.realm, language, paint)


def describe(word: str, reply: dict, home: str, language: int, paint: Paint = unpainted) -> list[str]:
    lines = []
    if word == "inbox":
        lines = describe_messages([each for part in reply["messages"].values() for each in part], home, language, paint)
        lines = lines or [say("nothing_new", language)]
    elif word in ("history", "getrealminbox", "search"):
        lines = describe_messages(reply["messages"], home, language, paint)
    elif word == "conversations":
        lines = [f"{short(row.get('group') or row['with'], home):<20} {row['unread'] or ''}"
                 for row in reply["conversations"]]
    elif word == "info":
        lines = [f"{'●' if person['online'] else '○'} {short(person['user'] + '@' + person['realm'], home):<20} "
                 + clean(f"{person['nama']}, {person['negara']}") for person in reply["users"]]
    elif word == "groups":
        lines = [f"{'●' if group['member'] else '○'} {short(group['group'], home):<20} "
                 f"{group['count']} {say('members', language)}: "
                 + ", ".join(short(member, home) for member in group["members"]) for group in reply["groups"]]
    elif word == "realms":
        lines = [f"{name:<12} {row['address']}:{row['port']}  {row['link']}" +
                 (f", {say('queued_count', language, count=row['queued'])}" if row.get("queued") else "") +
                 (f", {row['rtt_ms']:.0f} ms" if row.get("rtt_ms") is not None else "")
                 for name, row in reply["realms"].items()]
    elif "id" in reply:
        words = say("queued" if reply.get("queued") else "is_delivered", language)
        lines = [f"{(reply.get('message') if language == INDONESIAN else '') or say('sent', language)} "
                 f"(#{reply['id']}, {words})"]
    else:
        done = reply.get("message") if language == INDONESIAN else ""
        return [str(done or say("done" if "message" in reply else "nothing", language))]
    return (lines or [say("nothing", language)]) + [say("more", language)] * bool(reply.get("more"))


def short(address: str, home: str) -> str:
    """An address without the realm where it is one's own."""
    return address.removesuffix(f"@{home}")


def describe_messages(messages: list[dict], home: str, language: int, paint: Paint) -> list[str]:
    """Messages as lines, with a line for each new day before today."""
    lines, day = [], datetime.now().date()
    for message in messages:
        moment = local_time(message["ts"])
        if moment.date() != day:
            day = moment.date()
            lines.append(f"── {show_day(moment, language)} ──")
        lines.append(describe_message(message, home, paint))
    return lines


def show_day(moment: datetime, language: int) -> str:
    days = (datetime.now().date() - moment.date()).days
    if days in (0, 1):
        return say("yesterday" if days else "today", language)
    return f"{say('weekdays', language).split()[moment.weekday()]}, {moment.day} " \
        f"{say('months', language).split()[moment.month - 1]} {moment.year}"


def describe_message(message: dict, home: str, paint: Paint) -> str:
    """A message as one line, a line break in it as an arrow."""
    group = f"{short(message['group'], home)} | " if "group" in message else ""
    if "file" in message:
        text = say("file", **{**message["file"], "size": show_size(message["file"]["size"])})
    else:
        text = " ↵ ".join(message["msg"].split(LINE_BREAK))
    return f"[{local_time(message['ts']):%H:%M:%S}] {group}{paint(short(message['from'], home))}: {clean(text)}"


def clean(text: str) -> str:
    """Text that can't steer a terminal."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


# ---- prompt ------------------------------------------------------------------------------------


class Prompt:
    """A command line on a terminal, or a script from a pipe.

    The main thread reads lines, everything else happens in the loop of another: so a message is shown while a line is
    being typed, and Ctrl-C ends what is being waited for.
    """

    PATIENCE = 3.0             # seconds that the next line waits for an answer; later the answer comes in between
    COLORS = (31, 32, 33, 34, 35, 36, 91, 92, 93, 94, 95, 96)      # of names, by their checksum

    def __init__(self, options: argparse.Namespace) -> None:
        self.place = "{}:{}".format(*options.place)
        self.downloads = options.downloads
        self.is_script = not (sys.stdin.isatty() and sys.stdout.isatty())
        language = options.language or os.environ.get("LANG", "") if not self.is_script else "id"
        self.language = ENGLISH if language.startswith("en") else INDONESIAN
        self.bell = "\a" * options.bell            # sounds for what is written to this person alone
        self.readline: Any = None                  # Python's module, where there is one
        self.names: set[str] = set()               # people and groups, for completion
        self.partners: set[str] = set()            # whom one talks with
        self.presence = ""                         # "on": all people's coming and going is told, "off": nobody's
        self.talk = ""                             # where plain lines go: "send USER" or "sendgroup GROUP"
        self.day = datetime.now().date()           # of the newest message shown
        self.typing = ""                           # the prompt, while it is on the screen
        self.was_lost = False
        self.drawn = 0.0                           # when the progress line was
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.conn = self.start(self.connect(options)).result()

    async def connect(self, options: argparse.Namespace) -> ServerConnection:
        hear = (lambda event: None) if self.is_script else self.hear
        return ServerConnection(*options.place, options.realm, hear, tls=options.context)

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def say(self, key: str, **fields: object) -> str:
        return say(key, self.language, **fields)

    def paint(self, name: str) -> str:
        if self.is_script or "NO_COLOR" in os.environ:
            return name
        return f"\033[{self.COLORS[zlib.crc32(name.encode()) % len(self.COLORS)]}m{name}\033[0m"

    async def carry_out(self, line: str) -> tuple[list[str], bool]:
        """A typed line -> the lines to show, and whether it went well."""
        try:
            return await perform(self.conn, line, self.language, self.choose, self.fetch, self.show_progress,
                                 self.paint), True
        except (ChatError, OSError) as error:
            return [self.say("failed", reason=reason(error, self.language))], False

    @staticmethod
    async def choose(typed: str) -> tuple[Path, str]:
        path = Path(typed.strip("'\"")).expanduser()
        return path, path.name

    async def fetch(self, file_id: str) -> Path:
        return await self.conn.fetch_file(file_id, self.downloads, self.show_progress)

    def run_script(self) -> int:
        """Carries out standard input, one line of result for each command; 1 if any failed."""
        failed = False
        for line in sys.stdin:
            if line.strip() and not line.lstrip().startswith("#"):
                lines, well = self.start(self.carry_out(line)).result()
                failed = failed or not well
                print(" | ".join(lines), flush=True)
        return int(failed)

    def run_terminal(self) -> int:
        """Reads lines until Ctrl-D, then waits for what is not answered yet."""
        self.prepare_readline()
        self.show(self.say("banner", realm=self.conn.realm, place=self.place))
        unanswered: dict[concurrent.futures.Future, str] = {}
        while True:
            try:
                line = self.understand(self.read_line().strip())
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
                self.wait(future, None if word == "getfile" or "file" in word else self.PATIENCE)
            unanswered = {future: line for future, line in unanswered.items() if not future.done()}
        for future, line in unanswered.items():
            self.show(self.say("waiting", line=line))
            self.wait(future)
        return 0

    def understand(self, line: str) -> str:
        """A line as it was typed -> the command that it means, or nothing where it was for the prompt itself."""
        word, *rest = line.removeprefix("/").split() or [""]
        if word == "auth" and len(rest) == 1:      # the password is asked for, and not shown
            return f"{line.removeprefix('/')} {getpass.getpass('Password: ')}"
        is_command = line.startswith("/") or not self.talk or line == "chat"
        if word == "chat" and is_command:
            target = rest[0] if rest else ""
            is_group = self.start(self.is_group(target)).result() if target and self.conn.token else False
            self.talk = f"{'sendgroup' if is_group else 'send'} {target}" if target else ""
            return ""
        if word == "presence" and rest in (["on"], ["off"]) and is_command:
            self.presence = rest[0]
            return ""
        if self.talk and line and not line.startswith(("/", "!")):
            return f"{self.talk} {line}"
        return line.removeprefix("/")

    async def is_group(self, target: str) -> bool:
        """Whether one is in a group of that name."""
        with contextlib.suppress(ChatError, OSError):
            address = "@".join(common.parse_address(target, self.conn.realm))
            groups = (await self.conn.request("groups"))["groups"]
            return any(row["group"] == address and row["member"] for row in groups)
        return False

    def wait(self, future: concurrent.futures.Future, seconds: float | None = None) -> None:
        """Lets it come to its end; Ctrl-C cancels it."""
        try:
            concurrent.futures.wait([future], seconds)
        except KeyboardInterrupt:
            future.cancel()
            self.show(self.say("cancelled"))

    async def answer(self, line: str) -> None:
        lines, well = await self.carry_out(line)
        self.show(*lines)
        word, *rest = line.lower().split()
        if word.startswith("send") and rest:
            self.partners.add(short(rest[0], self.conn.realm))
        if well and word in ("auth", "register", "addgroup", "joingroup", "info"):
            with contextlib.suppress(ChatError, OSError):
                if word in ("auth", "register"):
                    await self.conn.subscribe()
                    await self.tell_unread()
                await self.learn_names()

    async def tell_unread(self) -> None:
        """How many messages of whom are unread."""
        rows = (await self.conn.request("conversations"))["conversations"]
        unread = [f"{self.paint(short(row.get('group') or row['with'], self.conn.realm))} {row['unread']}"
                  for row in rows if row["unread"]]
        if unread:
            self.show(self.say("unread", names=", ".join(unread)))

    async def learn_names(self) -> None:
        home = self.conn.realm
        for realm in (await self.conn.request("realms"))["realms"]:
            with contextlib.suppress(ChatError):   # it is cut off
                people = (await self.conn.request("info", realm))["users"]
                self.names |= {short(f"{person['user']}@{realm}", home) for person in people}
        groups = (await self.conn.request("groups"))["groups"]
        self.names |= {short(group["group"], home) for group in groups}

    def hear(self, event: dict) -> None:
        home, kind = self.conn.realm, event["event"]
        who = short(event.get("from") or event.get("user") or "", home)
        if kind == "connection":
            if event["state"] == "lost":
                self.show(self.say("lost", seconds=f"{event['retry']:.1f}"))
            elif event["state"] == "ended" or self.was_lost:
                self.show(self.say("ended" if event["state"] == "ended" else "again_up"))
            self.was_lost = event["state"] == "lost"
        elif who == self.conn.user:
            return
        elif kind == "message":
            self.names.add(who)
            self.partners.add(who)
            self.show(*describe_messages([event], home, self.language, self.paint), bell=self.bell * ("to" in event))
        elif kind == "presence" and (self.presence or ("on" if who in self.partners else "off")) == "on":
            self.show(self.say("online" if event["online"] else "offline", user=self.paint(who)))
        elif kind == "group":
            self.show(self.say(event["change"], user=self.paint(who), group=short(event["group"], home)))
        elif kind == "realm":
            self.show(self.say(event["link"], realm=event["realm"]))

    # -- the terminal

    def read_line(self) -> str:
        """A line with editing, history and completion where Python has readline."""
        user = f"{self.conn.user}@{self.conn.realm}" if self.conn.token else self.conn.realm
        self.typing = f"{user} → {self.talk.partition(' ')[2]}> " if self.talk else f"{user}> "
        try:
            line = input(self.typing)
        finally:
            self.typing = ""
        if self.readline and SECRET.match(line):
            with contextlib.suppress(ValueError):  # a password is not recalled
                self.readline.remove_history_item(self.readline.get_current_history_length() - 1)
        return line

    def show(self, *lines: str, bell: str = "") -> None:
        """Prints lines; a line that is being typed is taken off the screen and put back below them."""
        typed = self.typing + self.readline.get_line_buffer() if self.typing and self.readline else self.typing
        rows_above = max(0, len(typed) - 1) // (shutil.get_terminal_size().columns or 80)
        erase = f"\033[{rows_above}A" if rows_above else ""
        sys.stdout.write(f"{bell}\r{erase}\033[J" + "".join(line + "\n" for line in lines) + typed)
        sys.stdout.flush()

    def show_progress(self, done: int, size: int) -> None:
        if self.is_script or size < 1_000_000 or time.monotonic() - self.drawn < 0.1 and done < size:
            return
        self.drawn = time.monotonic()
        sys.stdout.write(f"\r\033[K{done * 100 // size:3d} %  {show_size(done)} / {show_size(size)}")
        sys.stdout.flush()

    def prepare_readline(self) -> None:
        with contextlib.suppress(ImportError):
            import readline
            self.readline = readline
            readline.set_completer(self.complete)
            readline.set_completer_delims(" ")
            readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
            history = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "chat-history"
            with contextlib.suppress(OSError):     # what was typed before; lines with a password are not in it
                history.parent.mkdir(parents=True, exist_ok=True)
                history.touch(0o600)
                readline.read_history_file(history)
                readline.set_history_length(1000)
                atexit.register(readline.write_history_file, history)

    def complete(self, text: str, number: int) -> str | None:
        """The completion of that number: a command, a name, or a path, by its place in the line."""
        words = self.readline.get_line_buffer()[: self.readline.get_begidx()].removeprefix("/").split()
        kind = parameter_after(words)
        if kind == "COMMAND":
            choices = [command.word + " " for command in PUBLIC_COMMANDS]
        elif kind == "NAME" and COMMANDS[words[0].lower()].takes_file:
            paths = glob.glob(glob.escape(text) + "*")
            choices = [path + ("/" if os.path.isdir(path) else "") for path in paths]
        else:
            choices = [name + " " for name in sorted(self.names | set(REALMS))]
        slash = "/" if text.startswith("/") and not words else ""
        matching = [slash + choice for choice in choices if choice.startswith(text.removeprefix(slash))]
        return matching[number] if number < len(matching) else None


def run_prompt(options: argparse.Namespace) -> int:
    prompt = Prompt(options)
    try:
        return prompt.run_script() if prompt.is_script else prompt.run_terminal()
    finally:
        prompt.start(prompt.conn.close()).result()


# ---- what a chat shows ---------------------------------------------------------------------------


@dataclass(eq=False, slots=True)
class Message:
    """A message in a conversation; one without an id is still on its way out."""

    sender: str
    when: datetime
    text: str = ""
    file: dict | None = None
    id: int = 0
    uid: str = ""
    state: str = "delivered"   # or sending, queued, failed
    fault: Exception | None = None     # why it failed
    done: float = 0.0          # how much of its file has gone out or come in
    started: float = 0.0       # since when
    picked: Any = None         # what the file picker gave for one that goes out
    path: Path | None = None   # where that file lies
    source: str = ""           # of a picture: where the page gets it; "none": it cannot be shown
    task: asyncio.Task | None = None

    @classmethod
    def received(cls, fields: dict) -> Message:
        text = fields.get("msg", "").replace(LINE_BREAK, "\n").expandtabs(4).translate(STEERING)
        message = cls(sys.intern(fields["from"]), local_time(fields["ts"]), text, fields.get("file"), fields["id"])
        message.uid = fields.get("uid", "")
        message.settle(fields)
        return message

    def settle(self, fields: dict) -> None:
        """Takes the state that a message of the server's, a reply or a `status` event says."""
        self.state = fields.get("state") or ("queued" if fields.get("queued") else "delivered")
        code = fields.get("code", "")
        self.fault = Refused({"code": code, "message": common.ERRORS.get(code, code)}) if code else None

    @property
    def words(self) -> str:
        """Its text without what it quotes, or its file's name."""
        return self.file["name"] if self.file else split_quote(self.text)[1].strip()

    @property
    def place(self) -> int:
        """Where it stands: by id, those on their way last."""
        return self.id or sys.maxsize


@dataclass(eq=False)
class Conversation:
    """The messages with one person or in one group: without a gap, from some message to the newest."""

    KEPT: ClassVar = 100       # messages while nobody looks at it; the others are read again when needed

    key: str                   # the address, a group's with a # in front
    messages: list[Message] = field(default_factory=list)
    held: list[dict] = field(default_factory=list)     # own events that came while own messages were unanswered
    complete: bool = True      # whether its first message is here
    unread: int = 0
    mentions: int = 0          # how many of the unread have one's own name in them, as far as they are here
    notes: list[tuple[int, str, str]] = field(default_factory=list)    # after that id: joined or left, and who
    read: int = 0              # the id up to which one has read
    read_by: dict[str, int] = field(default_factory=dict)      # and each of the others
    first_new: int = 0         # the id at which the line "new messages" stands
    draft: str = ""
    members: list[str] = field(default_factory=list)
    count: int = 0             # of the members, which may be more than their names
    rank: float = 0            # its place where it has no message: the id of then, or for one begun here a great one

    @property
    def address(self) -> str:
        return self.key.lstrip("#")

    @property
    def name(self) -> str:
        """As a command takes it that is for people and groups."""
        return self.key.replace("#", "group:")

    @property
    def is_group(self) -> bool:
        return self.key.startswith("#")

    @property
    def last(self) -> Message | None:
        return self.messages[-1] if self.messages else None

    @property
    def age(self) -> float:
        """The newest conversation has the greatest."""
        return max(self.rank, self.messages[-1].place if self.messages else 0)

    @property
    def newest_id(self) -> int:
        return next((message.id for message in reversed(self.messages) if message.id), 0)

    def index(self, number: int) -> int:
        """The index of the first message that is not older than that id."""
        return bisect.bisect_left(self.messages, number, key=lambda message: message.place)

    def find(self, number: int) -> Message | None:
        found = self.messages[self.index(number):][:1]
        return found[0] if found and found[0].id == number else None

    def add(self, message: Message) -> Message:
        """Puts a message in its place; where it is here already, that one is given instead."""
        known = self.find(message.id) if message.id else None
        if not known:
            self.messages.insert(self.index(message.place + 1), message)
        return known or message

    def awaits(self, fields: dict) -> bool:
        """Whether an own event may be of a message whose reply has not come: only the reply's id can tell."""
        return any(message.state == "sending" and not message.id and bool(message.file) == ("file" in fields)
                   for message in self.messages)

    def answer(self, message: Message, number: int) -> None:
        """Gives a message that went out its id, if it got one, and takes in the events that waited for that."""
        self.messages = [each for each in self.messages if each is not message and each.id != number]
        message.id = number
        self.add(message)
        held, self.held = self.held, []
        for fields in held:
            if self.awaits(fields):
                self.held.append(fields)
            else:
                self.add(Message.received(fields))

    def readers(self, message: Message) -> list[str]:
        """Who of the others has read a message."""
        return [address for address, number in self.read_by.items() if 0 < message.id <= number]

    def mark(self, number: int) -> bool:
        """Notes that one has read up to an id, where that is news."""
        if number <= self.read:
            return False
        self.read = number
        newer = [message for message in self.messages[self.index(number + 1):] if message.id]
        self.unread = min(self.unread, len(newer))
        self.mentions = min(self.mentions, self.unread)
        return True

    def trim(self) -> None:
        if len(self.messages) > 2 * self.KEPT:
            del self.messages[: -self.KEPT]
            self.complete = False


class Chats:
    """All that a chat shows of one user; no control in it."""

    def __init__(self, own: str = "") -> None:
        self.own = own
        self.people: dict[str, dict] = {}          # address: a row of `info`
        self.talks: dict[str, Conversation] = {}
        self.open_groups: dict[str, int] = {}      # those one could join, and the count of their members
        self.realms: dict[str, dict] = {}
        self.groups_known = False                  # whether `groups` has been answered
        self.cut_off = False                       # whether the server can't be reached

    def talk(self, key: str) -> Conversation:
        return self.talks.setdefault(key, Conversation(key))

    def key_of(self, fields: dict) -> str:
        if "group" in fields:
            return f"#{fields['group']}"
        return fields["to"] if fields["from"] == self.own else fields["from"]

    def take(self, fields: dict) -> Conversation:
        """A message that came as an event: its conversation."""
        talk, number = self.talk(self.key_of(fields)), fields["id"]
        if fields["from"] == self.own:
            if talk.awaits(fields) and not talk.find(number):
                talk.held.append(fields)
                return talk
            talk.unread = talk.first_new = talk.mentions = 0
        elif number > talk.read and not talk.find(number):
            talk.unread += 1
            talk.mentions += self.is_named(fields.get("msg", ""))
            talk.first_new = talk.first_new or number
        talk.add(Message.received(fields))
        return talk

    def is_named(self, text: str) -> bool:
        """Whether a text names one's own user, as `@messi`."""
        return any((name or "")[1:].lower() == self.own.partition("@")[0] for _, _, name in MARKED.findall(text))

    def take_conversations(self, rows: list[dict]) -> None:
        """Rows of `conversations`. What is unread is the server's to count."""
        for row in rows:
            talk = self.talk(f"#{row['group']}" if "group" in row else row["with"])
            if row["last"] and not talk.find(row["last"]["id"]):
                if talk.messages:                  # there may be a gap before it
                    talk.messages = [message for message in talk.messages if not message.id]
                talk.add(Message.received(row["last"]))
            talk.complete = not row["last"] or talk.complete and len(talk.messages) > 1
            talk.unread, talk.read, talk.read_by = row["unread"], row["read"], row["read_by"]
            talk.rank = max(talk.rank, row["at"])
            if not talk.is_group:
                self.people.setdefault(talk.key, {"nama": row["name"], "negara": "", "online": None})

    def take_read(self, event: dict) -> None:
        """How far somebody has read; one's own reading may be news from another device."""
        talk = self.talks.get(f"#{event['group']}" if "group" in event else event["with"])
        if talk and event["user"] == self.own:
            talk.mark(event["id"])
        elif talk:
            talk.read_by[event["user"]] = event["id"]

    def take_change(self, event: dict) -> None:
        """Somebody has joined a group or left it."""
        if talk := self.talks.get(f"#{event['group']}"):
            talk.notes.append((talk.newest_id, event["change"], event["user"]))

    def take_groups(self, rows: list[dict]) -> None:
        for talk in self.talks.values():
            talk.members = []
        self.groups_known = True
        self.open_groups = {}
        self.take_open_groups(rows)
        for row in rows:
            if row["member"]:
                talk = self.talk(f"#{row['group']}")
                talk.members, talk.count = row["members"], row["count"]

    def take_open_groups(self, rows: list[dict]) -> None:
        self.open_groups |= {row["group"]: row["count"] for row in rows if not row["member"]}

    def name_of(self, key: str) -> str:
        """A person's full name, else what stands before the realm."""
        return self.people[key]["nama"] if key in self.people else key.lstrip("#").partition("@")[0]

    def is_online(self, address: str) -> bool | None:
        """Whether that person is there; None where nobody can tell, since the server or its realm is cut off."""
        link = self.realms.get(address.partition("@")[2], {}).get("link", "down")
        if self.cut_off or address.startswith("#") or link not in ("local", "up"):
            return None
        return bool(self.people.get(address, {}).get("online"))

    def listed(self) -> list[Conversation]:
        return sorted(self.talks.values(), key=lambda talk: talk.age, reverse=True)


# ---- the page's parts ----------------------------------------------------------------------------

ft: Any = None                                     # Flet, once `load_flet` has fetched it
StillList: Any = None                              # a list whose items the page's other updates pass over

HUES = ("BLUE", "TEAL", "DEEP_ORANGE", "PURPLE", "INDIGO", "PINK", "GREEN", "BROWN", "CYAN", "DEEP_PURPLE", "RED")
FENCED = re.compile(r"```(?:\w*\n)?(.*?)\n?```", re.DOTALL)
MARKED = re.compile(r"`([^`\n]+)`|((?:https?://|www\.)[^\s<>\"']+|[\w.+-]+@[\w-]+\.[\w.-]*\w)|(@[\w.-]*\w)")
STEERING = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)])     # letters that turn lines around
KEYS = (("Ctrl+K", "key_find"), ("Alt+↑ Alt+↓", "key_step"), ("↑ ↓ Enter", "key_take"), ("Esc", "key_back"),
        ("Enter", "key_send"), ("Shift+Enter", "key_line"), ("Ctrl+Shift+C", "code"), ("Tab", "key_complete"),
        ("?", "keys"))
PICTURE_MOST = 8_000_000       # bytes of a picture that is shown without being asked for
IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}


def load_flet() -> None:
    """Flet takes half a second to import, and nothing but the page needs it."""
    global ft, StillList
    if ft:
        return
    import flet as ft
    ft.context.disable_auto_update()
    StillList = ft.control(isolated=True)(type("StillList", (ft.ListView,), {"__module__": __name__}))


def color_of(name: str) -> str:
    return getattr(ft.Colors, HUES[zlib.crc32(name.encode()) % len(HUES)] + "_400")


def avatar(name: str, key: str, online: bool | None = False) -> Any:
    """A disc with initials in the colour of the name; for a person who is there, with a dot."""
    letters = "".join(word[0] for word in re.findall(r"[^\s._]+", name)[:2]).upper()
    disc = ft.CircleAvatar(content=ft.Icon(ft.Icons.GROUPS, color=ft.Colors.WHITE, size=20) if key.startswith("#")
        else ft.Text(letters or "?", size=15, weight=ft.FontWeight.W_600, color=ft.Colors.WHITE),
        bgcolor=color_of(key), radius=20)
    if not online:
        return disc
    dot = ft.Container(width=12, height=12, border_radius=6, bgcolor=ft.Colors.GREEN_500, right=0, bottom=0,
                       border=ft.Border.all(2, ft.Colors.SURFACE))
    return ft.Stack([disc, dot], width=40, height=40)


def show_text(text: str, own: str, copy_button: Callable[[str], Any]) -> Any:
    """A text with its code, its links, and where it names one's own user."""
    parts = []
    for number, part in enumerate(FENCED.split(text)):             # a text, code, a text …
        if number % 2:
            code = ft.Text(part, font_family="Mono", size=13, no_wrap=True)
            parts.append(ft.Container(ft.Row([
                ft.Row([code], scroll=ft.ScrollMode.AUTO, expand=True), copy_button(part)],
                vertical_alignment=ft.CrossAxisAlignment.START), border_radius=8, padding=ft.Padding(10, 4, 2, 4),
                bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST))
        elif part.strip():
            parts.append(ft.Text(size=14.5, spans=mark_up(part.strip("\n"), own)))
    parts[1:] = [each for part in parts[1:] for each in (unseen("\n"), part)]
    return parts[0] if len(parts) == 1 else ft.Column(parts, spacing=3, tight=True)


def mark_up(text: str, own: str) -> list[Any]:
    """A text as spans: code, links, and names that begin with @."""
    spans, done = [], 0
    link = ft.TextStyle(color=ft.Colors.PRIMARY, decoration=ft.TextDecoration.UNDERLINE)
    for found in MARKED.finditer(text):
        code, url, name = found.groups()
        whole = found[0]
        if url:                                    # what ends a sentence, or closes an earlier bracket, is not of it
            whole = whole.rstrip(".,;:!?")
            while whole.endswith(")") and whole.count("(") < whole.count(")"):
                whole = whole[:-1].rstrip(".,;:!?")
            scheme = "" if whole.startswith("http") else "https://" if whole.startswith("www.") else "mailto:"
        spans.append(ft.TextSpan(text[done:found.start()]))
        done = found.start() + len(whole)
        if url:
            spans.append(ft.TextSpan(whole, style=link, url=scheme + whole, semantics_label=whole))
        elif code:
            spans.append(ft.TextSpan(code, style=ft.TextStyle(
                font_family="Mono", bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST)))
        else:
            spans.append(ft.TextSpan(name, style=ft.TextStyle(
                weight=ft.FontWeight.BOLD, color=ft.Colors.PRIMARY,
                bgcolor=ft.Colors.TERTIARY_CONTAINER if name[1:].lower() == own.partition("@")[0] else None)))
    return [*spans, ft.TextSpan(text[done:])]


def split_quote(text: str) -> tuple[str, str]:
    """A message's text -> what it quotes at its beginning, without the marks, and the rest."""
    lines = text.split("\n")
    count = next((number for number, line in enumerate(lines) if not line.startswith("> ")), len(lines))
    return "\n".join(line[2:] for line in lines[:count]), "\n".join(lines[count:])


def small(text: str, **keywords: Any) -> Any:
    return ft.Text(text, **{"size": 12, "color": ft.Colors.ON_SURFACE_VARIANT, **keywords})


def two_lines(title: str, below: str, size: float = 14) -> Any:
    """A name with a quiet line below, each cut off where it is too long."""
    cut = {"max_lines": 1, "overflow": ft.TextOverflow.ELLIPSIS}
    return ft.Column([ft.Text(title, size=size, weight=ft.FontWeight.W_600, **cut), small(below, **cut)], spacing=2,
                     expand=True, alignment=ft.MainAxisAlignment.CENTER, tight=True)


def round_border() -> Any:
    """Of a field that stands out by its colour, not by a line."""
    return ft.OutlineInputBorder(border_radius=22, side=ft.BorderSide(0, ft.Colors.TRANSPARENT))


def blank(icon: str, text: str, *buttons: Any) -> Any:
    return ft.Container(expand=True, alignment=ft.Alignment.CENTER, padding=30, content=ft.Column(
        [ft.Icon(icon, size=56, color=ft.Colors.OUTLINE_VARIANT),
         small(text, size=14, text_align=ft.TextAlign.CENTER), *buttons],
        horizontal_alignment=ft.CrossAxisAlignment.CENTER, tight=True, spacing=12))


def unseen(text: str) -> Any:
    """What is between two texts when both are copied."""
    return ft.Text(text, size=0.01, height=2, semantics_label="")


def is_picture(message: Message) -> bool:
    """Whether a message's file is shown as a picture, if it turns out to be one."""
    return Path(message.file["name"]).suffix.lower() in IMAGES and message.file["size"] <= PICTURE_MOST


def pill(text: str) -> Any:
    return ft.Row([ft.Container(small(text), padding=ft.Padding(12, 4, 12, 4), border_radius=12,
                                bgcolor=ft.Colors.SURFACE_CONTAINER_HIGH)], alignment=ft.MainAxisAlignment.CENTER)


class Part:
    """What has a place on a window's page, its texts in the window's language, its handlers guarded by it."""

    def __init__(self, window: Window) -> None:
        self.window, self.page, self.say, self.on = window, window.page, window.say, window.on

    def button(self, icon: str, key: str, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        return ft.IconButton(self.named(icon, key), tooltip=self.say(key), on_click=self.on(work, *arguments), **more)

    def named(self, icon: str, key: str) -> Any:
        """A picture with a name for screen readers, which a button's tooltip is not."""
        return ft.Icon(icon, semantics_label=self.say(key))

    def field(self, arrows: Callable[[int], Any] | None = None, **more: Any) -> Any:
        """A field to type in; while it has the focus `arrows` hears of the keys up (-1) and down (1)."""
        def focus(has_focus: bool) -> None:
            if has_focus:
                self.window.focused = entry, arrows
            elif self.window.focused[0] is entry:
                self.window.focused = None, None

        entry = ft.TextField(dense=True, on_focus=self.on(focus, True), on_blur=self.on(focus, False), **more)
        return entry

    def item(self, icon: str, key: str, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        return ft.PopupMenuItem(icon=icon, content=self.say(key), on_click=self.on(work, *arguments), **more)

    def menu(self, icon: str, key: str, items: list[Any]) -> Any:
        return ft.PopupMenuButton(icon=self.named(icon, key), tooltip=self.say(key), items=items,
                                  menu_position=ft.PopupMenuPosition.UNDER)


# ---- one chat ------------------------------------------------------------------------------------


class ChatView(Part):
    """A whole chat: the connection, what is said over it, and the views of it. `root` goes on a page."""

    SIDE = 320                 # width of the list of conversations
    NARROW = 640               # below this, the list or the conversation
    LATER = 0.3                # seconds until what a whole class does at once is drawn, such as reading a message

    def __init__(self, window: Window, realm: str, host: str, port: int, login: tuple[str, str] | None = None) -> None:
        super().__init__(window)
        self.realm, self.host, self.port, self.login = realm, host, port, login
        self.conn: ServerConnection | None = None
        self.chats = Chats()
        self.shown: TalkView | None = None         # the conversation that is open
        self.width = 1000.0
        self.retry_at = 0.0
        self.drawing: asyncio.TimerHandle | None = None
        self.banner_text = ft.Text("", size=13, color=ft.Colors.ON_ERROR_CONTAINER)
        cloud = ft.Icon(ft.Icons.CLOUD_OFF, size=18, color=ft.Colors.ON_ERROR_CONTAINER)
        try_now = ft.TextButton(self.say("try_now"), on_click=self.on(lambda: self.conn.try_now()), height=30)
        self.banner = ft.Container(ft.Row([cloud, self.banner_text, try_now], alignment=ft.MainAxisAlignment.CENTER),
                                   bgcolor=ft.Colors.ERROR_CONTAINER, padding=4, visible=False)
        self.body = ft.Container(expand=True)
        self.form, self.list, self.tools = LoginView(self), TalkList(self), Tools(self)
        self.root = ft.Column([self.banner, self.body, self.tools.root], spacing=0, expand=True)

    # -- the session

    def fresh_connection(self, host: str = "", port: int = 0) -> ServerConnection:
        """A connection to the server that the form names, or to that one."""
        if self.conn:
            self.window.spawn(self.conn.close())
        self.conn = ServerConnection(host or self.host, port or self.port, self.realm, self.hear, self.tools.see,
                                     self.window.options.context)
        return self.conn

    async def start(self) -> None:
        """The first thing shown: the chat of a session that still lives, else the form."""
        self.body.content = ft.Container(ft.ProgressRing(), alignment=ft.Alignment.CENTER, expand=True)
        self.window.update(self.root)
        stored = await self.window.recall(self.session_key) or {}
        with contextlib.suppress(ChatError, OSError):
            if self.login:
                await self.fresh_connection().request("auth", *self.login)
            elif "token" in stored and self.form.allows(stored["host"], stored["port"]):
                await self.fresh_connection(stored["host"], stored["port"]).resume(stored["user"], stored["token"])
            if self.conn:
                return await self.entered()
        if "host" in stored and not self.window.options.server and not self.form.is_fixed:
            self.host, self.port = stored["host"], stored["port"]
        self.form.show(values={"user": stored.get("user", "")})

    @property
    def session_key(self) -> str:
        """Where the browser keeps the session; a page for each realm has its own."""
        return f"session.{self.realm if self.login else self.window.options.realm}"

    async def entered(self) -> None:
        conn = self.conn
        realms = (await conn.request("realms"))["realms"]
        conn.realm = self.realm = next((name for name, row in realms.items() if row["link"] == "local"), self.realm)
        self.chats, self.shown = Chats(f"{conn.user}@{conn.realm}"), None
        self.chats.realms = realms
        self.tools.serve(self.chats.own)
        await self.remember_session()
        self.show_chat()
        await self.read_conversations()
        await asyncio.gather(self.read_people(), self.read_groups())
        self.list.draw_self()
        await self.count_mentions()

    async def read_conversations(self) -> None:
        """What a page opens with: each conversation's last message and what is unread; events come from here on."""
        if self.conn.last_id is None:
            await self.conn.subscribe()
        before: tuple[str, ...] = ()
        while True:
            reply = await self.conn.request("conversations", *before)
            self.chats.take_conversations(reply["conversations"])
            self.draw_soon()
            if not reply["more"]:
                break
            before = (str(reply["conversations"][-1]["at"]),)

    async def remember_session(self) -> None:
        """The page's storage keeps user and token, so that a reload goes on; never the password."""
        session = {key: getattr(self.conn, key) for key in ("host", "port", "user", "token")}
        await self.window.store(self.session_key, {key: value for key, value in session.items() if value})

    async def read_people(self) -> None:
        async def ask(realm: str) -> None:
            with contextlib.suppress(ChatError):   # it is cut off
                await self.read_realm(realm)

        await asyncio.gather(*map(ask, self.chats.realms))
        self.draw_soon()

    async def read_realm(self, realm: str) -> dict:
        """The people of a realm, as many as one reply holds. Raises ChatError."""
        reply = await self.conn.request("info", realm)
        self.chats.people |= {f"{row['user']}@{row['realm']}": row for row in reply["users"]}
        return reply

    async def reach(self, key: str, word: str = "joingroup") -> None:
        """Joins a group, or makes it. Raises ChatError where that fails, or there is no person of that name."""
        if key.startswith("#"):
            if word == "addgroup" or not (key in self.chats.talks and self.chats.talks[key].members):
                await self.conn.request(word, short(key.lstrip("#"), self.realm))
                self.chats.talk(key).complete = word == "addgroup"
                await self.read_groups()
        elif key not in self.chats.people:
            try:
                reply = await self.read_realm(key.partition("@")[2])
            except ChatError as refusal:
                if refusal.code != "realm_unreachable":    # else nobody can tell; what is written waits
                    raise
            else:
                if key not in self.chats.people and not reply["more"]:
                    raise ChatError("user_not_found")

    async def read_groups(self) -> None:
        self.chats.take_groups((await self.conn.request("groups"))["groups"])
        self.draw_soon()

    async def read_history(self, talk: Conversation, count: int = 200) -> int:
        """Reads messages that are older than those here: how many came."""
        oldest = next((str(message.id) for message in talk.messages if message.id), "9" * 15)
        reply = await self.conn.request("history", talk.name, oldest, str(count))
        before = len(talk.messages)
        for fields in reply["messages"]:
            talk.add(Message.received(fields))
        talk.complete = not reply["more"]
        return len(talk.messages) - before

    async def count_mentions(self) -> None:
        """Looks for one's own name in what is unread of the newest groups."""
        for talk in [talk for talk in self.chats.listed() if talk.is_group and talk.unread][:10]:
            if len(talk.messages) < talk.unread and not self.shown:
                await self.read_history(talk, min(talk.unread, 200))
            new = talk.messages[talk.index(talk.read + 1):]
            talk.mentions = sum(message.sender != self.chats.own and self.chats.is_named(message.text)
                                for message in new)
        self.draw_soon()

    async def leave(self) -> None:
        with contextlib.suppress(ChatError):
            await self.conn.request("logout")
        await self.left()

    async def left(self, note: str = "") -> None:
        self.banner.visible = self.tools.root.visible = False
        self.tools.draw()
        self.chats, self.shown = Chats(), None
        self.window.count_unread()
        await self.remember_session()
        self.form.show(values={"user": self.conn.user})
        if note:
            self.window.toast(note)

    # -- what comes in

    def hear(self, event: dict) -> None:
        kind = event["event"]
        if kind == "message":
            self.hear_message(event)
        elif kind == "connection":
            self.hear_connection(event)
        elif kind == "status":
            for message in filter(None, (talk.find(event["id"]) for talk in self.chats.talks.values())):
                message.settle(event)
            self.draw_soon()
        elif kind == "read":
            self.chats.take_read(event)
            self.draw_soon(self.LATER)
        elif kind == "presence":
            if event["user"] in self.chats.people:
                self.chats.people[event["user"]]["online"] = event["online"]
                self.draw_soon(self.LATER)
            else:
                self.window.spawn(self.read_people())
        elif kind == "group":
            self.chats.take_change(event)
            self.window.spawn(self.read_groups())
        elif kind == "realm":
            self.chats.realms.get(event["realm"], {})["link"] = event["link"]
            self.draw_soon()
            for read in (self.read_realms, self.read_people):
                self.window.spawn(read())

    def hear_message(self, event: dict) -> None:
        """A message, from someone or from another page of one's own."""
        talk = self.chats.take(event)
        if event["from"] != self.chats.own and event["id"] > talk.read:
            self.window.notify(self, talk, event)
        shown = self.shown if self.shown and self.shown.talk is talk else None
        if not shown:
            talk.trim()
        elif shown.at_bottom and self.window.visible:
            talk.first_new = 0 if talk.first_new == event["id"] else talk.first_new      # it is being looked at
            shown.mark_read()
            if event["from"] != self.chats.own:    # to a screen reader; the others hear of the title
                text = event["file"]["name"] if "file" in event else event["msg"]
                self.window.spawn(self.window.speaker.announce_message(f"{self.chats.name_of(event['from'])}: {text}"))
        self.draw_soon()

    def hear_connection(self, event: dict) -> None:
        """The connection was lost, came back, or the session ended."""
        if event["state"] == "ended":
            self.window.spawn(self.left(self.say("ended")))
        elif event["state"] == "lost" and self.conn.token:
            self.retry_at = time.monotonic() + event["retry"]
            if not self.chats.cut_off:
                self.chats.cut_off = self.banner.visible = True
                self.window.spawn(self.count_down())
                self.draw_soon()
        elif event["state"] == "up" and self.chats.cut_off:
            self.chats.cut_off = self.banner.visible = False
            self.window.update(self.root)
            for read in (self.read_realms, self.read_people, self.read_groups, self.read_conversations,
                         self.read_states):
                self.window.spawn(read())
        elif event["state"] == "restored":
            self.window.spawn(self.entered())

    async def count_down(self) -> None:
        """Says when the next attempt will be, until the connection is back."""
        while self.banner.visible:
            seconds = max(0, round(self.retry_at - time.monotonic()))
            self.banner_text.value = self.say("lost", seconds=seconds) if seconds else self.say("trying")
            self.window.update(self.banner.parent)
            await asyncio.sleep(0.5)

    async def read_realms(self) -> None:
        """The links' state."""
        self.chats.realms = (await self.conn.request("realms"))["realms"]
        self.draw_soon()

    async def read_states(self) -> None:
        """What became of the messages that waited for another realm; what a break had of it is not told again."""
        for talk in list(self.chats.talks.values()):
            if waiting := [message.id for message in talk.messages if message.state == "queued"]:
                reply = await self.conn.request("history", talk.name, str(waiting[-1] + 1), "500")
                for fields in reply["messages"]:
                    if message := talk.find(fields["id"]):
                        message.settle(fields)
        self.draw_soon()

    # -- what goes out

    async def send_message(self, talk: Conversation, message: Message) -> None:
        talk.add(message)
        talk.unread = talk.first_new = talk.mentions = 0
        if self.shown and self.shown.talk is talk:
            self.shown.go_to_newest()
        self.draw_soon()
        number, group = 0, "group" if talk.is_group else ""
        try:
            if message.picked and not message.path:    # in a browser, the file first comes to this program
                message.path = await self.window.upload(message.picked, self.show_progress(message, 0)) \
                    if self.page.web else Path(message.picked.path)
            if message.file:
                reply = await self.conn.send_file(
                    f"send{group}file", talk.address, path=message.path, name=message.file["name"],
                    progress=self.show_progress(message, self.page.web and 0.5))
            else:
                reply = await self.conn.request(f"send{group}", talk.address, message.text)
            number, message.file = reply["id"], reply.get("file", message.file)
            message.settle(reply)
            if message.path and self.page.web:     # what the browser sent has gone on
                message.path.unlink(missing_ok=True)
        except asyncio.CancelledError:
            talk.messages.remove(message)
            return self.draw_soon()
        except (ChatError, OSError) as refusal:
            message.state, message.fault = "failed", refusal
            number = refusal.fields.get("id", 0) if isinstance(refusal, ChatError) else 0
        message.task = None
        talk.answer(message, number)
        self.draw_soon()

    def send_again(self, talk: Conversation, message: Message) -> None:
        talk.messages.remove(message)
        message.id, message.state, message.fault = 0, "sending", None
        message.task = self.window.spawn(self.send_message(talk, message))

    def discard(self, talk: Conversation, message: Message) -> None:
        talk.messages.remove(message)
        self.draw_soon()

    def show_progress(self, message: Message, start: float) -> Progress:
        drawn, message.started = 0.0, message.started if start else time.monotonic()

        def show(done: int, size: int) -> None:
            nonlocal drawn
            part = 0.5 if self.page.web and message.state == "sending" else 1
            message.done = start + part * (done / size if size else 1)
            if time.monotonic() - drawn > 0.15 and self.shown:
                drawn = time.monotonic()
                self.shown.move_bar(message)

        return show

    async def fetch(self, file_id: str, progress: Progress = unwatched) -> Path:
        """Brings a file to the person: a browser's download, or in the folder of downloads."""
        folder = self.window.new_folder() if self.page.web else self.window.options.downloads
        path = await self.conn.fetch_file(file_id, folder, progress)
        await self.window.hand_over(path)
        return path

    async def save(self, message: Message) -> None:
        if message.task:
            return

        async def fetch() -> None:
            try:
                await self.fetch(str(message.file["id"]), self.show_progress(message, 0))
            finally:
                message.task = None
                self.draw_soon()

        message.done = 0.0
        message.task = self.window.spawn(fetch())
        self.draw_soon()

    # -- what is shown

    def draw_soon(self, delay: float = 0.01) -> None:
        """Gathers into one drawing what happens within that time."""
        loop = asyncio.get_running_loop()
        if self.drawing and self.drawing.when() > loop.time() + delay:
            self.drawing.cancel()
            self.drawing = None
        if not self.drawing:
            self.drawing = loop.call_later(delay, self.draw)

    def draw(self) -> None:
        self.drawing = None
        if self.chats.own and self.window.holds(self.list.holder):
            if self.shown:
                self.shown.draw()
            elif self.pane.visible == self.is_alone:
                self.lay_out()
                self.window.update(self.root)
            self.list.draw()
            self.tools.draw_realms()
            self.window.count_unread()

    def show_chat(self) -> None:
        self.pane = ft.Container(expand=True, bgcolor=ft.Colors.SURFACE)
        self.body.content = ft.Row([self.list.build(), self.pane], spacing=0, expand=True,
                                   vertical_alignment=ft.CrossAxisAlignment.STRETCH)
        self.close_talk()

    def open(self, key: str) -> None:
        self.put_away()
        talk = self.chats.talk(key)
        talk.rank = talk.rank or (0 if talk.messages else (self.conn.last_id or 0) + 0.5)
        self.shown = TalkView(self, talk)
        self.pane.content = self.shown.root
        self.lay_out()
        self.shown.draw()
        self.draw_soon()
        self.window.update(self.root)
        if self.is_narrow and self.page.web:       # so that the browser's Back returns to the list
            self.window.spawn(self.page.push_route("/talk"))
        self.window.spawn(self.shown.fill())

    def put_away(self) -> None:
        if self.shown:
            talk, self.shown = self.shown.put_away(), None
            talk.trim()

    def close_talk(self) -> None:
        """No conversation is open: on a phone, back to the list."""
        self.put_away()
        self.pane.content = blank(ft.Icons.FORUM_OUTLINED, self.say("choose_talk"))
        self.lay_out()
        self.list.draw()
        self.window.update(self.root)

    def step(self, by: int) -> None:
        """The conversation above or below the one that is open; the first that matches if there is none, or by 0."""
        if talks := self.chats.listed():
            current = self.shown and self.shown.talk
            place = talks.index(current) + by if by and current in talks else 0
            self.open(talks[place % len(talks)].key)

    def escape(self) -> None:
        """Closes what is open, one after another, and goes back to the message field."""
        if self.tools.root.visible:
            self.tools.toggle()
        elif self.is_narrow and self.shown:
            return self.close_talk()
        if self.shown:
            self.shown.take_focus()

    def settings_menu(self) -> Any:
        window = self.window
        themes = (("system", ft.Icons.BRIGHTNESS_AUTO), ("light", ft.Icons.LIGHT_MODE), ("dark", ft.Icons.DARK_MODE))
        items = [self.item(icon, theme, window.set_theme, theme, checked=window.settings["theme"] == theme)
                 for theme, icon in themes]
        items += [ft.PopupMenuItem(), self.item(ft.Icons.TRANSLATE, "other_language", window.switch_language),
                  self.item(ft.Icons.NOTIFICATIONS, "notices", window.switch_notices,
                            checked=window.settings["notices"]),
                  self.item(ft.Icons.KEYBOARD, "keys", window.show_keys),
                  self.item(ft.Icons.TERMINAL, "tools", self.tools.toggle)]
        if self.chats.own:
            items += [ft.PopupMenuItem(), self.item(ft.Icons.LOGOUT, "logout", self.leave)]
        return self.menu(ft.Icons.MORE_VERT, "settings", items)

    def lay_out(self) -> None:
        """Side by side where it is wide; the list or the conversation where it is narrow."""
        if not self.chats.own:
            return
        side = self.list.root
        side.visible = not (self.is_narrow and self.shown)
        self.pane.visible = not self.is_alone
        side.width = None if self.is_narrow or self.is_alone else min(self.SIDE, self.width * 0.4)
        side.expand = self.is_narrow or self.is_alone

    @property
    def is_alone(self) -> bool:
        """Whether the list has nothing beside it."""
        return not self.shown and (self.is_narrow or self.chats.groups_known and not self.chats.talks)

    @property
    def is_narrow(self) -> bool:
        """Whether there is room for the list or the conversation only, as on a phone."""
        return self.width < self.NARROW

    def resize(self, width: float) -> None:
        was_narrow, self.width = self.is_narrow, width
        self.lay_out()
        if self.shown and was_narrow != self.is_narrow:
            self.open(self.shown.talk.key)


class ChatPart(Part):
    """One of the views that a chat consists of."""

    def __init__(self, view: ChatView) -> None:
        super().__init__(view.window)
        self.view = view

    @property
    def chats(self) -> Chats:
        return self.view.chats

    def count_members(self, count: int) -> str:
        return self.say("one_member") if count == 1 else f"{count} {self.say('members')}"

    def title_of(self, key: str) -> str:
        """A person's name, or a group's; with the realm where it is another's."""
        name, realm = self.chats.name_of(key), key.partition("@")[2]
        return name if realm in ("", self.view.realm) else f"{name} · {realm}"


class LoginView(ChatPart):
    """The form for login, or for a new account."""

    def show(self, registering: bool = False, values: dict[str, str] | None = None) -> None:
        say, view, values, self.registering = self.say, self.view, values or {}, registering

        def entry(key: str, **more: Any) -> Any:
            return ft.TextField(label=say(key), value=values.get(key, ""), dense=True, on_submit=self.on(self.enter),
                                **more)

        is_here = view.host in ("127.0.0.1", "localhost")
        self.here = ft.Checkbox(label=say("this_computer"), value=is_here, on_change=self.on(self.fill_server))
        server = entry("server", hint_text="host:port", on_change=self.on(self.draw_choices))
        server.value = values.get("server") or f"{view.host}:{view.port}"
        self.fields = {
            "user": entry("user", autofocus=not values.get("user")),
            "password": entry("password", password=True, can_reveal_password=True, autofocus=bool(values.get("user")))}
        if registering:
            self.fields |= {"nama": entry("nama"), "negara": entry("negara")}
        entries = list(self.fields.values())
        self.fields["server"] = server
        is_hidden = self.is_fixed or server.value in self.table.values()
        self.elsewhere = ft.Column([self.here, server], spacing=10, visible=not is_hidden, tight=True,
                                   horizontal_alignment=ft.CrossAxisAlignment.STRETCH)
        self.choices = ft.Row(wrap=True, spacing=8, run_spacing=8)
        self.draw_choices()
        hint = small(say("try_users"), visible=is_here and not registering and not values.get("user"))
        self.enter_button = ft.FilledButton(say("register" if registering else "login"), height=44,
                                            on_click=self.on(self.enter))
        other = ft.TextButton(say("have_account" if registering else "no_account"), on_click=self.on(
            lambda: self.show(not registering, {key: self.fields[key].value for key in ("server", "user")})))
        head = [ft.Icon(ft.Icons.FORUM, color=ft.Colors.PRIMARY, size=34),
                ft.Text(say("title"), size=24, weight=ft.FontWeight.W_600, expand=True), view.settings_menu()]
        card = ft.Container(width=400, padding=28, border_radius=20, bgcolor=ft.Colors.SURFACE, content=ft.Column(
            [ft.Row(head), self.choices, self.elsewhere, *entries, hint, self.enter_button, other],
            spacing=14, tight=True, horizontal_alignment=ft.CrossAxisAlignment.STRETCH))
        view.body.content = ft.Container(
            ft.Column([card], scroll=ft.ScrollMode.AUTO, horizontal_alignment=ft.CrossAxisAlignment.CENTER,
                      alignment=ft.MainAxisAlignment.CENTER),
            alignment=ft.Alignment.CENTER, bgcolor=ft.Colors.SURFACE_CONTAINER, padding=12, expand=True)
        self.window.update(view.root)

    @property
    def is_fixed(self) -> bool:
        """Whether the server is the table's: a page that others can open must be no way to any host of ours."""
        return bool(self.window.options.web_bind)

    @property
    def table(self) -> dict[str, str]:
        """The realms that one can log in at, and where each is."""
        options, demo = self.window.options, self.window.demo
        if demo:
            return {name: f"127.0.0.1:{port}" for name, port in demo.ports.items()}
        rows = common.realm_table(options.local if self.is_fixed else bool(self.here.value))
        table = {name: f"{row.address}:{row.port}" for name, row in rows.items()}
        return {**table, options.realm: "{}:{}".format(*options.place)} if self.is_fixed else table

    def draw_choices(self) -> None:
        """The realms of the table, the one that the server field names marked."""
        self.choices.controls = [
            ft.Chip(label=ft.Text(name), show_checkmark=True, tooltip=place, on_select=self.on(self.choose_realm, name),
                    selected=self.fields["server"].value == place) for name, place in self.table.items()]
        if not self.is_fixed:
            self.choices.controls.append(ft.TextButton(self.say("elsewhere"), on_click=self.on(self.unfold)))
        self.window.update(self.choices)

    def unfold(self) -> None:
        """Shows where another server is named, or hides it again."""
        self.elsewhere.visible = not self.elsewhere.visible
        self.window.update(self.elsewhere.parent)

    def choose_realm(self, name: str) -> None:
        self.view.realm = name
        self.fill_server()

    def fill_server(self) -> None:
        """Writes the chosen realm's address into the server field."""
        self.fields["server"].value = self.table.get(self.view.realm, self.fields["server"].value)
        self.draw_choices()
        self.window.update(self.fields["server"])

    def allows(self, host: str, port: int) -> bool:
        """Whether this page may lead to that server."""
        return not self.is_fixed or f"{host}:{port}" in self.table.values()

    async def enter(self) -> None:
        """Logs in, or registers; what is wrong stands beside its field."""
        if self.enter_button.disabled:             # Enter was pressed twice
            return
        values = {key: entry.value.strip() for key, entry in self.fields.items()}
        faults = self.faults_of(values)
        if not faults:
            self.enter_button.disabled = True
            self.window.update(self.enter_button)
            words = [re.sub(r"\s+", "_", value) for key, value in values.items() if key != "server"]
            try:
                await self.view.fresh_connection().request("register" if self.registering else "auth", *words)
                return await self.view.entered()
            except ConnectionError:
                faults["server"] = self.say("unreachable", place=values["server"])
            except ChatError as refusal:
                last = "negara" if self.registering else "password"
                places = {"user_exists": "user", "bad_name": "user", "too_long": last}
                faults[places.get(refusal.code, "password")] = self.window.reason(refusal)
            self.enter_button.disabled = False
        for key, entry in self.fields.items():
            entry.error = faults.get(key)
        self.elsewhere.visible = self.elsewhere.visible or "server" in faults and not self.is_fixed
        self.window.update(self.view.root)

    def faults_of(self, values: dict[str, str]) -> dict[str, str]:
        """What can be seen to be wrong before the server is asked, by field."""
        faults = {}
        try:
            self.view.host, self.view.port = common.parse_host_port(values["server"])
            if not self.allows(self.view.host, self.view.port):
                raise ValueError
        except ValueError:
            faults["server"] = self.say("bad_server")
        try:
            common.fold_name(values["user"])
        except ChatError:
            faults["user"] = self.say("bad_name")
        if re.search(r"\s", values["password"]):
            faults["password"] = self.say("no_spaces")
        return faults | {key: self.say("needed") for key, value in values.items() if not value}


class TalkList(ChatPart):
    """The list of conversations, and the ways to find or begin another."""

    def build(self) -> Any:
        self.tiles: dict[str, tuple[tuple, Any]] = {}      # key: what it was drawn from, the tile
        self.list = StillList(expand=True, padding=ft.Padding(8, 4, 8, 4), spacing=2)
        self.holder = ft.Container(self.list, expand=True)
        menu = self.menu(ft.Icons.EDIT_SQUARE, "new", [self.item(icon, key, work) for icon, key, work in (
            (ft.Icons.PERSON_ADD, "new_message", lambda: self.find("new_message")),
            (ft.Icons.GROUP_ADD, "new_group", self.ask_new_group), (ft.Icons.LOGIN, "join_group", self.ask_join))])
        finder = ft.TextButton(self.say("find"), icon=ft.Icons.SEARCH, height=40, on_click=self.on(self.find),
                               style=ft.ButtonStyle(bgcolor=ft.Colors.SURFACE_CONTAINER_HIGHEST,
                                                    alignment=ft.Alignment.CENTER_LEFT))
        self.self_box = ft.Container(expand=True)
        self.draw_self()
        head = ft.Row([self.self_box, self.button(ft.Icons.TERMINAL, "tools", self.view.tools.toggle), menu,
                       self.view.settings_menu()], spacing=4)
        top = ft.Column([head, finder], spacing=8, horizontal_alignment=ft.CrossAxisAlignment.STRETCH)
        self.root = ft.Container(ft.Column([ft.Container(top, padding=ft.Padding(12, 10, 8, 0)), self.holder],
            spacing=8, expand=True, horizontal_alignment=ft.CrossAxisAlignment.STRETCH),
            bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        return self.root

    def draw_self(self) -> None:
        name = self.chats.name_of(self.chats.own)
        self.self_box.content = ft.Row([avatar(name, self.chats.own), two_lines(name, self.chats.own)], spacing=10)
        self.window.update(self.self_box)

    def draw(self) -> None:
        """The tiles in their order."""
        if tiles := [self.tile(talk) for talk in self.chats.listed()]:
            self.list.controls, self.holder.content = tiles, self.list
        elif self.chats.groups_known:              # else they are still to come
            self.holder.content = blank(
                ft.Icons.CHAT_BUBBLE_OUTLINE, self.say("no_talks"),
                ft.FilledButton(self.say("new_message"), on_click=self.on(self.find, "new_message")),
                ft.OutlinedButton(self.say("join_group"), on_click=self.on(self.ask_join)))
        self.window.update(self.holder)

    def tile(self, talk: Conversation) -> Any:
        """A conversation in the list; drawn anew only if something about it has changed."""
        shown, last = self.view.shown, talk.last
        version = (self.title_of(talk.key), self.preview(talk), self.chats.is_online(talk.key), talk.unread,
                   talk.mentions, last and self.window.show_day(last.when, short_form=True),
                   bool(shown and shown.talk is talk))
        known, tile = self.tiles.get(talk.key, (None, None))
        if known != version:
            tile = self.draw_tile(talk.key, *version)
            self.tiles[talk.key] = version, tile
        return tile

    def draw_tile(self, key: str, name: str, preview: str, online: bool, unread: int, mentions: int,
                  day: str | None, is_marked: bool) -> Any:
        end = [small(day, size=11)] if day else []
        counts = [f"@{mentions if mentions > 1 else ''}"] * bool(mentions)
        counts += [str(unread) if unread < 100 else "99+"] * bool(unread)
        end.append(ft.Row([ft.Container(
            ft.Text(count, size=11, color=ft.Colors.ON_PRIMARY), border_radius=10, padding=ft.Padding(7, 2, 7, 2),
            bgcolor=ft.Colors.TERTIARY if count.startswith("@") else ft.Colors.PRIMARY) for count in counts],
            spacing=4, tight=True, visible=bool(counts)))
        content = ft.Row([avatar(name, key, online), two_lines(name, preview),
            ft.Column(end, spacing=4, horizontal_alignment=ft.CrossAxisAlignment.END, tight=True)], spacing=12)
        return ft.Container(content, border_radius=14, padding=ft.Padding(10, 8, 10, 8), ink=True,
                            bgcolor=ft.Colors.SECONDARY_CONTAINER if is_marked else None,
                            on_click=self.on(self.view.open, key))

    def preview(self, talk: Conversation) -> str:
        if talk.draft and not (self.view.shown and self.view.shown.talk is talk):
            return f"{self.say('draft')}: {' '.join(talk.draft.split())[:120]}"
        if not talk.last:
            return self.say("no_messages")
        who = self.say("you") if talk.last.sender == self.chats.own else \
            self.chats.name_of(talk.last.sender) if talk.is_group else ""
        text = talk.last.words.replace("\n", " ")[:120]
        return f"{who}: {text}" if who else text

    # -- dialogs

    def find(self, title: str = "find") -> None:
        """Conversations, and below them the people and groups that one could have one with."""
        chats = self.chats
        rows = [(talk.key, self.preview(talk)) for talk in chats.listed()]
        rows += [(address, f"{address} · {person['negara']}") for address, person in sorted(
            chats.people.items(), key=lambda row: (not chats.is_online(row[0]), row[1]["nama"]))
            if address not in chats.talks and address != chats.own]
        rows += [(f"#{group}", f"{group} · {self.say('join_group')}") for group in chats.open_groups
                 if f"#{group}" not in chats.talks]
        Chooser(self.view, self.say(title), "person_hint", rows)
        self.window.spawn(self.view.read_people())

    def ask_new_group(self) -> None:
        Chooser(self.view, self.say("new_group"), "group_name", [], is_group=True,
                check=lambda key: self.view.reach(key, "addgroup"))

    async def ask_join(self) -> None:
        await self.view.read_groups()
        for realm, row in self.chats.realms.items():
            with contextlib.suppress(ChatError):   # it is cut off
                if row["link"] == "up":
                    self.chats.take_open_groups((await self.view.conn.request("groups", realm))["groups"])
        Chooser(self.view, self.say("join_group"), "group_hint", [
            (f"#{address}", f"{address} · {self.count_members(count)}")
            for address, count in self.chats.open_groups.items()], is_group=True)


class Chooser(ChatPart):
    """A dialog that asks for a person or a group: a field for a name, below it the rows that match."""

    MOST = 100                 # rows at once; who looks for another one types

    def __init__(self, view: ChatView, title: str, hint: str, rows: list[tuple[str, str]],
                 check: Callable[[str], Awaitable[None]] | None = None, work: Callable[[str], Any] | None = None,
                 is_group: bool = False, buttons: Iterable[Any] = ()) -> None:
        """Each row is a conversation's key, and the line below its name.

        `check`, else `reach`, raises ChatError where a name is not to be had; `work` is done with it, else its
        conversation opened.
        """
        super().__init__(view)
        self.rows, self.check, self.work, self.is_group = rows, check or view.reach, work or view.open, is_group
        self.marked = 0
        self.entry = self.field(self.draw, label=self.say(hint), autofocus=True, on_change=self.on(self.draw),
                                on_submit=self.on(self.submit))
        self.listing = ft.ListView(expand=True)
        self.draw()
        content = ft.Column([self.entry, self.listing], width=380, height=380 if rows else 80,
                            horizontal_alignment=ft.CrossAxisAlignment.STRETCH)
        ok = ft.FilledButton(self.say("ok"), on_click=self.on(self.submit))
        self.window.show_dialog(title, content, [*buttons, ok])

    def matching(self) -> list[tuple[str, str]]:
        words = (self.entry.value or "").lower()
        return [row for row in self.rows if words in f"{row[0]} {self.title_of(row[0])}".lower()][:self.MOST]

    def draw(self, by: int = 0) -> None:
        """The rows that match; the mark moves that far, or is at the first where something else was typed."""
        found = self.matching()
        self.marked = (self.marked + by) % max(1, len(found)) if by else 0
        self.listing.controls = [
            ft.ListTile(leading=avatar(self.title_of(key), key, self.chats.is_online(key)),
                        title=two_lines(self.title_of(key), below), on_click=self.on(self.take, key),
                        selected=number == self.marked, selected_tile_color=ft.Colors.SECONDARY_CONTAINER)
            for number, (key, below) in enumerate(found)]
        self.window.update(self.listing)

    def chosen(self) -> str:
        """The name that was typed where it is whole, else the marked row's. Raises ChatError."""
        keys, typed = [key for key, _ in self.matching()], self.entry.value.strip()
        try:
            name = "#" * self.is_group + "@".join(common.parse_address(typed, self.view.realm))
        except ChatError:
            if not keys:
                raise
            name = ""
        return keys[self.marked] if keys and (self.marked or name not in keys) else name

    async def submit(self) -> None:
        try:
            await self.take(self.chosen())
        except ChatError as refusal:
            self.entry.error = self.window.reason(refusal)
            self.window.update(self.entry)

    async def take(self, key: str) -> None:
        await self.check(key)
        self.page.pop_dialog()
        await self.window.guard(self.work, key)


class TalkView(ChatPart):
    """The conversation that is open. Its rows are a function of its messages and of the window that is shown."""

    PAGE = 50                  # messages shown at once, and more with each scroll to the top
    MOST = 400                 # rows that stay while one reads the newest
    LOOK_BACK = 1000           # rows at most: past this the window moves
    UNREAD = 1000              # what `conversations` counts to

    def __init__(self, view: ChatView, talk: Conversation) -> None:
        super().__init__(view)
        self.talk = talk
        self.first = max(0, len(talk.messages) - self.PAGE)        # the index of the oldest message that is shown
        self.last_id = 0                           # of the newest one shown; 0: whatever is the newest
        self.at_bottom, self.loading = True, False
        self.rows: dict[Message, tuple[tuple, Any]] = {}           # each with what it was drawn from
        self.bars: dict[Message, tuple[Any, Any]] = {}     # of the files among them, and what is said beside it
        self.pointed: Message | None = None        # the message on which the mouse or a finger was last
        self.hovered: Any = None                   # beside the bubble that the mouse was on last: the way to its menu
        self.head: tuple = ()                      # what the header was drawn from
        self.holder = ft.Container(expand=True)
        self.header = ft.Container(padding=ft.Padding(14, 8, 14, 8), bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        self.jump = ft.Container(visible=False, bottom=10, right=18, content=ft.FilledTonalButton(
            "", icon=ft.Icons.ARROW_DOWNWARD, on_click=self.on(self.go_to_newest)))
        self.input_box = ft.Container(expand=True)
        self.quoted: Message | None = None         # what the next message replies to
        self.reply_bar = ft.Container()            # always there: the field would lose the focus when it comes or goes
        self.fresh_input(talk.draft, not view.is_narrow)       # a phone's keyboard would cover what one came to read
        self.composer = ft.Container(ft.Column([self.reply_bar, ft.Row([
            self.button(ft.Icons.ATTACH_FILE, "attach", self.attach),
            self.button(ft.Icons.CODE, "code", self.fence), self.input_box,
            self.button(ft.Icons.SEND_ROUNDED, "send", self.send, True, icon_color=ft.Colors.PRIMARY)],
            vertical_alignment=ft.CrossAxisAlignment.END, spacing=4)], spacing=4, tight=True),
            padding=ft.Padding(8, 6, 8, 10), bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        self.left_note = ft.Container(ft.Row([
            small(self.say("not_a_member"), expand=True),
            ft.FilledTonalButton(self.say("join_again"), on_click=self.on(self.view.reach, talk.key))]),
            padding=14, visible=False)
        self.root = ft.Column([self.header, ft.Stack([self.holder, self.jump], expand=True), self.composer,
                               self.left_note], spacing=0, expand=True)
        self.fresh_list()

    def put_away(self) -> Conversation:
        self.talk.draft, self.talk.first_new = self.input.value or "", 0
        return self.talk

    # -- what is shown

    def fresh_list(self) -> None:
        self.list = StillList(expand=True, reverse=True, spacing=3, on_scroll=self.window.heard(self.scrolled),
                              scroll_interval=60, padding=ft.Padding(16, 10, 16, 10), key=secrets.token_hex(4))
        items = self.menu_items()                  # one menu for all: one for each row would weigh as much as the rest
        self.holder.content = ft.SelectionArea(ft.ContextMenu(
            content=self.list, secondary_items=items, primary_items=items,
            primary_trigger=ft.ContextMenuTrigger.LONG_PRESS))

    def draw(self) -> None:
        """The header, the rows of the window, and the way to what is newer, as they stand."""
        self.draw_header()
        messages, count = self.talk.messages, self.end
        if not self.last_id and count - self.first > self.MOST:
            self.first = count - self.PAGE
        self.rows = {message: self.rows.get(message, ((), None)) for message in messages[self.first:count]}
        rows = [self.row(number) for number in reversed(range(self.first, count))]
        if list(map(id, rows)) != list(map(id, self.list.controls)):
            self.list.controls = rows
            self.window.update(self.holder)
        self.draw_jump()

    @property
    def end(self) -> int:
        """The index behind the newest message that is shown."""
        return self.talk.index(self.last_id + 1) if self.last_id else len(self.talk.messages)

    def draw_header(self) -> None:
        talk, say, online = self.talk, self.say, self.chats.is_online(self.talk.key)
        if talk.is_group:
            names = ", ".join(short(member, self.view.realm) for member in talk.members[:8])
            names += ", …" if len(talk.members) > 8 else ""
            state = f"{self.count_members(talk.count)}: {names}" if talk.members else say("not_a_member")
        else:
            state = f"{talk.address} · {say({None: 'is_unknown', True: 'is_online', False: 'is_offline'}[online])}"
        title = self.title_of(talk.key)
        muted = talk.key in self.window.settings["muted"]
        head = title, state, online, self.view.is_narrow, muted
        if head == self.head:
            return
        self.head = head
        parts = [avatar(title, talk.key, online), two_lines(title, state, 16)]
        if self.view.is_narrow:
            parts.insert(0, self.button(ft.Icons.ARROW_BACK, "back", self.view.close_talk))
        parts.append(self.button(ft.Icons.NOTIFICATIONS_OFF if muted else ft.Icons.NOTIFICATIONS_NONE,
                                 "unmute" if muted else "mute", self.window.mute, talk, icon_size=20))
        parts.append(self.button(ft.Icons.SEARCH, "search", self.search, icon_size=20))
        if talk.is_group:
            parts.append(self.button(ft.Icons.GROUPS, "members", self.show_members))
        self.header.content = ft.Row(parts, spacing=12)
        self.left_note.visible = talk.is_group and not talk.members and bool(self.chats.groups_known)
        self.composer.visible = not self.left_note.visible
        self.window.update(self.header, self.root)

    def draw_jump(self) -> None:
        """The way to the newest, with how many are below."""
        below = len(self.talk.messages) - self.end
        words = self.say("count_new", count=below) if below else self.say("newest")
        if (self.jump.visible, self.jump.content.content) != (not self.at_bottom, words):
            self.jump.visible, self.jump.content.content = not self.at_bottom, words
            self.window.update(self.jump.parent)

    def row(self, number: int) -> Any:
        """A message as a row of the list; drawn anew only if something about it has changed."""
        message, before = self.talk.messages[number], self.talk.messages[number - 1] if number else None
        day = not before or before.when.date() != message.when.date()
        line = bool(0 < self.talk.first_new <= message.id and (not before or before.id < self.talk.first_new))
        follows = bool(not day and not line and before.sender == message.sender
                       and (message.when - before.when).total_seconds() < 300)
        notes = [(change, who) for after, change, who in self.talk.notes if after and after == message.id]
        version = (message.id, message.state, message.fault, message.source, message.task is None, day, line, follows,
                   len(notes),
                   self.talk.is_group and self.title_of(message.sender),
                   tuple(self.talk.readers(message)) if message.sender == self.chats.own else ())
        known, row = self.rows[message]
        if known != version:
            row = self.draw_row(message, day, line, follows, notes)
            self.rows[message] = version, row
        return row

    def draw_row(self, message: Message, day: bool, line: bool, follows: bool, notes: list[tuple[str, str]]) -> Any:
        """A bubble; above it a new day, or that from here on all is new, below it who joined or left then."""
        above = [pill(self.window.show_day(message.when))] if day else []
        if line:
            style = {"color": ft.Colors.PRIMARY, "expand": True}
            words = small(self.say("new_messages"), color=ft.Colors.PRIMARY)
            above.append(ft.Row([ft.Divider(**style), words, ft.Divider(**style)]))
        who = self.say("you") if message.sender == self.chats.own else self.title_of(message.sender)
        bubble = ft.Semantics(content=self.draw_bubble(message, follows, who), identifier=f"msg-{message.id}",
                              label=f"{who}, {message.when:%H:%M}", container=True)
        below = [pill(self.say(change, user=self.chats.name_of(user), group=short(self.talk.address, self.view.realm)))
                 for change, user in notes]
        return ft.Column([*above, bubble, *below], spacing=8) if above or below else bubble

    def draw_bubble(self, message: Message, follows: bool, who: str) -> Any:
        """A message; one's own stands on the right. One that follows another of its sender has no name."""
        mine, edge = message.sender == self.chats.own, 4 if follows else 16
        content = ft.Column(self.parts_of(message, mine, follows, who), spacing=2, tight=True,
                            horizontal_alignment=ft.CrossAxisAlignment.END if mine else ft.CrossAxisAlignment.START)
        bubble = ft.Container(
            content, bgcolor=ft.Colors.PRIMARY_CONTAINER if mine else ft.Colors.SURFACE_CONTAINER_HIGH, expand=True,
            border_radius=ft.BorderRadius(16 if mine else edge, edge if mine else 16, 16, 16), expand_loose=True,
            padding=ft.Padding(12, 3, 12, 5), margin=ft.Margin.only(top=0 if follows else 6))
        gap = ft.Container(width=max(48, self.view.width - (0 if self.view.is_narrow else self.view.SIDE) - 620),
                           alignment=ft.Alignment.CENTER_RIGHT if mine else ft.Alignment.CENTER_LEFT)
        row = ft.Row([gap, bubble] if mine else [bubble, gap], spacing=0,
                     alignment=ft.MainAxisAlignment.END if mine else ft.MainAxisAlignment.START)

        def point(by_mouse: bool) -> None:
            self.pointed = message
            if by_mouse:
                self.offer_menu(gap)

        return ft.GestureDetector(row, on_enter=self.on(point, True), on_tap_down=self.on(point, False),
                                  allowed_devices=[ft.PointerDeviceType.TOUCH], exclude_from_semantics=True)

    def parts_of(self, message: Message, mine: bool, follows: bool, who: str) -> list[Any]:
        """What stands in a bubble: the sender, what is quoted, the text or the file, the foot."""
        quoted, text = split_quote(message.text)
        named = self.talk.is_group and not mine and not follows
        parts = [unseen("\n" if named else f"\n{who}: ")]
        if named:
            name = ft.Text(who, size=12, weight=ft.FontWeight.W_600, color=color_of(message.sender))
            parts.append(ft.Row([name, unseen(": ")], spacing=0, tight=True))
        if quoted:
            parts.append(ft.Container(
                small(quoted, max_lines=4, overflow=ft.TextOverflow.ELLIPSIS), ink=True, padding=ft.Padding(8, 2, 8, 2),
                border=ft.Border.only(left=ft.BorderSide(3, ft.Colors.PRIMARY)),
                on_click=self.on(self.go_to_quoted, message, quoted)))
        parts.append(self.draw_file(message) if message.file else show_text(
            text, self.chats.own, lambda code: self.button(
                ft.Icons.COPY, "copy", self.window.copy, code, icon_size=15)))
        parts.append(self.draw_foot(message, mine))
        if message.state == "failed" and mine:
            parts.append(ft.Row([
                ft.TextButton(self.say(key), icon=icon, on_click=self.on(work, self.talk, message)) for key, icon, work
                in (("again", ft.Icons.REFRESH, self.view.send_again),
                    ("discard", ft.Icons.DELETE_OUTLINE, self.view.discard))], tight=True))
        return parts

    def menu_items(self) -> list[Any]:
        """What can be done with the message that was pointed at last."""
        return [self.item(icon, key, lambda work=work: self.pointed and work(self.pointed)) for icon, key, work in (
            (ft.Icons.REPLY, "reply", self.reply), (ft.Icons.COPY, "copy", self.copy),
            (ft.Icons.INFO_OUTLINE, "info", self.show_info), (ft.Icons.FORWARD, "forward", self.forward))]

    def offer_menu(self, gap: Any) -> None:
        """Beside the bubble that the mouse has come to, the way to its menu."""
        if self.hovered is not gap:
            if self.hovered:
                self.hovered.content = None
            gap.content = self.menu(ft.Icons.MORE_HORIZ, "menu", self.menu_items())
            gap.content.tooltip = self.pointed.when.isoformat(" ", "milliseconds")[:-6] + f" · {self.pointed.id}"
            self.window.update(self.hovered, gap)
            self.hovered = gap

    def draw_foot(self, message: Message, mine: bool) -> Any:
        """Why a message is not there yet, when it was written, and what became of one's own."""
        color = ft.Colors.ERROR if message.state == "failed" else ft.Colors.ON_SURFACE_VARIANT
        reason = self.window.reason(message.fault) if message.fault else \
            self.say("queued") if message.state == "queued" else ""
        foot = [small(reason, size=11, color=color)] if reason else []
        foot.append(small(f" {message.when:%H:%M}", size=10.5, semantics_label=""))
        if mine:
            readers = [self.chats.name_of(reader) for reader in self.talk.readers(message)]
            state = "read" if readers else message.state
            icon = {"sending": ft.Icons.SCHEDULE, "delivered": ft.Icons.DONE, "queued": ft.Icons.HOURGLASS_TOP,
                    "failed": ft.Icons.ERROR_OUTLINE, "read": ft.Icons.DONE_ALL}[state]
            words = f"{self.say(f'is_{state}')}{': ' if readers else ''}{', '.join(readers)}"
            foot.append(ft.Icon(icon, size=13, color=ft.Colors.PRIMARY if readers else color, semantics_label=words,
                                tooltip=words))
        return ft.Row(foot, spacing=4, tight=True)

    def draw_file(self, message: Message) -> Any:
        """A picture in its own shape, or a card."""
        name = message.file["name"]
        shown = is_picture(message) and message.source != "none"
        if shown and message.id and not message.source and not message.task and message.state != "failed":
            message.task = self.window.spawn(self.load_picture(message))
        if not (shown and message.source):
            return self.draw_card(message, shown)
        picture = ft.Image(src=message.source, border_radius=10, semantics_label=name,
                           error_content=self.draw_card(message, shown))
        return ft.IconButton(       # a picture has its own size, and no button but this one can bound that
            picture, size_constraints=ft.BoxConstraints(max_width=280, max_height=320), padding=0, tooltip=name,
            style=ft.ButtonStyle(shape=ft.RoundedRectangleBorder(radius=10)), on_click=self.on(self.enlarge, message))

    def draw_card(self, message: Message, as_picture: bool) -> Any:
        """A file's name and size; a bar while it is on its way."""
        name = message.file["name"]
        moving = message.task is not None and not as_picture or message.state == "sending"
        if moving:
            button = self.button(ft.Icons.CLOSE, "cancel", self.cancel, message, icon_size=20)
        else:
            button = self.button(ft.Icons.DOWNLOAD, "save", self.view.save, message, icon_size=20,
                                 disabled=not message.id)
        icon = ft.Icons.IMAGE if as_picture else ft.Icons.INSERT_DRIVE_FILE
        words = small(self.words_of(message, moving), size=11)
        card = ft.Row([ft.Container(ft.Icon(icon, color=ft.Colors.ON_PRIMARY, size=20), bgcolor=ft.Colors.PRIMARY,
                         border_radius=10, padding=9),
            ft.Column([ft.Text(name, max_lines=2, overflow=ft.TextOverflow.ELLIPSIS, size=13.5),
                       words], spacing=0, expand=True, tight=True), button], spacing=10)
        bar = ft.ProgressBar(value=message.done, bar_height=5, border_radius=3, visible=moving)
        self.bars[message] = bar, words
        return ft.Container(ft.Column([card, bar], tight=True, spacing=4), width=290)

    def move_bar(self, message: Message) -> None:
        """Shows how far a file is. That alone: a button drawn anew would miss its click."""
        if message in self.bars:
            bar, words = self.bars[message]
            bar.value, words.value = message.done, self.words_of(message, True)
            self.window.update(bar, words)

    @staticmethod
    def words_of(message: Message, moving: bool) -> str:
        """A file's size; while it is on its way also how much has gone, and how quickly."""
        size, seconds = message.file["size"], time.monotonic() - message.started
        if not (moving and message.started and seconds > 0):
            return show_size(size)
        done = round(message.done * size)
        return f"{show_size(done)} / {show_size(size)} · {show_size(round(done / seconds))}/s"

    # -- reading

    async def scrolled(self, event: Any) -> None:
        """Near the top older messages come, near the bottom newer ones; else nothing moves, whatever arrives."""
        messages = self.talk.messages
        self.at_bottom = event.pixels < 40 and self.end == len(messages)
        if self.at_bottom:
            self.last_id = 0
        elif messages and not self.last_id:
            self.last_id = messages[-1].place
        if not self.loading:
            self.loading = True
            try:
                if event.pixels < 600 and self.end < len(messages):
                    await self.load_newer(event)
                if event.pixels > event.max_scroll_extent - 600 and (self.first or not self.talk.complete):
                    await self.load_older(event)
            finally:
                self.loading = False
        self.draw_jump()

    def go_to_newest(self) -> None:
        if not self.at_bottom:
            self.last_id, self.at_bottom = 0, True
            self.first = max(0, len(self.talk.messages) - self.PAGE)
            self.fresh_list()
            self.draw()
            self.mark_read()

    async def fill(self) -> None:
        """Reads what is not here yet, back to the first unread message, and begins there."""
        talk, unread = self.talk, self.talk.unread
        unread = unread if unread < self.UNREAD else 0     # of so many the first is too far away
        while not talk.complete and (len(talk.messages) < self.PAGE or unread and talk.messages[0].id > talk.read):
            await self.read_history()
        new = [message for message in talk.messages[talk.index(talk.read + 1):] if message.sender != self.chats.own]
        if unread and new:
            talk.first_new = new[0].id
        if unread > self.PAGE // 2 and new:
            await self.show_from(talk.index(talk.first_new))
        else:
            self.first = max(0, len(talk.messages) - self.PAGE)
            self.draw()
        self.mark_read()

    async def show_from(self, number: int) -> None:
        """Moves the window so that the message of that index is seen, with some that follow it."""
        messages, end = self.talk.messages, number + self.PAGE
        self.first = max(0, number - self.PAGE)
        self.last_id = messages[end].id if end < len(messages) else self.talk.newest_id
        self.at_bottom = False
        self.fresh_list()
        self.draw()
        heights = [45 + 20 * (len(message.text) // 70 + message.text.count("\n")) for message in messages[number:end]]
        await self.list.scroll_to(offset=max(0, sum(heights) - 300), duration=0)

    async def read_history(self) -> None:
        """A page of messages that are older than those here."""
        self.first += await self.view.read_history(self.talk)

    async def load_older(self, event: Any) -> None:
        """One more page above those that are shown; past LOOK_BACK rows the newest ones are let go."""
        if self.first < self.PAGE and not self.talk.complete:
            await self.read_history()
        if self.end - self.first >= self.LOOK_BACK:
            height = (event.max_scroll_extent + event.viewport_dimension) / (self.end - self.first)
            below = self.first + round((event.max_scroll_extent + event.viewport_dimension - event.pixels) / height)
            self.last_id = self.talk.messages[min(below, self.end - 1)].place
            self.fresh_list()
        self.first = max(0, self.first - self.PAGE)
        self.draw()

    async def load_newer(self, event: Any) -> None:
        """More below those that are shown, and the view stays about where it is."""
        messages, before = self.talk.messages, self.end
        end = min(before + 4 * self.PAGE, len(messages))
        height = (event.max_scroll_extent + event.viewport_dimension) / max(1, before - self.first)
        self.last_id = messages[end - 1].place if end < len(messages) else 0
        self.first = max(self.first, end - self.LOOK_BACK)
        self.draw()
        await asyncio.sleep(0.05)                  # the list has them only with the page's next frame
        await self.list.scroll_to(offset=event.pixels + (end - before) * height, duration=0)
        self.mark_read()

    def mark_read(self) -> None:
        """What is shown has been seen, if the page is."""
        newest = max((message.id for message in self.talk.messages[self.first:self.end][-self.PAGE:]), default=0)
        if self.window.visible and self.talk.mark(newest):
            self.window.spawn(self.view.conn.request("read", self.talk.name, str(newest)))
            self.view.draw_soon()

    # -- writing

    def fresh_input(self, text: str = "", focus: bool = True) -> None:
        """An empty field that has the focus: Flet can't give it to one that was there before."""
        self.input = self.field(value=text, hint_text=self.say("write"), multiline=True, shift_enter=True,
            min_lines=1, max_lines=6, filled=True, autofocus=focus, key=secrets.token_hex(4),
            border=round_border(), on_submit=self.on(self.send))
        self.input_box.content = ft.Semantics(content=self.input, label=self.say("message"))     # hints come and go

    def take_focus(self) -> None:
        self.fresh_input(self.input.value or "")
        self.window.update(self.input_box)

    async def send(self, by_button: bool = False) -> None:
        text = (self.input.value or "").strip()
        if self.is_too_long() or not text:
            return
        if self.quoted:
            lines = self.quoted.words.split("\n")[:4]
            text = "\n".join([*[f"> {line}" for line in lines], text])
            self.reply(None)
        if by_button:
            self.fresh_input()
            self.window.update(self.input_box)
        else:
            self.input.value = ""
            self.window.update(self.input)
        await self.view.send_message(self.talk, self.outgoing(text))

    def is_too_long(self) -> bool:
        """Says so beside the field, until it is short enough."""
        too_long = len((self.input.value or "").strip().replace("\n", LINE_BREAK).encode()) > common.MAX_TEXT
        if too_long != bool(self.input.error):
            self.input.error = self.say("too_long", size=show_size(common.MAX_TEXT)) if too_long else None
            self.input.on_change = self.on(self.is_too_long) if too_long else None     # else typing is not followed
            self.window.update(self.input)
        return too_long

    def reply(self, message: Message | None) -> None:
        """The next message quotes that one; None: no message."""
        self.quoted, self.reply_bar.content = message, None
        if message:
            name = self.say("replying", name=self.chats.name_of(message.sender))
            self.reply_bar.content = ft.Row([
                ft.Icon(ft.Icons.REPLY, size=18, color=ft.Colors.PRIMARY),
                two_lines(name, message.words.replace("\n", " "), 12.5),
                self.button(ft.Icons.CLOSE, "cancel", self.reply, None, icon_size=18)], spacing=8)
            self.take_focus()
        self.window.update(self.reply_bar.parent)

    async def copy(self, message: Message) -> None:
        await self.window.copy(message.text or message.words)

    async def go_to_quoted(self, message: Message, quoted: str) -> None:
        """To the newest earlier message with that text, as far as they are here."""
        place = self.talk.index(message.place)
        found = [number for number in range(place) if quoted.split("\n")[0] in self.talk.messages[number].words]
        if found:
            await self.show_from(found[-1])

    def show_info(self, message: Message) -> None:
        """All that is known of a message."""
        file = message.file or {}
        readers = ", ".join(self.talk.readers(message))
        rows = [("id", message.id), ("uid", message.uid), ("from", message.sender),
                ("to", self.chats.own if message.sender == self.talk.key else self.talk.address),
                ("ts", message.when.isoformat(" ", "milliseconds")), ("state", message.state), ("read", readers),
                ("size", f"{file['size'] if file else len(message.text.encode())} B"), ("sha256", file.get("sha256"))]
        self.window.show_fields(self.say("info"), [(key, str(value)) for key, value in rows if value])

    def forward(self, message: Message) -> None:
        """A dialog that asks to which conversation."""
        async def send(key: str) -> None:
            copy = self.outgoing(message.text, message.file)
            if message.file:
                copy.path = await self.view.conn.fetch_file(str(message.file["id"]), self.window.new_folder())
            await self.view.send_message(self.chats.talk(key), copy)

        rows = [(talk.key, talk.address) for talk in self.chats.listed()]
        Chooser(self.view, self.say("forward"), "person_hint", rows, work=send)

    def fence(self) -> None:
        """Makes code of what is selected, or of all that was typed."""
        text, chosen = self.input.value or "", self.input.selection
        start, end = sorted((chosen.base_offset, chosen.extent_offset)) if chosen else (0, 0)
        start, end = (start, end) if 0 <= start < end <= len(text) else (0, len(text))
        self.fresh_input(f"{text[:start]}```\n{text[start:end]}\n```{text[end:]}")
        self.window.update(self.input_box)

    async def attach(self) -> None:
        """Picks files, to be sent if one agrees; pictures come here at once, to be shown."""
        picked = await self.window.picker.pick_files(allow_multiple=True) or []
        messages = [self.outgoing(file={"name": each.name, "size": each.size}, picked=each) for each in picked]
        for message in messages:
            if is_picture(message) and self.page.web:
                message.path = await self.window.upload(message.picked)
        self.ask_to_send(messages)

    def outgoing(self, text: str = "", file: dict | None = None, **more: Any) -> Message:
        return Message(self.chats.own, datetime.now().astimezone(), text, file, state="sending", **more)

    def ask_to_send(self, messages: list[Message]) -> None:
        """A sheet with the files, and a text that goes with them."""
        most = self.window.options.max_file * MIB
        for message in messages:
            if message.file["size"] > most:
                self.window.toast(self.say("file_too_large", name=message.file["name"], size=show_size(most)))
        messages = [message for message in messages if message.file["size"] <= most]
        if not messages:
            return

        async def send() -> None:
            self.page.pop_dialog()
            for message in messages:
                message.task = self.window.spawn(self.view.send_message(self.talk, message))
            await asyncio.gather(*[message.task for message in messages], return_exceptions=True)
            if text := caption.value.strip():
                await self.view.send_message(self.talk, self.outgoing(text))

        caption = self.field(label=self.say("caption"), autofocus=True, on_submit=self.on(send))
        size = show_size(sum(message.file["size"] for message in messages))
        count = "1 file" if len(messages) == 1 else f"{len(messages)} {self.say('files')}"
        title = self.say("send_files", count=count, size=size, name=self.title_of(self.talk.key))
        previews = [self.preview(message) for message in messages]
        listing = ft.ListView(previews, spacing=8, expand=True)
        height = sum(preview.height + 8 for preview in previews)
        content = ft.Column([listing, caption], width=380, height=min(height, (self.page.height or 800) * 0.5) + 60)
        self.window.show_dialog(title, content, [ft.FilledButton(self.say("send"), on_click=self.on(send))])

    def preview(self, message: Message) -> Any:
        """A file that is about to go: a picture if it is one and is here, else its name and size."""
        name = message.file["name"]
        words = two_lines(name, show_size(message.file["size"]))
        if is_picture(message) and message.path:
            picture = message.path.with_suffix(Path(name).suffix.lower())
            shutil.copyfile(message.path, picture)
            return ft.Image(src=self.window.publish(picture), height=160, fit=ft.BoxFit.SCALE_DOWN, error_content=words)
        return ft.Container(ft.Row([ft.Icon(ft.Icons.INSERT_DRIVE_FILE), words]), height=44)

    def cancel(self, message: Message) -> None:
        if message.task:
            message.task.cancel()

    async def load_picture(self, message: Message) -> None:
        try:
            path = await self.view.conn.fetch_file(str(message.file["id"]), self.window.new_folder())
            message.source = self.window.publish(path)
        except (ChatError, OSError) as refusal:
            message.fault, message.source = refusal, "none"
        message.task = None
        self.view.draw_soon()

    def enlarge(self, message: Message) -> None:
        viewer = ft.InteractiveViewer(ft.Image(src=message.source, fit=ft.BoxFit.CONTAIN), max_scale=8,
                                      width=self.page.width * 0.85, height=self.page.height * 0.7)
        self.window.show_dialog(message.file["name"], viewer, [
            ft.TextButton(self.say("save"), on_click=self.on(self.view.save, message))])

    def search(self) -> None:
        """A dialog that finds messages; a click goes to one."""
        async def look() -> None:
            words = entry.value.strip()
            if not words:
                return
            reply = await self.view.conn.request("search", self.talk.name, words)
            found = [Message.received(fields) for fields in reversed(reply["messages"])]
            listing.controls = [
                ft.ListTile(title=two_lines(message.text or message.file["name"], f"{self.title_of(message.sender)} · "
                                            f"{self.window.show_day(message.when)} {message.when:%H:%M}"),
                            on_click=self.on(go_to, message.id)) for message in found] or [
                small(self.say("none_found"), size=14)]
            self.window.update(listing)

        async def go_to(number: int) -> None:
            self.page.pop_dialog()
            while not self.talk.complete and self.talk.messages[0].id > number:
                await self.read_history()
            await self.show_from(self.talk.index(number))

        entry = self.field(label=self.say("search"), autofocus=True, on_submit=self.on(look))
        listing = ft.ListView(expand=True)
        self.window.show_dialog(self.title_of(self.talk.key), ft.Column([entry, listing], width=420, height=380), [])

    def show_members(self) -> None:
        """A dialog with the members: one chooses whom to write to. The other way out of it is out of the group."""
        def ask() -> None:
            self.page.pop_dialog()
            self.window.show_dialog(self.title_of(talk.key), small(self.say("leave_sure"), size=14), [
                ft.FilledButton(self.say("leave_group"), on_click=self.on(leave))])

        async def leave() -> None:
            self.page.pop_dialog()
            await self.view.conn.request("leavegroup", talk.address)
            await self.view.read_groups()

        talk = self.talk
        here = sum(bool(self.chats.is_online(member)) for member in talk.members)
        title = f"{self.title_of(talk.key)} · {self.count_members(talk.count)}, {here} online"
        leave_button = ft.TextButton(self.say("leave_group"), icon=ft.Icons.LOGOUT, on_click=self.on(ask))
        Chooser(self.view, title, "person_hint", [(member, member) for member in talk.members], buttons=[leave_button])


# ---- commands and frames on the page -------------------------------------------------------------


class Tools(ChatPart):
    """Below a chat: the links of the realms, the commands of the README to type, and the frames that they become."""

    HEIGHT = 300
    KEPT = 300                 # rows

    def __init__(self, view: ChatView) -> None:
        super().__init__(view)
        self.user = ""
        self.root = ft.Container(visible=False, bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST,
                                 border=ft.Border.only(top=ft.BorderSide(1, ft.Colors.OUTLINE_VARIANT)))
        self.list = StillList(expand=True, reverse=True, spacing=1, padding=10)      # what was typed, answered, sent
        self.holder = ft.Container(ft.SelectionArea(self.list), expand=True)
        self.realms = small("", font_family="Mono")
        self.shows_wire = False
        self.drawing: asyncio.TimerHandle | None = None
        self.typed: list[str] = []
        self.recalled = 0

    def serve(self, user: str) -> None:
        """This user has logged in: what an earlier one typed and was sent is not theirs to see."""
        if self.user not in ("", user):
            self.typed.clear()
            self.list.controls.clear()
            self.draw_rows()
        self.user = user

    def toggle(self) -> None:
        self.root.visible = not self.root.visible
        self.draw()
        if self.root.visible and self.chats.own:
            self.window.spawn(self.view.read_realms())

    def draw(self) -> None:
        """The whole panel, in the page's language."""
        self.root.content = None
        if self.root.visible:
            color = ft.Colors.SECONDARY_CONTAINER if self.shows_wire else None
            wire = ft.TextButton(self.say("wire"), icon=ft.Icons.CABLE, on_click=self.on(self.switch),
                                 style=ft.ButtonStyle(bgcolor=color))
            close = self.button(ft.Icons.CLOSE, "close", self.toggle, icon_size=18)
            self.input = self.field(
                self.recall, label=self.say("command"), text_style=ft.TextStyle(font_family="Mono", size=13),
                autofocus=True, on_submit=self.on(self.submit), on_change=self.on(self.suggest))
            self.suggest()
            self.root.height = min(self.HEIGHT, (self.page.height or 800) * 0.45)
            self.root.content = ft.Column([
                ft.Container(ft.Row([wire, ft.Container(self.realms, expand=True), close], spacing=10),
                             padding=ft.Padding(10, 2, 0, 0)), self.holder,
                ft.Container(self.input, padding=ft.Padding(10, 0, 10, 6))], spacing=0, expand=True,
                horizontal_alignment=ft.CrossAxisAlignment.STRETCH)
            self.draw_realms()
        self.window.update(self.view.root)

    def draw_realms(self) -> None:
        """Each realm: its address, whether the link to it is up, how quick, and what waits for it."""
        self.realms.value = "\n".join(describe("realms", {"realms": self.chats.realms}, self.view.realm,
                                               self.window.settings["language"]))
        self.window.update(self.realms)

    def switch(self) -> None:
        """From here on every frame has a row; or none, and one can click on those that are there."""
        self.shows_wire = not self.shows_wire
        self.draw()

    def see(self, outgoing: bool, head: bytes, size: int, elapsed: float | None) -> None:
        """A frame on one line: when, which way, how long its answer took, or its size; a click shows its fields."""
        if not self.shows_wire:
            return
        head, is_whole = common.mask(head), size <= FRAME_HEAD
        text = common.visible(head + FRAME_END * (is_whole and not outgoing))[:400] + " …" * (not is_whole)
        arrow, color = ("→", ft.Colors.PRIMARY) if outgoing else ("←", ft.Colors.TERTIARY)
        end = f"{size} B" if elapsed is None else f"{elapsed * 1000:.1f} ms"
        line = ft.Text(f"{datetime.now():%H:%M:%S.%f}"[:-3] + f" {arrow} {end:>8}  {text}", font_family="Mono", size=12,
                       color=color, max_lines=1, overflow=ft.TextOverflow.ELLIPSIS)
        self.add(ft.Container(line, ink=True, on_click=self.on(
            lambda: self.window.show_fields(self.say("wire"), common.decode(head)))))

    def print(self, *texts: str, color: str | None = None) -> None:
        for text in texts:
            self.add(ft.Text(text, font_family="Mono", size=12.5, color=color))

    def add(self, row: Any) -> None:
        """A row, drawn a little later with others."""
        self.list.controls.insert(0, row)
        del self.list.controls[self.KEPT:]
        self.drawing = self.drawing or asyncio.get_running_loop().call_later(0.05, self.draw_rows)

    def draw_rows(self) -> None:
        self.drawing = None
        self.window.update(self.holder)

    # -- commands

    @property
    def is_typed_in(self) -> bool:
        """Whether the line of the panel has the focus."""
        return self.root.visible and self.window.focused[0] is self.input

    def completions(self) -> list[str]:
        """The lines that what was typed could become."""
        chats, (before, space, last) = self.chats, (self.input.value or "").rpartition(" ")
        talks = [talk.address for talk in chats.talks.values()]
        kinds = {"COMMAND": [command.word for command in PUBLIC_COMMANDS], "USER": chats.people, "REALM": chats.realms,
                 "GROUP": [talk.address for talk in chats.talks.values() if talk.is_group], "USER-or-GROUP": talks}
        words = [short(word, self.view.realm) for word in kinds.get(parameter_after(before.split()), ())]
        return [f"{before}{space}{word} " for word in words if word.startswith(last.lower())]

    def suggest(self) -> None:
        """Below the line, the usage of its command, and what Tab could make of it."""
        text = self.input.value or ""
        command = COMMANDS.get(text.partition(" ")[0].lower())
        usage = [command.prompt_usage] if command in PUBLIC_COMMANDS and " " in text else []
        self.input.helper = "   ".join(usage + [line[text.rfind(" ") + 1:] for line in self.completions()[:12]])
        self.window.update(self.input)

    async def complete(self) -> None:
        """Adds to the line what all completions have in common."""
        self.input.value = os.path.commonprefix(self.completions()) or self.input.value
        self.suggest()
        await self.input.focus()
        end = len(self.input.value or "")          # a field that gets the focus by Tab selects all of its text
        self.input.selection = ft.TextSelection(base_offset=end, extent_offset=end)
        self.window.update(self.input)

    def recall(self, by: int) -> None:
        """An earlier line, or a later one."""
        self.recalled = min(max(0, self.recalled - by), len(self.typed))
        self.input.value = self.typed[-self.recalled] if self.recalled else ""
        self.window.update(self.input)

    async def submit(self) -> None:
        line = (self.input.value or "").strip()
        self.recall(self.recalled)
        self.suggest()
        if line:
            shown = line
            if SECRET.match(line):
                shown = common.mask(" ".join(line.lstrip("! /").split()).encode()).decode()
            else:
                self.typed.append(line)
            self.print(f"> {shown}", color=ft.Colors.PRIMARY)
            self.window.spawn(self.carry_out(line))
        await self.input.focus()

    async def carry_out(self, line: str) -> None:
        """Carries out a line as the terminal's prompt does, and what it changes shows in the chat."""
        view, word = self.view, line.split()[0].lower()
        conn = view.conn or view.fresh_connection()
        before = conn.token
        try:
            self.print(*await perform(conn, line, self.window.settings["language"], self.choose_file, view.fetch))
        except (ChatError, OSError) as refusal:
            return self.print(self.say("failed", reason=self.window.reason(refusal)), color=ft.Colors.ERROR)
        if conn.token != before:
            await (view.entered() if conn.token else view.left())
        elif word in ("addgroup", "joingroup", "leavegroup"):
            await view.read_groups()

    async def choose_file(self, typed: str) -> tuple[Path, str]:
        """The file of that path; in a browser one that its person picks: a visitor must not name our files."""
        if not self.page.web:
            return await Prompt.choose(typed)
        picked = await self.window.picker.pick_files()
        if not picked:
            raise Refused({"message": self.say("cancelled")})
        return await self.window.upload(picked[0]), picked[0].name


# ---- the page ------------------------------------------------------------------------------------

Panel = Callable[["Window"], Any]                  # what makes the bench's part of a page
WINDOWS: dict[str, Window] = {}                    # a page's session -> its window
FILES: dict[str, Path] = {}                        # what browsers may fetch: token -> file


class Window:
    """One page, in a browser or a window of its own: what the chats on it share."""

    def __init__(self, page: Any, options: argparse.Namespace, demo: Any, panel: Panel | None) -> None:
        self.page, self.options, self.demo, self.panel = page, options, demo, panel
        self.settings: dict[str, Any] = {"language": INDONESIAN, "theme": "system", "notices": True, "muted": []}
        self.visible = True
        self.busy_until = 0.0                      # until then Esc is a dialog's
        self.focused: tuple[Any, Any] = (None, None)   # the field with the focus, and what hears of its arrows
        self.views: list[ChatView] = []
        self.lab: Any = None                       # the bench's part of the page: below the demo's chats, or alone
        self.folder = Path(tempfile.mkdtemp(dir=options.uploads))      # what is fetched here, and sent from here
        self.tasks: set[asyncio.Task] = set()
        self.prefs = ft.SharedPreferences()
        self.clipboard = ft.Clipboard()
        self.launcher, self.speaker = ft.UrlLauncher(), ft.SemanticsService()
        self.picker = ft.FilePicker(on_upload=self.heard(self.uploading))
        self.upload_lock = asyncio.Lock()
        self.notice: dict | None = None            # the one that is about to be told
        self.offered: list[tuple[str, Path]] = []  # files dropped or pasted, of which more are to come
        self.upload_state: tuple[Any, Path, asyncio.Future, Progress] | None = None

    # -- what the views use

    def say(self, key: str, **fields: object) -> str:
        return say(key, self.settings["language"], **fields)

    async def guard(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Carries something out; an error becomes a note, where Flet would cover the page."""
        try:
            result = work(*arguments)
            if asyncio.iscoroutine(result):
                await result
        except (ChatError, OSError) as refusal:
            self.toast(self.reason(refusal))
        except Exception as error:
            if str(error) != "Session closed":     # else the browser went meanwhile
                log.exception("handler")
                self.toast(self.say("went_wrong"))

    def on(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return self.heard(lambda event: work(*arguments))

    def heard(self, work: Callable[[Any], Any]) -> Any:
        async def handle(event: Any) -> None:
            await self.guard(work, event)

        return handle

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        task = asyncio.ensure_future(self.guard(lambda: work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def update(self, *controls: Any) -> None:
        """Sends what has changed below these controls; one that is not on the page has time."""
        for control in controls:
            if control is not None and self.holds(control):
                with contextlib.suppress(AttributeError):      # Flet's connection in the moment of its end
                    control.update()

    def holds(self, control: Any) -> bool:
        try:
            return control.page is not None
        except RuntimeError:
            return False

    def toast(self, text: str) -> None:
        with contextlib.suppress(RuntimeError):
            width = self.page.width or 800         # above the field in which one writes, and beside the list
            self.page.show_dialog(ft.SnackBar(ft.Text(text), duration=3000, behavior=ft.SnackBarBehavior.FLOATING,
                                              margin=ft.Margin(max(16, width - 460), 0, 16, 84)))

    def reason(self, error: Exception) -> str:
        return reason(error, self.settings["language"])

    def show_dialog(self, title: str, content: Any, buttons: list[Any]) -> None:
        """A dialog; Esc closes it, and nothing else then."""
        def dismissed(event: Any) -> None:
            self.busy_until = time.monotonic() + 0.5

        self.busy_until = math.inf
        self.page.show_dialog(ft.AlertDialog(
            barrier_color=ft.Colors.BLACK_38,
            title=ft.Text(title, size=18), content=content, on_dismiss=self.heard(dismissed), actions=[
                ft.TextButton(self.say("close"), on_click=self.on(self.page.pop_dialog)), *buttons]))

    def show_fields(self, title: str, fields: list[tuple[str, str]]) -> None:
        text = "\n".join(f"{key:>8}: {value}" for key, value in fields)
        self.show_dialog(title, ft.SelectionArea(ft.Text(text, font_family="Mono", size=13)), [])

    async def copy(self, text: str) -> None:
        await self.clipboard.set(text)
        self.toast(self.say("copied"))

    def show_day(self, moment: datetime, short_form: bool = False) -> str:
        """A day for people; in short, the time if it is today."""
        if not short_form or datetime.now().date() - moment.date() == timedelta(1):
            return show_day(moment, self.settings["language"])
        return f"{moment:%H:%M}" if datetime.now().date() == moment.date() else f"{moment:%d/%m/%y}"

    def notify(self, view: ChatView, talk: Conversation, event: dict) -> None:
        """A notice of the desktop's and a soft sound, which the page's script gives while nobody looks at the page."""
        async def tell() -> None:
            await asyncio.sleep(0.3)               # of what comes at once the newest is enough
            notice, self.notice = self.notice, None
            await self.store("notice", notice)

        if self.settings["notices"] and talk.key not in self.settings["muted"]:
            text = event["file"]["name"] if "file" in event else event["msg"].replace(LINE_BREAK, " ")[:200]
            if not self.notice:
                self.spawn(tell())
            self.notice = {"title": f"{view.chats.name_of(event['from'])} · {view.realm}", "text": text,
                           "route": f"/open/{talk.key.replace('#', 'group:')}"}

    async def mute(self, talk: Conversation) -> None:
        """Or again not: the conversation tells of its messages, or keeps silent."""
        muted = self.settings["muted"]
        await self.keep(muted=[key for key in muted if key != talk.key] if talk.key in muted else [*muted, talk.key])
        for view in self.views:
            view.draw_soon()

    def count_unread(self) -> None:
        count = sum(bool(talk.unread) for view in self.views for talk in view.chats.talks.values())
        realm = "" if len(self.views) != 1 or not self.views[0].chats.own else f" · {self.views[0].realm}"
        title = (f"({count}) " if count else "") + self.say("title" if self.views else "lab_title") + realm
        if self.page.title != title:
            self.page.title = title
            self.update(self.page)

    # -- storage of the browser

    async def recall(self, key: str) -> Any:
        with contextlib.suppress(Exception):
            text = await asyncio.wait_for(self.prefs.get(f"chat.{key}"), 5)
            return json.loads(text) if text else None

    async def store(self, key: str, value: Any) -> None:
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.prefs.set(f"chat.{key}", json.dumps(value)), 5)

    # -- files

    async def upload(self, picked: Any, progress: Progress = unwatched) -> Path:
        path = self.folder / secrets.token_hex(16)
        path.touch()
        async with self.upload_lock:
            if picked.size:
                done = asyncio.get_running_loop().create_future()
                self.upload_state = picked, path, done, progress
                await self.picker.upload([ft.FilePickerUploadFile(id=picked.id, name=picked.name,
                    upload_url=self.page.get_upload_url(f"{self.folder.name}/{path.name}", 600))])
                await done
        return path

    def uploading(self, event: Any) -> None:
        picked, path, done, progress = self.upload_state
        if done.done() or event.file_name != picked.name:      # it was cancelled
            return
        if event.error:
            done.set_exception(OSError(event.error))
        elif event.progress is not None:
            progress(int(event.progress * picked.size), picked.size)
            if event.progress >= 1 and path.stat().st_size == picked.size:     # else it is a cancelled one of that name
                done.set_result(None)

    async def offer(self, request: Any, name: str, place: float, left: int) -> None:
        """A file that was dropped on the page or pasted into it; after the last of them the page asks about all."""
        path, most = self.folder / secrets.token_hex(16), self.options.max_file * MIB
        with path.open("wb") as file:
            async for data in request.stream():
                if file.tell() <= most:            # of a larger one the size is enough
                    file.write(data)
        views = [view for view in self.views if view.shown]
        number = next((number for number, view in enumerate(views) if view.shown.input is self.focused[0]), 0) \
            if place < 0 else int(place * len(views))
        self.offered.append((common.decode_file_name(name), path))
        if left == 0:
            offered, self.offered = self.offered, []
            if views:
                shown = views[min(number, len(views) - 1)].shown
                shown.ask_to_send([shown.outgoing(file={"name": name, "size": path.stat().st_size}, path=path)
                                   for name, path in offered])

    def new_folder(self) -> Path:
        """For a file that keeps its name, though there are others of that name."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def publish(self, path: Path) -> str:
        if not self.page.web:
            return str(path)
        token = secrets.token_urlsafe(24)
        FILES[token] = path
        return f"/dl/{token}?show"                 # with its `?` Flet can't take it for a picture in base64

    async def hand_over(self, path: Path) -> None:
        if self.page.web:
            url = self.publish(path).replace("?show", "?save")
            await self.launcher.launch_url(url, web_only_window_name="_self")
            asyncio.get_running_loop().call_later(600, lambda: path.unlink(missing_ok=True))
        else:
            self.toast(self.say("saved", path=path, size=show_size(path.stat().st_size)))

    # -- the page itself

    async def open(self) -> None:
        page = self.page
        page.padding, page.spacing = 0, 0
        WINDOWS[page.session.id] = self
        page.fonts = {"Emoji": "/NotoColorEmoji.ttf", "Mono": "/DejaVuSansMono.ttf"}
        style = ft.TextStyle(color=ft.Colors.ON_SURFACE, font_family="Roboto", font_family_fallback=["Emoji", "Mono"])
        page.theme = page.dark_theme = ft.Theme(color_scheme_seed=ft.Colors.INDIGO, text_theme=ft.TextTheme(
            body_small=style, body_medium=style, body_large=style, title_medium=style))
        page.on_close = self.on(self.close)
        page.on_keyboard_event = self.heard(self.key_pressed)
        page.on_resize = self.on(self.resize)
        page.on_route_change = self.heard(self.route_changed)
        page.on_app_lifecycle_state_change = self.heard(self.shown_or_hidden)
        self.settings |= {"language": await self.system_language(), **(await self.recall("settings") or {})}
        self.build()
        if page.web:
            self.spawn(self.watch())
            with contextlib.suppress(Exception):   # a right click is for a message's own menu
                await ft.BrowserContextMenu().disable()
        await asyncio.gather(*[view.start() for view in self.views])
        for view in self.views if self.demo else ():
            if view.chats.own and not view.is_narrow and (talks := view.chats.listed()):
                view.open(talks[0].key)

    async def system_language(self) -> int:
        """Indonesian, unless the browser prefers another."""
        with contextlib.suppress(Exception):
            info = await asyncio.wait_for(self.page.get_device_info(), 3)
            languages = [*(getattr(info, "languages", None) or []), getattr(info, "language", None) or ""]
            return INDONESIAN if languages[0][:2] in ("id", "in", "ms", "jv", "su") else ENGLISH
        return ENGLISH

    def build(self) -> None:
        page = self.page
        page.theme_mode = getattr(ft.ThemeMode, self.settings["theme"].upper())
        self.lab = self.panel and self.panel(self)
        if self.demo:
            self.views = [ChatView(self, realm, "127.0.0.1", port, (user, "surabaya"))
                          for (realm, port), user in zip(self.demo.ports.items(), self.demo.USERS, strict=False)]
            page.controls = [ft.Column([
                ft.Row([view.root for view in self.views], spacing=1, expand=True), ft.Divider(height=1),
                self.lab.root], spacing=0, expand=True)]
        elif self.lab:
            page.controls = [self.lab.root]
        else:
            self.views = [ChatView(self, self.options.realm, *self.options.place)]
            page.controls = [self.views[0].root]
        self.count_unread()
        self.resize()
        page.update()

    async def switch_language(self) -> None:
        await self.keep(language=ENGLISH if self.settings["language"] == INDONESIAN else INDONESIAN)
        self.rebuild()

    async def switch_notices(self) -> None:
        await self.keep(notices=not self.settings["notices"])
        self.rebuild()

    async def set_theme(self, theme: str) -> None:
        self.page.theme_mode = getattr(ft.ThemeMode, theme.upper())
        self.page.update()
        await self.keep(theme=theme)

    async def keep(self, **settings: object) -> None:
        self.settings |= settings
        await self.store("settings", self.settings)

    def rebuild(self) -> None:
        if self.lab:
            self.lab.draw()
        for view in self.views:
            view.tools.draw()
            key = view.shown and view.shown.talk.key
            if view.chats.own:
                view.show_chat()
                if key:
                    view.open(key)
            else:
                view.form.show(view.form.registering, {key: field.value for key, field in view.form.fields.items()})
        self.count_unread()

    def resize(self) -> None:
        """Each view has its part of the page. On a phone the demo's two stand one above the other."""
        page, count, width = self.page, len(self.views), self.page.width or 1000
        if self.lab:
            self.lab.resize()
        if self.demo:
            column = page.controls[0]
            stacked = width < 700
            kind = ft.Column if stacked else ft.Row
            if type(column.controls[0]) is not kind:
                column.controls[0] = kind([view.root for view in self.views], spacing=1, expand=True)
            column.controls[0].visible = not self.lab.root.expand
            count = 1 if stacked else count
        for view in self.views:
            view.resize(width / count)
        self.update(*(page.controls if self.demo else [view.root for view in self.views]))

    def shown_or_hidden(self, event: Any) -> None:
        self.visible = event.state in (ft.AppLifecycleState.SHOW, ft.AppLifecycleState.RESUME)
        for view in self.views:
            if self.visible and view.shown:
                view.shown.mark_read()
                view.draw_soon()

    async def key_pressed(self, event: Any) -> None:
        """The keys that `KEYS` lists; any other is no business of ours."""
        if self.lab and self.lab.key_pressed(event):
            return
        entry, arrows = self.focused
        arrow = {"Arrow Up": -1, "Arrow Down": 1}.get(event.key, 0)
        command = event.ctrl or event.meta
        view = next((view for view in self.views if view.chats.own), None)
        panel = next((view.tools for view in self.views if view.tools.is_typed_in), None)
        if event.key == "Tab" and panel:
            await panel.complete()
        elif arrow and arrows and not event.alt:
            arrows(arrow)
        elif view and arrow and event.alt:
            view.step(arrow)
        elif event.key.upper() == "C" and command and event.shift:
            for view in self.views:
                if view.shown and entry is view.shown.input:
                    view.shown.fence()
        elif view and event.key.upper() == "K" and command and self.busy_until < math.inf:
            view.list.find()
        elif view and event.key == "Escape" and time.monotonic() > self.busy_until:
            view.escape()
        elif event.key in ("?", "/") and (event.key == "?" or event.shift) and not entry and \
                time.monotonic() > self.busy_until:
            self.show_keys()

    def route_changed(self, event: Any) -> None:
        for view in self.views:
            if event.route == "/" and view.is_narrow and view.shown:
                view.close_talk()
            key = event.route.removeprefix("/open/").replace("group:", "#")        # a notice was clicked
            if event.route.startswith("/open/") and key in view.chats.talks:
                view.open(key)

    def show_keys(self) -> None:
        rows = [ft.Row([ft.Container(ft.Text(keys, font_family="Mono", size=13), width=150),
                        small(self.say(key), expand=True)])
                for keys, key in (*KEYS, *(self.lab.KEYS if self.lab else ()))]
        self.show_dialog(self.say("keys"), ft.Column(rows, tight=True, width=420), [])

    # -- the end of it

    async def watch(self) -> None:
        """A page whose browser went without a word does not stay for ever."""
        misses = 0
        while misses < 2:
            await asyncio.sleep(20)
            try:
                await asyncio.wait_for(self.prefs.contains_key("chat.settings"), 10)
                misses = 0
            except Exception:
                misses += 1
        asyncio.ensure_future(self.close())

    async def close(self) -> None:
        if self.lab:
            self.lab.close()
        for view in self.views:
            if view.conn:
                await view.conn.close()
        WINDOWS.pop(self.page.session.id, None)
        for token in [token for token, path in FILES.items() if self.folder in path.parents]:
            del FILES[token]
        shutil.rmtree(self.folder, ignore_errors=True)
        for task in list(self.tasks):
            task.cancel()
        self.views.clear()                         # Flet holds on to the last page that ended, until another one ends
        with contextlib.suppress(AttributeError, RuntimeError):
            self.page.clean()


# ---- serving the page ----------------------------------------------------------------------------

def run_page(options: argparse.Namespace, panel: Panel | None = None) -> int:
    """Serves the page, until it is ended. With `panel` and no demo, that alone is on it."""
    common.ensure_packages("flet", "flet-web", "flet-cli")
    os.environ.setdefault("FLET_SESSION_TIMEOUT", "30")       # seconds that a page may be away
    os.environ.setdefault("FLET_SECRET_KEY", secrets.token_hex(16))
    os.environ.setdefault("FLET_MAX_UPLOAD_SIZE", str(options.max_file * MIB))
    load_flet()
    with contextlib.ExitStack() as stack:
        def folder_for_now(prefix: str) -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)))

        options.uploads = folder_for_now("chat-uploads-")
        demo = None
        if options.demo:
            demo = stack.enter_context(load_bench().Demo(options.data or folder_for_now("chat-demo-")))
            panel = demo.panel

        async def open_page(page: Any) -> None:
            await Window(page, options, demo, panel).open()

        if "FLET_DISPLAY_URL_PREFIX" in os.environ:
            end_with_parent()
        if "FLET_DISPLAY_URL_PREFIX" in os.environ and "FLET_FORCE_WEB_SERVER" not in os.environ and has_window():
            ft.run(open_page, assets_dir=str(ASSETS))
        else:
            app = ft.run(open_page, export_asgi_app=True, no_cdn=True, upload_dir=str(options.uploads),
                         assets_dir=str(ASSETS))
            serve(app, options)
    return 0


def has_window() -> bool:
    """Whether `flet run` can open a window: with a display, and Flet's own program for windows downloaded."""
    place = os.environ.get("FLET_VIEW_PATH") or Path.home() / ".flet" / "client"
    found = has_display() and Path(place).exists() and any(Path(place).iterdir())
    if not found:
        print(say("no_window"), file=sys.stderr)
    return found


def has_display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def end_with_parent() -> None:
    """Ends this program when `flet run` has ended: where that fails, it leaves its program running."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def add_routes(app: Any) -> None:
    """What the web server serves besides Flet's page: files both ways, and fonts."""
    from fastapi import Request
    from fastapi.responses import FileResponse, PlainTextResponse
    from fastapi.routing import APIRoute

    async def download(token: str, save: str | None = None) -> Any:
        path = FILES.get(token)
        if not path or not path.exists():
            return PlainTextResponse(common.ERRORS["file_not_found"], 404)
        kind = IMAGES.get(path.suffix.lower()) if save is None else None
        return FileResponse(path, media_type=kind or "application/octet-stream", filename=path.name, headers={
            "X-Content-Type-Options": "nosniff"}, content_disposition_type="inline" if kind else "attachment")

    async def offer(request: Request, session: str, name: str, place: float, left: int) -> Any:
        window = WINDOWS.get(session)
        if not window:
            return PlainTextResponse("", 404)
        await window.guard(window.offer, request, name, place, left)
        return PlainTextResponse("")

    async def font(family: str) -> Any:
        """The font that Flutter asks for where its own lack a letter: whichever file of that name is here."""
        found = [path for path in (ASSETS / "fonts").iterdir() if path.stem == family]
        return FileResponse(found[0]) if found else PlainTextResponse("", 404)

    offer.__annotations__["request"] = Request     # FastAPI looks for the name among the module's
    app.router.routes[:0] = [APIRoute("/dl/{token}", download), APIRoute("/assets/fonts/{family}/{rest:path}", font),
                             APIRoute("/offer/{session}", offer, methods=["PUT"])]
    app.middleware("http")(finish_response)


def serve(app: Any, options: argparse.Namespace) -> None:
    import uvicorn
    add_routes(app)
    host = options.web_bind or os.environ.get("FLET_SERVER_IP") or "127.0.0.1"
    port = options.web_port or int(os.environ.get("FLET_SERVER_PORT") or 0) or free_port(8550)
    url = f"http://{address_of(host)}:{port}"
    # Told the address, `flet run` would open its window, or fail at its download.
    prefix = os.environ.get("FLET_DISPLAY_URL_PREFIX") if "FLET_FORCE_WEB_SERVER" in os.environ else None
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        sys.exit(f"{url}: {error.strerror}")
    print(f"{prefix} {url}" if prefix else say("open_url", url=url), flush=True)
    if options.web_bind and sys.stdout.isatty():
        print_qr(url)
    if not (prefix or options.web_bind) and sys.stdout.isatty() and has_display():
        threading.Timer(1, webbrowser.open, [url]).start()
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not record.exc_info or record.exc_info[0].__name__ != "WebSocketDisconnect")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))      # so that all that was started is ended
    config = uvicorn.Config(app, ws="websockets-sansio", ws_max_size=64 * MIB, log_level="warning",
                            timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def address_of(host: str) -> str:
    """The address at which others find this computer, where it listens on all of its addresses."""
    if host not in ("0.0.0.0", "::"):
        return f"[{host}]" if ":" in host else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((next(iter(REALMS.values())).address, 9))    # this sends nothing; it chooses a way
        return str(probe.getsockname()[0])
    return socket.gethostname()


SQUEEZED: dict[str, bytes] = {}                    # path -> what its file is when compressed
SQUEEZABLE = (".wasm", ".js", ".mjs", ".json", ".otf", ".ttf")


async def finish_response(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """Changes what the web server sends: headers, the page's own script, and files compressed and kept by the browser.

    Flet isolates its pages from other origins, for which browsers give them threads; with these Flutter's renderer
    corrupts its memory, and one page in a few hundred crashes or stands still (flutter/flutter#190039). And a part of
    Flet that is not used here fetches a script from a public host; a page of the chat runs no script but its own.
    """
    from fastapi.responses import Response
    response, path = await answer(request), request.url.path
    del response.headers["Cross-Origin-Embedder-Policy"]
    response.headers["Content-Security-Policy"] = "script-src 'self' blob: 'unsafe-inline' 'wasm-unsafe-eval'"
    if request.method != "GET" or response.status_code != 200 or path.startswith("/dl/"):
        return response
    is_page = response.headers.get("content-type", "").startswith("text/html")
    response.headers["Cache-Control"] = "no-cache" if is_page else "max-age=86400"
    squeeze = path.endswith(SQUEEZABLE) and "gzip" in request.headers.get("accept-encoding", "")
    if not (is_page or squeeze):
        return response
    headers = {name: value for name, value in response.headers.items() if name not in ("content-length", "etag")}
    if squeeze and path in SQUEEZED:
        content = SQUEEZED[path]
    else:
        content = b"".join([part async for part in response.body_iterator])
    if is_page:
        content = content.replace(b"</head>", b'<script src="page.js"></script></head>')
    elif path not in SQUEEZED:
        content = SQUEEZED[path] = await asyncio.to_thread(gzip.compress, content, 6)
    headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"} if squeeze else {}
    return Response(content, headers=headers)


def print_qr(url: str) -> None:
    """The address as a picture for a phone's camera, where Flet has brought the package along."""
    with contextlib.suppress(ImportError):
        import qrcode
        picture = qrcode.QRCode(border=2)
        picture.add_data(url)
        picture.print_ascii(invert=True)


def free_port(wish: int = 0) -> int:
    """A port that nobody listens on: that one, if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wish))
        except OSError:
            return free_port()
        return probe.getsockname()[1]


def load_bench() -> Any:
    """The bench's program, which stands beside this one and draws its part of the page with this one's parts."""
    sys.modules.setdefault("ChatClient", sys.modules[__name__])
    sys.path.append(str(Path(__file__).resolve().parent))
    import ChatLab
    return ChatLab


# ---- start -------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A chat client: a page, or with --prompt a command line.")
    home = common.realm_of_folder(Path(__file__).resolve().parent.name)
    add_option(parser, "--realm", default=home, choices=list(REALMS), help=f"the realm to log in at ({home})")
    add_option(parser, "--server", metavar="HOST:PORT", help="a server elsewhere than the realm table says")
    add_option(parser, "--tls", action="store_true", help="the server has a certificate")
    add_option(parser, "--tls-ca", type=Path, metavar="FILE", help="who vouches for it; implies --tls")
    add_option(parser, "--local", action="store_true", help="every realm is on this computer")
    add_option(parser, "--prompt", action="store_true", help="type commands; from a pipe, run them as a script")
    add_option(parser, "--bell", action="store_true", help="the prompt's terminal sounds when a private message comes")
    add_option(parser, "--language", choices=["id", "en"], default=None, help="of the prompt (LANG, else Indonesian)")
    add_option(parser, "--demo", action="store_true", help="two realms on this computer, a chat in each")
    add_option(parser, "--data", type=Path, metavar="DIR", help="where the demo keeps its data (else it is removed)")
    add_option(parser, "--web-bind", metavar="ADDRESS",
               help="where the page is served (127.0.0.1); elsewhere it leads to the realm table's servers alone")
    add_option(parser, "--web-port", type=int, metavar="N", help="the page's port (8550, or a free one)")
    add_option(parser, "--downloads", type=Path, metavar="DIR", help="where files are saved (received/)")
    add_option(parser, "--max-file", type=int, default=common.MAX_FILE // MIB, metavar="MIB",
               help="the server's limit (64)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    row = common.realm_table(options.local)[options.realm]
    try:
        options.place = common.parse_host_port(options.server) if options.server else (row.address, row.port)
    except ValueError as error:
        sys.exit(str(error))
    options.context = ssl.create_default_context(cafile=options.tls_ca) if options.tls or options.tls_ca else None
    options.downloads = options.downloads or common.ROOT / row.folder / "received"
    try:
        return run_prompt(options) if options.prompt else run_page(options)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
