"""The chat client: `python3 ChatClient.py` opens a page, `--prompt` a command line, `--demo` two realms at a glance.

In this order, each part using only what stands above it:
  texts              what a person reads, in Indonesian and English
  frames, files      what those who watch are shown; a file that arrives -> a name on disk
  ServerConnection   requests, events, reconnecting; knows neither terminal nor page
  typed commands     a line as a person types it -> a request -> lines to show
  prompt             the terminal, or a script from a pipe
  what a chat shows  conversations and messages, no control in them
  the page's parts   ChatView (one whole chat), Tools and Wire below it, Window (a browser's page)
  serving the page   to browsers or in a window; the demo's two realms
"""
from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import ctypes
import glob
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
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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

TEXTS = {                      # key: (Indonesian, English)
    "banner": ("Chat realm {realm}, server {place}. Mulai dengan: auth USER PASSWORD. Bantuan: help. Keluar: Ctrl-D.",
               "Chat realm {realm}, server {place}. Begin with: auth USER PASSWORD. Help: help. Leave: Ctrl-D."),
    "welcome": ("Selamat datang, {user}", "Welcome, {user}"),
    "unreachable": ("Tidak dapat terhubung ke {place}", "Cannot reach {place}"),
    "lost": ("Koneksi terputus, dicoba lagi dalam {seconds} detik", "Connection lost, next attempt in {seconds} s"),
    "again_up": ("Terhubung kembali", "Connected again"),
    "ended": ("Sesi telah berakhir, silakan login lagi", "The session has ended, please log in again"),
    "queued": ("menunggu realm tujuan", "waiting for the other realm"),
    "queued_count": ("{count} menunggu", "{count} waiting"),
    "nothing_new": ("Tidak ada pesan baru", "No new messages"),
    "nothing": ("Kosong", "Nothing here"), "more": ("masih ada lagi", "there is more"),
    "saved": ("Disimpan: {path} ({size})", "Saved: {path} ({size})"),
    "no_file": ("Tidak dapat membaca file {path}", "Cannot read the file {path}"),
    "damaged": ("Isi file rusak dalam perjalanan", "The file was damaged on its way"),
    "failed": ("GAGAL: {reason}", "FAILED: {reason}"),
    "cancelled": ("Dibatalkan", "Cancelled"),
    "waiting": ("Belum terjawab, ditunggu: {line}", "Not answered yet, waiting: {line}"),
    "online": ("{user} online", "{user} is online"), "offline": ("{user} offline", "{user} is offline"),
    "created": ("{user} membuat group {group}", "{user} made the group {group}"),
    "joined": ("{user} masuk ke group {group}", "{user} joined the group {group}"),
    "left": ("{user} keluar dari group {group}", "{user} left the group {group}"),
    "up": ("Realm {realm} terhubung", "Realm {realm} is connected"),
    "down": ("Realm {realm} terputus", "Realm {realm} is cut off"),
    "file": ("[file {id}] {name}, {size}", "[file {id}] {name}, {size}"),
    "members": ("anggota", "members"),
    # the page: login
    "title": ("Chat", "Chat"),
    "login": ("Login", "Log in"), "register": ("Daftar", "Register"),
    "no_account": ("Belum punya akun? Daftar", "No account yet? Register"),
    "have_account": ("Sudah punya akun? Login", "Have an account? Log in"),
    "choose_realm": ("Realm", "Realm"), "server": ("Server", "Server"),
    "this_computer": ("Server di komputer ini", "The server is on this computer"),
    "user": ("User", "User"), "password": ("Password", "Password"),
    "nama": ("Nama lengkap", "Full name"), "negara": ("Negara", "Country"),
    "needed": ("Harus diisi", "Please fill in"), "no_spaces": ("Tanpa spasi", "No spaces"),
    "bad_name": ("1 sampai 32 dari a-z 0-9 . _ -", "1 to 32 of a-z 0-9 . _ -"),
    "bad_server": ("Bentuknya: host:port", "Write host:port"),
    # conversations
    "find": ("Cari percakapan (Ctrl+K)", "Find a conversation (Ctrl+K)"),
    "none_found": ("Tidak ada yang cocok", "Nothing matches"),
    "no_talks": ("Belum ada percakapan.\nMulai dengan tombol di atas.",
                 "No conversations yet.\nBegin with the button above."),
    "no_messages": ("Belum ada pesan", "No messages yet"),
    "choose_talk": ("Pilih percakapan untuk mulai chat", "Choose a conversation"),
    "new": ("Baru", "New"), "new_message": ("Pesan baru", "New message"),
    "new_group": ("Group baru", "New group"), "join_group": ("Masuk ke group", "Join a group"),
    "leave_group": ("Keluar dari group", "Leave the group"),
    "group_name": ("Nama group", "Name of the group"),
    "person_hint": ("Nama, atau user@realm", "Name, or user@realm"),
    "group_hint": ("Group, atau group@realm", "Group, or group@realm"),
    "not_a_member": ("Bukan anggota group ini", "Not a member of this group"),
    "is_online": ("online", "online"), "is_offline": ("offline", "offline"),
    "you": ("Anda", "You"), "back": ("Kembali", "Back"),
    # messages
    "message": ("Pesan", "Message"), "attach": ("Lampirkan file", "Attach a file"),
    "write": ("Tulis pesan", "Write a message"), "send": ("Kirim", "Send"),
    "save": ("Simpan", "Save"), "cancel": ("Batal", "Cancel"),
    "again": ("Kirim lagi", "Send again"),
    "new_messages": ("Pesan baru", "New messages"), "newest": ("Terbaru", "Newest"),
    "count_new": ("{count} pesan baru", "{count} new"),
    "is_sending": ("sedang dikirim", "sending"), "is_stored": ("tersimpan di server", "stored"),
    "is_queued": ("menunggu", "queued"), "is_failed": ("gagal", "failed"),
    "today": ("Hari ini", "Today"), "yesterday": ("Kemarin", "Yesterday"),
    "weekdays": ("Senin Selasa Rabu Kamis Jumat Sabtu Minggu",
                 "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "months": ("Januari Februari Maret April Mei Juni Juli Agustus September Oktober November Desember",
               "January February March April May June July August September October November December"),
    "too_long": ("Terlalu panjang: paling banyak {size}", "Too long: at most {size}"),
    "file_too_large": ("{name} terlalu besar: paling banyak {size}", "{name} is too large: at most {size}"),
    "trying": ("Menghubungkan …", "Connecting …"), "went_wrong": ("Terjadi kesalahan", "Something went wrong"),
    "copied": ("Disalin", "Copied"),
    # settings and tools
    "settings": ("Pengaturan", "Settings"),
    "system": ("Tema sistem", "System theme"),
    "light": ("Terang", "Light"), "dark": ("Gelap", "Dark"),
    "other_language": ("English", "Bahasa Indonesia"),
    "logout": ("Logout", "Log out"),
    "tools": ("Command, wire, realm", "Commands, wire, realms"),
    "commands": ("Command", "Commands"),
    "command": ("Ketik command, misalnya: send messi hello", "Type a command, such as: send messi hello"),
    "wire": ("Wire", "Wire"), "realms": ("Realm", "Realms"),
    "filter": ("Saring", "Filter"), "pause": ("Jeda", "Pause"),
    "resume": ("Lanjutkan", "Resume"),
    "copy": ("Salin", "Copy"), "clear": ("Bersihkan", "Clear"),
    "close": ("Tutup", "Close"), "ok": ("OK", "OK"),
    "turn_off": ("Matikan server {realm}", "Turn the server of {realm} off"),
    "turn_on": ("Nyalakan server {realm}", "Turn the server of {realm} on"),
    "link_local": ("realm ini", "this realm"),
    "link_up": ("terhubung", "connected"), "link_down": ("terputus", "cut off"),
    "no_realms": ("Login dahulu", "Log in first"),
    # start
    "open_url": ("Buka {url}", "Open {url}"),
    "demo_failed": ("Server demo tidak dapat dimulai", "The demo's servers did not start"),
    "demo_hello": ("Halo dari {realm}! \U0001f44b", "Hello from {realm}!"),
    "demo_answer": ("Halo juga, pesanmu sampai di {realm} \U0001f389", "Hello, you reached {realm}!"),
}
REASONS = {                    # in English, by the code of the refusal; the server's own words are Indonesian
    "bad_credentials": "No such user, or a wrong password", "user_exists": "This user exists already",
    "user_not_found": "No such user", "group_not_found": "No such group",
    "group_exists": "This group exists already", "already_member": "Already a member",
    "not_member": "Not a member of this group", "realm_not_found": "No such realm",
    "file_not_found": "No such file", "bad_name": "1 to 32 of a-z 0-9 . _ -",
    "bad_arguments": "The arguments don't fit", "unknown_command": "No such command",
    "session_not_found": "Please log in first", "rate_limited": "Too many attempts",
    "too_large": "The file is too large", "too_long": "Too long", "busy": "The server is full",
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
    words = REASONS.get(error.code, error.message) if language == ENGLISH else error.message
    return f"{words} ({error.fields['retry_after']} s)" if "retry_after" in error.fields else words


# ---- frames and files ----------------------------------------------------------------------------

Progress = Callable[[int, int], None]              # bytes done, and of how many


def unwatched(done: int, size: int) -> None:
    """The Progress of a file that nobody watches."""


class Frame(NamedTuple):
    """One request, reply or event as it crossed. Its head may hold a password or a token: see `common.mask`."""

    when: float
    outgoing: bool
    head: bytes
    size: int
    elapsed: float | None      # of a reply: seconds since its request


CONTENT = b'"file_content":"'                      # a quote within a JSON string is escaped: this is nothing else


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
        """Takes a piece of base64."""
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
    own: `{"event": "connection", "state": "up" | "lost" | "ended", "retry": seconds}`. `on_frame` sees every Frame.
    """

    def __init__(self, host: str, port: int, realm: str, on_event: Callable[[dict], None] = lambda event: None,
                 on_frame: Callable[[Frame], None] = lambda frame: None, tls: ssl.SSLContext | None = None) -> None:
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
        self._wake = asyncio.Event()
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

    async def close(self) -> None:
        """Ends the connection for good, and whoever still waits for an answer."""
        self._task.cancel()
        for pending in list(self._pending.values()):
            pending.answer.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _line(self, word: str, *arguments: str, token: str | None = None) -> bytes:
        """A request under a new tag. Raises ChatError where it needs a login that there is not."""
        command, token = COMMANDS[word], token or self.token
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
                if not after:                      # else the messages up to there are still to come
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
                await asyncio.sleep(delay)

    async def _connect(self, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            opening = asyncio.open_connection(self.host, self.port, limit=limit, ssl=self.tls)
            reader, writer = await asyncio.wait_for(opening, CONNECT_SECONDS)
        except (OSError, asyncio.TimeoutError) as error:
            raise ConnectionLost(f"{self.host}:{self.port}") from error
        sock = writer.get_extra_info("socket")
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
        head = b""
        while not (head.endswith(FRAME_END) or sink and CONTENT in head):
            head += await self._read(reader)
        if not (sink and CONTENT in head):
            return head.removesuffix(FRAME_END)
        head, _, content = head.partition(CONTENT)
        sink.begin(json.loads(head + CONTENT + b'"}'))
        while b'"' not in content:
            sink.write(content)
            content = await self._read(reader)
        content, _, end = content.partition(b'"')
        sink.write(content)
        while not end.endswith(FRAME_END):
            end += await self._read(reader)
        return head + CONTENT + b'"' + end.removesuffix(FRAME_END)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> bytes:
        """What has come. Raises ConnectionLost where nothing comes any more."""
        with contextlib.suppress(OSError):
            if data := await reader.read(common.RECEIVE_SIZE):
                return data
        raise ConnectionLost

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


SECRET = re.compile(r"\s*(auth|register|passwd)\b", re.IGNORECASE)     # lines with a password are not recalled


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


async def perform(conn: ServerConnection, line: str, downloads: Path,
                  progress: Progress = unwatched) -> list[str]:
    """Carries out a typed line: the lines to show. Raises ChatError, OSError."""
    command, arguments = parse_typed(line, bool(conn.token))
    if command.word == "help":
        return common.help_text(*arguments).split("\n")
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

    def __init__(self, options: argparse.Namespace) -> None:
        self.place = "{}:{}".format(*options.place)
        self.downloads = options.downloads
        self.is_script = not (sys.stdin.isatty() and sys.stdout.isatty())
        self.readline: Any = None                  # Python's module, where there is one
        self.editor: Any = None                    # and the library below it
        self.names: set[str] = set()               # people and groups, for completion
        self.typing = ""                           # the prompt, while it is on the screen
        self.was_lost = False
        self.drawn = 0.0                           # when the progress line was
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.conn = self.start(self.connect(options)).result()

    async def connect(self, options: argparse.Namespace) -> ServerConnection:
        """Makes the connection within its loop."""
        hear = (lambda event: None) if self.is_script else self.hear
        return ServerConnection(*options.place, options.realm, hear, tls=options.context)

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future:
        """Begins the work in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def carry_out(self, line: str) -> tuple[list[str], bool]:
        """A typed line -> the lines to show, and whether it went well."""
        try:
            return await perform(self.conn, line, self.downloads, self.show_progress), True
        except (ChatError, OSError) as error:
            return [say("failed", reason=reason(error))], False

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
            with contextlib.suppress(ChatError, OSError):
                if word in ("auth", "register"):
                    await self.conn.subscribe()
                home = self.conn.realm
                for realm in (await self.conn.request("realms"))["realms"]:
                    people = (await self.conn.request("info", realm))["users"]
                    self.names |= {short(f"{person['user']}@{realm}", home) for person in people}
                groups = (await self.conn.request("groups"))["groups"]
                self.names |= {short(group["group"], home) for group in groups}

    def hear(self, event: dict) -> None:
        """Shows what comes in by itself."""
        home, who = self.conn.realm, event.get("from") or event.get("user")
        if event["event"] == "connection":
            if event["state"] == "lost":
                self.show(say("lost", seconds=f"{event['retry']:.1f}"))
            elif event["state"] == "ended" or self.was_lost:
                self.show(say("ended" if event["state"] == "ended" else "again_up"))
            self.was_lost = event["state"] == "lost"
        elif who != f"{self.conn.user}@{home}":
            if who:
                self.names.add(short(who, home))
            self.show(describe_event(event, home))

    # -- the terminal

    def read_line(self) -> str:
        """A line with editing, history and completion where Python has readline."""
        user = f"{self.conn.user}@{self.conn.realm}" if self.conn.token else self.conn.realm
        self.typing = f"{user}> "
        try:
            line = input(self.typing)
        finally:
            self.typing = ""
        if self.readline and SECRET.match(line):
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
        kind = parameter_after(words)
        if kind == "COMMAND":
            choices = [command.word + " " for command in PUBLIC_COMMANDS]
        elif kind == "NAME" and COMMANDS[words[0].lower()].takes_file:
            paths = glob.glob(glob.escape(text) + "*")
            choices = [path + ("/" if os.path.isdir(path) else "") for path in paths]
        else:
            choices = [name + " " for name in sorted(self.names | set(REALMS))]
        matching = [choice for choice in choices if choice.startswith(text)]
        return matching[number] if number < len(matching) else None


def run_prompt(options: argparse.Namespace) -> int:
    """A script's status, or a terminal's."""
    prompt = Prompt(options)
    try:
        return prompt.run_script() if prompt.is_script else prompt.run_terminal()
    finally:
        prompt.start(prompt.conn.close()).result()


# ---- what a chat shows ---------------------------------------------------------------------------


@dataclass(eq=False)
class Message:
    """A message in a conversation; one without an id is still on its way out."""

    sender: str
    when: datetime
    text: str = ""
    file: dict | None = None
    id: int = 0
    state: str = "stored"      # or sending, queued, failed
    reason: str = ""
    done: float = 0.0          # how much of its file has gone out or come in
    picked: Any = None         # what the file picker gave for one that goes out
    path: Path | None = None   # where that file lies
    source: str = ""           # of a picture: where the page gets it
    task: asyncio.Task | None = None

    @classmethod
    def received(cls, fields: dict) -> Message:
        """A message as the server gives it."""
        text = fields.get("msg", "").replace(LINE_BREAK, "\n")
        return cls(fields["from"], local_time(fields["ts"]), text, fields.get("file"), fields["id"])

    def is_awaited(self, message: Message) -> bool:
        """Whether that one, from the server, seems to be this one, on its way."""
        one, other = ((each.sender, each.text, (each.file or {}).get("name")) for each in (self, message))
        return not self.id and self.state == "sending" and one == other


@dataclass(eq=False)
class Conversation:
    """The messages with one person or in one group, as far as they are here, in the order of their ids."""

    KEPT: ClassVar = 100       # messages while nobody looks at it; the others are read again when needed

    key: str                   # the address, a group's with a # in front
    messages: list[Message] = field(default_factory=list)
    complete: bool = True      # whether its first message is here
    loading: bool = False      # whether older ones are being read
    unread: int = 0
    first_new: int = 0         # the id above which the line "new messages" stands
    draft: str = ""
    members: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The person's or the group's."""
        return self.key.lstrip("#")

    @property
    def is_group(self) -> bool:
        """Whether it is a group's."""
        return self.key.startswith("#")

    @property
    def last(self) -> Message | None:
        """The newest message."""
        return self.messages[-1] if self.messages else None

    def add(self, message: Message, is_new: bool = False) -> Message:
        """Puts a message in its place; one that is here already, or a new one that was on its way, is given instead."""
        known = None
        if message.id:
            known = next((each for each in reversed(self.messages) if each.id == message.id), None)
        if is_new and not known:
            known = next((each for each in self.messages if each.is_awaited(message)), None)
        if known:
            known.id, known.file = message.id, message.file
        else:
            self.messages.append(message)
        self.sort()
        return known or message

    def settle(self, message: Message, number: int) -> None:
        """Gives a message that went out its id: its event may have been taken for that of another one like it."""
        for twin in self.messages:
            if twin is not message and twin.id == number:
                twin.id = message.id
                if not twin.id and twin.state != "sending":
                    self.messages.remove(twin)
                break
        message.id = number
        self.sort()

    def trim(self) -> None:
        """Lets go of old messages, if there are many."""
        if len(self.messages) > 2 * self.KEPT:
            del self.messages[: -self.KEPT]
            self.complete = False

    def sort(self) -> None:
        """By id, those on their way last."""
        self.messages.sort(key=lambda message: message.id or sys.maxsize)


class Chats:
    """All that a chat shows of one user; no control in it."""

    def __init__(self, own: str = "") -> None:
        self.own = own
        self.people: dict[str, dict] = {}          # address: a row of `info`
        self.talks: dict[str, Conversation] = {}
        self.open_groups: list[str] = []           # those one could join
        self.realms: dict[str, dict] = {}
        self.marks: dict[str, int] = {}            # key: the id of the last message that was read

    def talk(self, key: str) -> Conversation:
        """The conversation of that key, an empty one if there was none."""
        return self.talks.setdefault(key, Conversation(key))

    def take(self, fields: dict, current: Conversation | None) -> tuple[Conversation, Message]:
        """A message that came as an event."""
        if "group" in fields:
            key = f"#{fields['group']}"
        else:
            key = fields["to"] if fields["from"] == self.own else fields["from"]
        talk = self.talk(key)
        message = talk.add(Message.received(fields), is_new=True)
        if message.sender == self.own:
            talk.unread = talk.first_new = 0
        elif message.id > self.marks.get(key, 0):
            talk.unread += 1
            talk.first_new = talk.first_new or message.id
        if talk is not current:
            talk.trim()
        return talk, message

    def take_groups(self, rows: list[dict]) -> None:
        """The reply to `groups`."""
        for talk in self.talks.values():
            talk.members = []
        self.open_groups = [row["group"] for row in rows if not row["member"]]
        for row in rows:
            if row["member"]:
                self.talk(f"#{row['group']}").members = row["members"]

    def name_of(self, key: str) -> str:
        """A person's full name, else what stands before the realm."""
        return self.people[key]["nama"] if key in self.people else key.lstrip("#").partition("@")[0]

    def is_online(self, address: str) -> bool:
        """Whether that person is there."""
        return bool(self.people.get(address, {}).get("online"))

    def listed(self, words: str = "") -> list[Conversation]:
        """The conversations that match, the newest first."""
        found = [talk for talk in self.talks.values()
                 if words.lower() in f"{talk.address} {self.name_of(talk.key)}".lower()]
        return sorted(found, key=lambda talk: talk.last.when.timestamp() if talk.last else 0, reverse=True)


# ---- the page's parts ----------------------------------------------------------------------------

ft: Any = None                                     # Flet, once `load_flet` has fetched it
StillList: Any = None                              # a list whose items the page's other updates pass over
StillBox: Any = None                               # likewise a box

HUES = ("BLUE", "TEAL", "DEEP_ORANGE", "PURPLE", "INDIGO", "PINK", "GREEN", "BROWN", "CYAN", "DEEP_PURPLE", "RED")
LINK = re.compile(r"(https?://[^\s<>\"']+[^\s<>\"'.,;:!?)\]])")
IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}


def load_flet() -> None:
    """Flet takes half a second to import, and nothing but the page needs it."""
    global ft, StillList, StillBox
    import flet as ft
    ft.context.disable_auto_update()
    StillList = ft.control(isolated=True)(type("StillList", (ft.ListView,), {"__module__": __name__}))
    StillBox = ft.control(isolated=True)(type("StillBox", (ft.Container,), {"__module__": __name__}))


def color_of(name: str) -> str:
    """A name's colour, always the same."""
    return getattr(ft.Colors, HUES[zlib.crc32(name.encode()) % len(HUES)] + "_400")


def avatar(name: str, key: str, online: bool = False) -> Any:
    """A disc with initials in the colour of the name; for a person who is there, with a dot."""
    letters = "".join(word[0] for word in re.findall(r"[^\s._]+", name)[:2]).upper()
    disc = ft.CircleAvatar(
        content=ft.Icon(ft.Icons.GROUPS, color=ft.Colors.WHITE, size=20) if key.startswith("#")
        else ft.Text(letters or "?", size=15, weight=ft.FontWeight.W_600, color=ft.Colors.WHITE),
        bgcolor=color_of(key), radius=20)
    if not online:
        return disc
    dot = ft.Container(width=12, height=12, border_radius=6, bgcolor=ft.Colors.GREEN_500, right=0, bottom=0,
                       border=ft.Border.all(2, ft.Colors.SURFACE))
    return ft.Stack([disc, dot], width=40, height=40)


def linked(text: str) -> Any:
    """A text whose web addresses can be clicked."""
    parts = LINK.split(text)                       # a text, an address, a text …
    if len(parts) == 1:
        return ft.Text(text, size=14.5)
    style = ft.TextStyle(color=ft.Colors.PRIMARY, decoration=ft.TextDecoration.UNDERLINE)
    return ft.Text(size=14.5, spans=[ft.TextSpan(part, style=style, url=part) if number % 2 else ft.TextSpan(part)
                                     for number, part in enumerate(parts)])


def small(text: str, **keywords: Any) -> Any:
    """A quiet text."""
    return ft.Text(text, **{"size": 12, "color": ft.Colors.ON_SURFACE_VARIANT, **keywords})


def two_lines(title: str, below: str, size: float = 14) -> Any:
    """A name with a quiet line below, each cut off where it is too long."""
    cut = {"max_lines": 1, "overflow": ft.TextOverflow.ELLIPSIS}
    return ft.Column([ft.Text(title, size=size, weight=ft.FontWeight.W_600, **cut), small(below, **cut)], spacing=2,
                     expand=True, alignment=ft.MainAxisAlignment.CENTER, tight=True)


def round_border() -> Any:
    """Of a field that stands out by its colour, not by a line."""
    return ft.OutlineInputBorder(border_radius=22, side=ft.BorderSide(0, ft.Colors.TRANSPARENT))


def blank(icon: str, text: str) -> Any:
    """What stands where there is nothing."""
    return ft.Container(expand=True, alignment=ft.Alignment.CENTER, padding=30, content=ft.Column(
        [ft.Icon(icon, size=56, color=ft.Colors.OUTLINE_VARIANT), small(text, size=14, text_align=ft.TextAlign.CENTER)],
        horizontal_alignment=ft.CrossAxisAlignment.CENTER, tight=True, spacing=12))


def pill(text: str) -> Any:
    """A day, or another remark between messages."""
    return ft.Row([ft.Container(small(text), padding=ft.Padding(12, 4, 12, 4), border_radius=12,
                                bgcolor=ft.Colors.SURFACE_CONTAINER_HIGH)], alignment=ft.MainAxisAlignment.CENTER)


class Part:
    """What has a place on a window's page, its texts in the window's language, its handlers guarded by it."""

    def __init__(self, window: Window) -> None:
        self.window, self.page, self.say, self.on = window, window.page, window.say, window.on

    def button(self, icon: str, key: str, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """A picture to click; the text says what it does."""
        return ft.IconButton(icon, tooltip=self.say(key), on_click=self.on(work, *arguments), **more)

    def item(self, icon: str, key: str, work: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        """A row of a menu."""
        return ft.PopupMenuItem(icon=icon, content=self.say(key), on_click=self.on(work, *arguments), **more)


# ---- one chat ------------------------------------------------------------------------------------


class ChatView(Part):
    """A whole chat: login, conversations, messages, tools. `root` goes on a page, beside others if need be."""

    PAGE = 50                  # messages shown at once, and more with each scroll to the top
    MOST = 400                 # rows that stay on the page while one reads the newest
    LOOK_BACK = 2000           # rows at most when one scrolls up; `history` has the rest
    SIDE = 320                 # width of the list of conversations
    NARROW = 640               # below this, the list or the conversation
    PICTURE = 8_000_000        # bytes of a picture that is shown without being asked for

    def __init__(self, window: Window, realm: str, host: str, port: int, login: tuple[str, str] | None = None) -> None:
        super().__init__(window)
        self.realm, self.host, self.port, self.login = realm, host, port, login
        self.conn: ServerConnection | None = None
        self.chats = Chats()
        self.current: Conversation | None = None
        self.width = 1000.0
        self.retry_at = 0.0
        self.dirty: set[Conversation] = set()      # whose tiles are to be drawn again
        self.fresh: list[Message] = []             # those of the current conversation that are to be drawn
        self.flushing: asyncio.TimerHandle | None = None
        self.tiles: dict[str, Any] = {}
        self.rows: dict[Message, Any] = {}
        self.bars: dict[Message, Any] = {}         # of the files among them
        self.first = 0                             # index of the oldest message that has a row
        self.at_bottom, self.held = True, 0
        self.banner_text = ft.Text("", size=13, color=ft.Colors.ON_ERROR_CONTAINER)
        cloud = ft.Icon(ft.Icons.CLOUD_OFF, size=18, color=ft.Colors.ON_ERROR_CONTAINER)
        self.banner = ft.Container(ft.Row([cloud, self.banner_text], alignment=ft.MainAxisAlignment.CENTER),
                                   bgcolor=ft.Colors.ERROR_CONTAINER, padding=8, visible=False)
        self.body = ft.Container(expand=True)
        self.tools = Tools(self)
        self.root = ft.Column([self.banner, self.body, self.tools.root], spacing=0, expand=True)

    # -- login

    def show_login(self, registering: bool = False, values: dict[str, str] | None = None) -> None:
        """The form for login, or for a new account."""
        say, values, self.current, self.registering = self.say, values or {}, None, registering

        def entry(key: str, **more: Any) -> Any:
            return ft.TextField(label=say(key), value=values.get(key, ""), dense=True, on_submit=self.on(self.enter),
                                **more)

        self.here = ft.Checkbox(label=say("this_computer"), value=self.host in ("127.0.0.1", "localhost"),
                                on_change=self.on(self.choose_realm))
        self.form = {
            "server": entry("server", hint_text="host:port", on_change=self.on(self.choose_realm, True)),
            "user": entry("user", autofocus=not values.get("user")),
            "password": entry("password", password=True, can_reveal_password=True, autofocus=bool(values.get("user")))}
        if registering:
            self.form |= {"nama": entry("nama"), "negara": entry("negara")}
        self.form["server"].value = values.get("server") or f"{self.host}:{self.port}"
        self.choices = ft.Row(wrap=True, spacing=8, run_spacing=8)
        self.draw_choices()
        self.enter_button = ft.FilledButton(say("register" if registering else "login"), height=44,
                                            on_click=self.on(self.enter))
        other = ft.TextButton(say("have_account" if registering else "no_account"), on_click=self.on(
            lambda: self.show_login(not registering, {key: self.form[key].value for key in ("server", "user")})))
        head = [ft.Icon(ft.Icons.FORUM, color=ft.Colors.PRIMARY, size=34),
                ft.Text(say("title"), size=24, weight=ft.FontWeight.W_600, expand=True), self.settings_menu()]
        card = ft.Container(width=400, padding=28, border_radius=20, bgcolor=ft.Colors.SURFACE, content=ft.Column(
            [ft.Row(head), small(say("choose_realm")), self.choices, self.here, *self.form.values(), self.enter_button,
             other], spacing=14, tight=True, horizontal_alignment=ft.CrossAxisAlignment.STRETCH))
        self.body.content = ft.Container(
            ft.Column([card], scroll=ft.ScrollMode.AUTO, horizontal_alignment=ft.CrossAxisAlignment.CENTER,
                      alignment=ft.MainAxisAlignment.CENTER),
            alignment=ft.Alignment.CENTER, bgcolor=ft.Colors.SURFACE_CONTAINER, padding=12, expand=True)
        self.window.update(self.root)

    def draw_choices(self) -> None:
        """The realms of the table, the one that the server field names marked."""
        self.choices.controls = [
            ft.Chip(label=ft.Text(f"{row.name}  {row.address}:{row.port}", size=12), show_checkmark=True,
                    selected=self.form["server"].value == f"{row.address}:{row.port}",
                    on_select=self.on(self.choose_realm, row.name))
            for row in common.realm_table(self.here.value).values()]

    def choose_realm(self, name: str | bool = "") -> None:
        """A click on a realm, or on `this computer`; or `True`: the server field was typed in."""
        table = common.realm_table(self.here.value)
        if name is not True:
            self.realm = name or self.realm
            if self.realm in table:
                self.form["server"].value = f"{table[self.realm].address}:{table[self.realm].port}"
        self.draw_choices()
        self.window.update(self.choices, self.form["server"])

    async def enter(self) -> None:
        """Logs in, or registers; what is wrong stands beside its field."""
        if self.enter_button.disabled:             # Enter was pressed twice
            return
        values = {key: entry.value.strip() for key, entry in self.form.items()}
        faults = {}
        try:
            self.host, self.port = common.parse_host_port(values["server"])
        except ValueError:
            faults["server"] = self.say("bad_server")
        try:
            common.fold_name(values["user"])
        except ChatError:
            faults["user"] = self.say("bad_name")
        if re.search(r"\s", values["password"]):
            faults["password"] = self.say("no_spaces")
        faults |= {key: self.say("needed") for key, value in values.items() if not value}
        if not faults:
            self.enter_button.disabled = True
            self.window.update(self.enter_button)
            words = [re.sub(r"\s+", "_", value) for key, value in values.items() if key != "server"]
            try:
                await self.fresh_connection().request("register" if self.registering else "auth", *words)
                return await self.entered()
            except ConnectionError:
                faults["server"] = self.say("unreachable", place=values["server"])
            except ChatError as refusal:
                places = {"user_exists": "user", "bad_name": "user", "too_long": list(self.form)[-1]}
                faults[places.get(refusal.code, "password")] = self.window.reason(refusal)
            self.enter_button.disabled = False
        for key, entry in self.form.items():
            entry.error = faults.get(key)
        self.window.update(self.root)

    def fresh_connection(self, host: str = "", port: int = 0) -> ServerConnection:
        """A connection to the server that the form names, or to that one."""
        if self.conn:
            self.window.spawn(self.conn.close())
        self.conn = ServerConnection(host or self.host, port or self.port, self.realm, self.hear, self.tools.see_frame,
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
            elif "token" in stored:
                await self.fresh_connection(stored["host"], stored["port"]).resume(stored["user"], stored["token"])
            if self.conn:
                return await self.entered()
        if "host" in stored and not self.window.options.server:
            self.host, self.port = stored["host"], stored["port"]
        self.show_login(values={"user": stored.get("user", "")})

    @property
    def session_key(self) -> str:
        """Where the browser keeps the session; a page for each realm has its own."""
        return f"session.{self.realm if self.login else self.window.options.realm}"

    async def entered(self) -> None:
        """After a login: gathers what there is, then shows it."""
        conn = self.conn
        realms = (await conn.request("realms"))["realms"]
        conn.realm = self.realm = next((name for name, row in realms.items() if row["link"] == "local"), self.realm)
        self.chats, self.current = Chats(f"{conn.user}@{conn.realm}"), None
        self.chats.realms = realms
        self.tools.serve(self.chats.own)
        self.tools.draw_realms()
        self.chats.marks = await self.window.recall(f"marks.{self.chats.own}") or {}
        await self.remember_session()
        self.show_chat()
        await asyncio.gather(self.read_people(), self.read_groups(), conn.subscribe(0))
        self.show_self()

    async def remember_session(self) -> None:
        """The page's storage keeps user and token, so that a reload goes on; never the password."""
        session = {key: getattr(self.conn, key) for key in ("host", "port", "user", "token")}
        await self.window.store(self.session_key, {key: value for key, value in session.items() if value})

    async def read_people(self) -> None:
        """The people of all realms that can be asked."""
        async def ask(realm: str) -> None:
            with contextlib.suppress(ChatError):
                rows = (await self.conn.request("info", realm))["users"]
                self.chats.people |= {f"{row['user']}@{row['realm']}": row for row in rows}

        await asyncio.gather(*map(ask, self.chats.realms))
        self.changed(*self.chats.talks.values())

    async def read_groups(self) -> None:
        """One's groups with their members."""
        self.chats.take_groups((await self.conn.request("groups"))["groups"])
        self.changed(*[talk for talk in self.chats.talks.values() if talk.is_group])

    async def leave(self) -> None:
        """Logs out."""
        with contextlib.suppress(ChatError):
            await self.conn.request("logout")
        await self.left()

    async def left(self, note: str = "") -> None:
        """After the session's end."""
        self.banner.visible = False
        self.chats = Chats()
        self.window.count_unread()
        await self.remember_session()
        self.show_login(values={"user": self.conn.user})
        if note:
            self.window.toast(note)

    # -- what comes in

    def hear(self, event: dict) -> None:
        """An event of the connection."""
        kind = event["event"]
        if kind == "message":
            talk, message = self.chats.take(event, self.current)
            if talk is self.current and talk.first_new == message.id and self.at_bottom and self.window.visible:
                talk.first_new = 0                 # it is being looked at
            self.draw_soon(talk, message=message)
        elif kind == "connection":
            self.hear_connection(event)
        elif kind == "presence":
            if event["user"] in self.chats.people:
                self.chats.people[event["user"]]["online"] = event["online"]
                self.changed(*[talk for key, talk in self.chats.talks.items() if key == event["user"]])
            else:
                self.window.spawn(self.read_people())
        elif kind == "group":
            self.window.spawn(self.read_groups())
        elif kind == "realm":
            self.window.spawn(self.read_realms())

    def hear_connection(self, event: dict) -> None:
        """The connection was lost, came back, or the session ended."""
        if event["state"] == "ended":
            self.window.spawn(self.left(self.say("ended")))
        elif event["state"] == "lost" and self.conn.token:
            self.retry_at = time.monotonic() + event["retry"]
            if not self.banner.visible:
                self.banner.visible = True
                self.window.spawn(self.count_down())
        elif event["state"] == "up" and self.banner.visible:
            self.banner.visible = False
            self.window.update(self.root)
            self.window.spawn(self.read_people())
            self.window.spawn(self.read_groups())

    async def count_down(self) -> None:
        """Says when the next attempt will be, until the connection is back."""
        while self.banner.visible:
            seconds = max(0, round(self.retry_at - time.monotonic()))
            self.banner_text.value = self.say("lost", seconds=seconds) if seconds else self.say("trying")
            self.window.update(self.banner.parent)
            await asyncio.sleep(0.5)

    async def read_realms(self) -> None:
        """The links' state; what was queued for a realm has gone once its queue is empty."""
        waiting = True
        while waiting:
            self.chats.realms = (await self.conn.request("realms"))["realms"]
            self.tools.draw_realms()
            waiting = False
            for talk in self.chats.talks.values():
                row = self.chats.realms.get(talk.address.partition("@")[2], {})
                for message in talk.messages if row.get("link") == "up" else ():
                    if message.state == "queued" and row.get("queued"):
                        waiting = True
                    elif message.state == "queued":
                        message.state, message.reason = "stored", ""
                        self.draw_message(message)
            if waiting:
                await asyncio.sleep(1)

    def changed(self, *talks: Conversation) -> None:
        """After news of the people in these conversations."""
        self.draw_soon(*talks)
        self.draw_header()

    def draw_soon(self, *talks: Conversation, message: Message | None = None) -> None:
        """Gathers into one drawing what came at once: these conversations' tiles, and a message of the last."""
        self.dirty.update(talks)
        if message and talks[-1] is self.current:
            self.fresh.append(message)
        if not self.flushing:
            self.flushing = asyncio.get_running_loop().call_later(0.01, self.draw_now)

    def draw_now(self) -> None:
        """Draws the tiles and messages that have changed."""
        self.flushing = None
        if not self.chats.own or not self.window.holds(self.tiles_holder):
            return
        dirty, self.dirty, fresh, self.fresh = self.dirty, set(), self.fresh, []
        new = [message for message in dict.fromkeys(fresh) if message not in self.rows]
        for message in fresh:
            self.draw_message(message)
        if new and self.current:
            if self.at_bottom and len(self.rows) + len(new) < self.MOST and self.current.messages[-len(new):] == new:
                for message in new:
                    self.list.controls.insert(0, self.row_of(self.current.messages.index(message)))
                self.window.update(self.holder)
            elif self.at_bottom:
                self.draw_messages()
            else:
                self.held += len(new)
                self.draw_jump()
            self.mark_read()
        for talk in dirty.intersection(self.chats.talks.values()):     # none of who was logged in before
            self.draw_tile(talk)
        self.draw_list()

    # -- the list of conversations

    def show_chat(self) -> None:
        """The list of conversations, and beside it the one that is open."""
        say = self.say
        self.tiles.clear()
        self.filter = ft.TextField(
            hint_text=say("find"), dense=True, prefix_icon=ft.Icons.SEARCH, filled=True, border=round_border(),
            on_change=self.on(self.draw_list), on_submit=self.on(self.step, 0))
        self.list_view = StillList(expand=True, padding=ft.Padding(8, 4, 8, 4), spacing=2)
        self.tiles_holder = ft.Container(self.list_view, expand=True)
        menu = ft.PopupMenuButton(icon=ft.Icons.EDIT_SQUARE, tooltip=say("new"), items=[
            self.item(ft.Icons.PERSON_ADD, "new_message", self.ask_person),
            self.item(ft.Icons.GROUP_ADD, "new_group", self.ask, "new_group", "group_name", "addgroup"),
            self.item(ft.Icons.LOGIN, "join_group", self.ask_join)])
        self.self_box = ft.Container(expand=True)
        self.show_self()
        head = ft.Row([self.self_box, self.button(ft.Icons.TERMINAL, "tools", self.tools.toggle), menu,
                       self.settings_menu()], spacing=4)
        self.side = ft.Container(ft.Column([
            ft.Container(head, padding=ft.Padding(14, 10, 6, 0)),
            ft.Container(ft.Semantics(content=self.filter, label=say("find")), padding=ft.Padding(12, 0, 12, 0)),
            self.tiles_holder], spacing=8, expand=True, horizontal_alignment=ft.CrossAxisAlignment.STRETCH),
            bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        self.pane = ft.Container(expand=True, bgcolor=ft.Colors.SURFACE)
        self.body.content = ft.Row([self.side, self.pane], spacing=0, expand=True,
                                   vertical_alignment=ft.CrossAxisAlignment.STRETCH)
        self.show_nothing()
        self.lay_out()
        self.draw_list()
        self.window.update(self.root)

    def show_self(self) -> None:
        """Whose chat it is."""
        name = self.chats.name_of(self.chats.own)
        self.self_box.content = ft.Row([avatar(name, self.chats.own), two_lines(name, self.chats.own)], spacing=10)
        self.window.update(self.self_box)

    def settings_menu(self) -> Any:
        """Theme, language, logout."""
        window = self.window
        themes = (("system", ft.Icons.BRIGHTNESS_AUTO), ("light", ft.Icons.LIGHT_MODE), ("dark", ft.Icons.DARK_MODE))
        items = [self.item(icon, theme, window.set_theme, theme, checked=window.settings["theme"] == theme)
                 for theme, icon in themes]
        items += [ft.PopupMenuItem(), self.item(ft.Icons.TRANSLATE, "other_language", window.switch_language),
                  self.item(ft.Icons.TERMINAL, "tools", self.tools.toggle)]
        if self.chats.own:
            items += [ft.PopupMenuItem(), self.item(ft.Icons.LOGOUT, "logout", self.leave)]
        return ft.PopupMenuButton(icon=ft.Icons.MORE_VERT, tooltip=self.say("settings"), items=items)

    def lay_out(self) -> None:
        """Side by side where it is wide; the list or the conversation where it is narrow."""
        if not self.chats.own:
            return
        self.side.visible = not (self.is_narrow and self.current)
        self.pane.visible = not self.is_narrow or bool(self.current)
        self.side.width = None if self.is_narrow else min(self.SIDE, self.width * 0.4)
        self.side.expand = self.is_narrow

    @property
    def is_narrow(self) -> bool:
        """Whether there is room for the list or the conversation only, as on a phone."""
        return self.width < self.NARROW

    def resize(self, width: float) -> None:
        """The view's own width."""
        was_narrow, self.width = self.is_narrow, width
        self.lay_out()
        if self.current and was_narrow != self.is_narrow:
            self.open(self.current.key)

    def draw_list(self) -> None:
        """The tiles in their order, those that match what is looked for."""
        talks = self.chats.listed(self.filter.value or "")
        for talk in talks:
            if talk.key not in self.tiles:
                self.draw_tile(talk)
        self.list_view.controls = [self.tiles[talk.key] for talk in talks]
        self.tiles_holder.content = self.list_view if talks else blank(
            ft.Icons.SEARCH_OFF if self.filter.value else ft.Icons.CHAT_BUBBLE_OUTLINE,
            self.say("none_found" if self.filter.value else "no_talks"))
        self.window.update(self.tiles_holder)
        self.window.count_unread()

    def draw_tile(self, talk: Conversation) -> None:
        """One conversation in the list."""
        last, name = talk.last, self.title_of(talk.key)
        if talk.key not in self.tiles:
            self.tiles[talk.key] = StillBox(border_radius=14, padding=ft.Padding(10, 8, 10, 8), ink=True,
                                            on_click=self.on(self.open, talk.key))
        tile = self.tiles[talk.key]
        end = [small(self.window.show_day(last.when, short_form=True), size=11)] if last else []
        if talk.unread:
            end.append(ft.Container(ft.Text(str(talk.unread), size=11, color=ft.Colors.ON_PRIMARY), border_radius=10,
                                    bgcolor=ft.Colors.PRIMARY, padding=ft.Padding(7, 2, 7, 2)))
        tile.bgcolor = ft.Colors.SECONDARY_CONTAINER if talk is self.current else None
        tile.content = ft.Row([
            avatar(name, talk.key, self.chats.is_online(talk.key)), two_lines(name, self.preview(talk)),
            ft.Column(end, spacing=4, horizontal_alignment=ft.CrossAxisAlignment.END, tight=True)], spacing=12)
        self.window.update(tile)

    def title_of(self, key: str) -> str:
        """A person's name, or a group's; with the realm where it is another's."""
        name, realm = self.chats.name_of(key), key.partition("@")[2]
        return name if realm in ("", self.realm) else f"{name} · {realm}"

    def preview(self, talk: Conversation) -> str:
        """The last message in few words."""
        if not talk.last:
            return self.say("no_messages")
        who = self.say("you") if talk.last.sender == self.chats.own else \
            self.chats.name_of(talk.last.sender) if talk.is_group else ""
        text = talk.last.file["name"] if talk.last.file else talk.last.text.replace("\n", " ")[:120]
        return f"{who}: {text}" if who else text

    # -- the conversation that is open

    def step(self, by: int) -> None:
        """The conversation above or below the one that is open; the first that matches if there is none, or by 0."""
        if talks := self.chats.listed(self.filter.value or ""):
            place = talks.index(self.current) + by if by and self.current in talks else 0
            self.open(talks[place % len(talks)].key)

    def show_nothing(self) -> None:
        """No conversation is open."""
        self.keep_draft()
        self.current = None
        self.pane.content = blank(ft.Icons.FORUM_OUTLINED, self.say("choose_talk"))

    def keep_draft(self) -> None:
        """What was typed stays with its conversation."""
        if self.current:
            self.current.draft = self.input.value or ""
            self.current.first_new = 0
            self.current.trim()

    def close_talk(self) -> None:
        """Back to the list, on a phone."""
        self.draw_soon(*{self.current} - {None})
        self.show_nothing()
        self.lay_out()
        self.window.update(self.root)

    def open(self, key: str) -> None:
        """Shows a conversation, its newest messages and what was typed in it."""
        self.keep_draft()
        before, talk = self.current, self.chats.talk(key)
        self.current = talk
        self.holder = ft.Container(expand=True)
        self.header = ft.Container(padding=ft.Padding(14, 8, 14, 8), bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        self.jump = ft.Container(visible=False, bottom=10, right=18, content=ft.FilledTonalButton(
            "", icon=ft.Icons.ARROW_DOWNWARD, on_click=self.on(self.draw_messages)))
        self.input_error = ft.Text("", color=ft.Colors.ERROR, size=12, visible=False)
        self.input_box = ft.Container(expand=True)
        self.fresh_input(talk.draft)
        composer = ft.Container(ft.Column([self.input_error, ft.Row([
            self.button(ft.Icons.ATTACH_FILE, "attach", self.attach), self.input_box,
            self.button(ft.Icons.SEND_ROUNDED, "send", self.send, True, icon_color=ft.Colors.PRIMARY)],
            vertical_alignment=ft.CrossAxisAlignment.END, spacing=4)], spacing=4, tight=True),
            padding=ft.Padding(8, 6, 8, 10), bgcolor=ft.Colors.SURFACE_CONTAINER_LOW)
        self.pane.content = ft.Column([self.header, ft.Stack([self.holder, self.jump], expand=True), composer],
                                      spacing=0, expand=True)
        self.draw_header()
        self.draw_messages()
        self.lay_out()
        self.mark_read()
        self.draw_soon(*{before, talk} - {None})
        self.window.update(self.root)
        if len(talk.messages) < self.PAGE and not talk.complete:
            self.window.spawn(self.load_older())

    def draw_header(self) -> None:
        """Whose conversation it is."""
        if not self.current:
            return
        talk, say = self.current, self.say
        online = self.chats.is_online(talk.key)
        if talk.is_group:
            names = ", ".join(short(member, self.realm) for member in talk.members[:8])
            state = f"{len(talk.members)} {say('members')}: {names}" if talk.members else say("not_a_member")
        else:
            state = f"{talk.address} · {say('is_online' if online else 'is_offline')}"
        title = self.title_of(talk.key)
        parts = [avatar(title, talk.key, online), two_lines(title, state, 16)]
        if self.is_narrow:
            parts.insert(0, self.button(ft.Icons.ARROW_BACK, "back", self.close_talk))
        if talk.is_group:
            parts.append(self.button(ft.Icons.GROUPS, "members", self.show_members))
        self.header.content = ft.Row(parts, spacing=12)
        self.window.update(self.header)

    def draw_messages(self) -> None:
        """The newest messages of the conversation, in a list that stands at its end."""
        for gathered in (self.rows, self.bars, self.fresh):
            gathered.clear()
        self.list = StillList(expand=True, reverse=True, spacing=3, on_scroll=self.window.heard(self.scrolled),
                              scroll_interval=60, padding=ft.Padding(16, 10, 16, 10), key=secrets.token_hex(4))
        self.holder.content = ft.SelectionArea(self.list)
        count = len(self.current.messages)
        self.first = max(0, count - self.PAGE)
        self.at_bottom, self.held = True, 0
        self.list.controls = [self.row_of(number) for number in reversed(range(self.first, count))]
        self.jump.visible = False
        self.window.update(self.holder, self.jump.parent)

    def draw_message(self, message: Message) -> None:
        """One message again, after its state has changed."""
        if message in self.rows and self.current and message in self.current.messages:
            self.rows[message].content = self.draw_row(self.current.messages.index(message))
            self.window.update(self.rows[message])

    def row_of(self, number: int) -> Any:
        """A message of the current conversation as a row of the list."""
        message = self.current.messages[number]
        self.rows[message] = StillBox(content=self.draw_row(number))
        return self.rows[message]

    def draw_row(self, number: int) -> Any:
        """A bubble, with what stands above it: a new day, or that from here on all is new."""
        talk = self.current
        message, before = talk.messages[number], talk.messages[number - 1] if number else None
        above = []
        if not before or before.when.date() != message.when.date():
            above.append(pill(self.window.show_day(message.when)))
        if talk.first_new and message.id >= talk.first_new and (not before or before.id < talk.first_new):
            line = {"color": ft.Colors.PRIMARY, "expand": True}
            words = small(self.say("new_messages"), color=ft.Colors.PRIMARY)
            above.append(ft.Row([ft.Divider(**line), words, ft.Divider(**line)]))
        follows = bool(not above and before.sender == message.sender
                       and (message.when - before.when).total_seconds() < 300)
        bubble = ft.Semantics(content=self.draw_bubble(message, follows), identifier=f"msg-{message.id}",
                              container=True)
        return ft.Column([*above, bubble], spacing=8) if above else bubble

    def draw_bubble(self, message: Message, follows: bool) -> Any:
        """A message; one's own stands on the right. One that follows another of its sender has no name."""
        mine, failed = message.sender == self.chats.own, message.state == "failed"
        color = ft.Colors.ERROR if failed else ft.Colors.ON_SURFACE_VARIANT
        parts = [self.draw_file(message) if message.file else linked(message.text)]
        if self.current.is_group and not mine and not follows:
            parts.insert(0, ft.Text(self.title_of(message.sender), size=12, weight=ft.FontWeight.W_600,
                                    color=color_of(message.sender)))
        foot = [small(message.reason, size=11, color=color)] if message.reason else []
        foot.append(small(f"{message.when:%H:%M}", size=10.5))
        if mine:
            icon = {"sending": ft.Icons.SCHEDULE, "stored": ft.Icons.DONE, "queued": ft.Icons.HOURGLASS_TOP,
                    "failed": ft.Icons.ERROR_OUTLINE}[message.state]
            foot.append(ft.Icon(icon, size=13, color=color, semantics_label=self.say(f"is_{message.state}")))
        parts.append(ft.Row(foot, spacing=4, tight=True))
        if failed:
            parts.append(ft.TextButton(self.say("again"), icon=ft.Icons.REFRESH,
                                       on_click=self.on(self.send_again, message)))
        content = ft.Column(parts, spacing=2, tight=True,
                            horizontal_alignment=ft.CrossAxisAlignment.END if mine else ft.CrossAxisAlignment.START)
        if message.text:
            content = ft.ContextMenu(content=content, secondary_items=[
                self.item(ft.Icons.COPY, "copy", self.window.copy, message.text)])
        edge = 4 if follows else 16
        bubble = ft.Container(
            content, bgcolor=ft.Colors.PRIMARY_CONTAINER if mine else ft.Colors.SURFACE_CONTAINER_HIGH, expand=True,
            border_radius=ft.BorderRadius(16 if mine else edge, edge if mine else 16, 16, 16), expand_loose=True,
            padding=ft.Padding(12, 7, 12, 5), margin=ft.Margin.only(top=0 if follows else 6))
        gap = ft.Container(width=max(48, self.width - (0 if self.is_narrow else self.SIDE) - 620))
        return ft.Row([gap, bubble] if mine else [bubble, gap], spacing=0,
                      alignment=ft.MainAxisAlignment.END if mine else ft.MainAxisAlignment.START)

    def draw_file(self, message: Message) -> Any:
        """A picture, or a card with the file's name and size; a bar while it is on its way."""
        name, size = message.file["name"], message.file["size"]
        is_picture = Path(name).suffix.lower() in IMAGES and size <= self.PICTURE
        if is_picture and message.id and not message.source and not message.task:
            message.task = self.window.spawn(self.load_picture(message))
        if is_picture and message.source:
            picture = ft.Image(src=message.source, fit=ft.BoxFit.CONTAIN, border_radius=10, semantics_label=name,
                               error_content=ft.Icon(ft.Icons.BROKEN_IMAGE))
            return ft.Container(picture, width=280, height=200, ink=True, tooltip=name,
                                on_click=self.on(self.enlarge, message))
        moving = message.task is not None and not is_picture or message.state == "sending"
        if moving:
            button = self.button(ft.Icons.CLOSE, "cancel", self.cancel, message, icon_size=20)
        else:
            button = self.button(ft.Icons.DOWNLOAD, "save", self.save, message, icon_size=20, disabled=not message.id)
        icon = ft.Icons.IMAGE if is_picture else ft.Icons.INSERT_DRIVE_FILE
        card = ft.Row([
            ft.Container(ft.Icon(icon, color=ft.Colors.ON_PRIMARY, size=20), bgcolor=ft.Colors.PRIMARY,
                         border_radius=10, padding=9),
            ft.Column([ft.Text(name, max_lines=2, overflow=ft.TextOverflow.ELLIPSIS, size=13.5),
                       small(show_size(size), size=11)], spacing=0, expand=True, tight=True), button], spacing=10)
        bar = self.bars[message] = ft.ProgressBar(value=message.done, bar_height=5, border_radius=3, visible=moving)
        return ft.Container(ft.Column([card, bar], tight=True, spacing=4), width=290)

    # -- reading

    async def scrolled(self, event: Any) -> None:
        """Near the top older messages come, at the bottom those held back."""
        self.at_bottom = event.pixels < 40
        if self.at_bottom and self.held:
            self.draw_messages()
        elif event.pixels > event.max_scroll_extent - 600:
            await self.load_older()
        if not self.at_bottom and not self.jump.visible and event.pixels > 600 or self.at_bottom and self.jump.visible:
            self.draw_jump()

    def draw_jump(self) -> None:
        """The way to the newest, with how many are new."""
        self.jump.visible = not self.at_bottom
        self.jump.content.content = self.say("count_new", count=self.held) if self.held else self.say("newest")
        self.window.update(self.jump.parent)

    async def load_older(self) -> None:
        """One more page above those that are shown."""
        talk = self.current
        if not talk or talk.loading or not self.first and talk.complete or len(self.rows) >= self.LOOK_BACK:
            return
        talk.loading = True
        try:
            if self.first < self.PAGE and not talk.complete:
                oldest = next((str(message.id) for message in talk.messages if message.id), "9" * 15)
                target = talk.key.replace("#", "group:")
                reply = await self.conn.request("history", target, oldest, str(2 * self.PAGE))
                before = len(talk.messages)
                for fields in reply["messages"]:
                    talk.add(Message.received(fields))
                talk.complete = not reply["more"]
                if talk is self.current:
                    self.first += len(talk.messages) - before
            if talk is self.current and self.first:
                was, self.first = self.first, max(0, self.first - self.PAGE)
                self.list.controls.extend(self.row_of(number) for number in reversed(range(self.first, was)))
                self.window.update(self.holder)
                if was < len(talk.messages):       # what was the oldest may now belong to those above
                    self.draw_message(talk.messages[was])
        finally:
            talk.loading = False

    def mark_read(self) -> None:
        """All of the open conversation has been seen, if the page is."""
        talk = self.current
        if not talk or not self.window.visible or not talk.last:
            return
        newest = next((message.id for message in reversed(talk.messages) if message.id), 0)
        talk.unread = 0
        self.dirty.add(talk)
        if newest > self.chats.marks.get(talk.key, 0):
            self.chats.marks[talk.key] = newest
            self.window.store_soon(f"marks.{self.chats.own}", self.chats.marks)

    # -- writing

    def fresh_input(self, text: str = "") -> None:
        """An empty field that has the focus: Flet can't give it to one that was there before."""
        self.input = ft.TextField(
            value=text, hint_text=self.say("write"), multiline=True, shift_enter=True,
            min_lines=1, max_lines=6, dense=True, filled=True, autofocus=True, key=secrets.token_hex(4),
            border=round_border(), on_submit=self.on(self.send))
        self.input_box.content = ft.Semantics(content=self.input, label=self.say("message"))     # hints come and go

    async def send(self, by_button: bool = False) -> None:
        """Sends what was typed."""
        text, talk = (self.input.value or "").strip(), self.current
        too_long = len(text.replace("\n", LINE_BREAK).encode()) > common.MAX_TEXT
        if too_long != self.input_error.visible:
            self.input_error.visible = too_long
            self.input_error.value = self.say("too_long", size=show_size(common.MAX_TEXT))
            self.window.update(self.input_error.parent)
        if too_long or not text:
            return
        if by_button:
            self.fresh_input()
            self.window.update(self.input_box)
        else:
            self.input.value = ""
            self.window.update(self.input)
        await self.send_message(talk, Message(self.chats.own, datetime.now().astimezone(), text, state="sending"))

    async def send_message(self, talk: Conversation, message: Message) -> None:
        """Sends a message or a file, and shows how it fares."""
        talk.add(message)
        talk.unread = talk.first_new = 0
        if not self.at_bottom and talk is self.current:
            self.draw_messages()
        self.draw_soon(talk, message=message)
        group, moved = "group" if talk.is_group else "", False
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
            before = list(talk.messages)
            talk.settle(message, reply["id"])
            moved = before != talk.messages
            message.file = reply.get("file", message.file)
            message.state, message.reason = "stored", ""
            if reply.get("queued"):
                message.state, message.reason = "queued", self.say("queued")
            if message.path and self.page.web:     # what the browser sent has gone on
                message.path.unlink(missing_ok=True)
        except asyncio.CancelledError:
            talk.messages.remove(message)
            moved = True
        except (ChatError, OSError) as refusal:
            message.state, message.reason = "failed", self.window.reason(refusal)
        message.task = None
        if talk is self.current and moved:
            self.draw_messages()
        self.draw_soon(talk, message=None if moved else message)

    async def send_again(self, message: Message) -> None:
        """After a failure."""
        self.current.messages.remove(message)
        message.state, message.reason = "sending", ""
        self.draw_messages()
        message.task = self.window.spawn(self.send_message(self.current, message))

    async def attach(self) -> None:
        """Picks files and sends them."""
        talk = self.current
        for picked in await self.window.picker.pick_files(allow_multiple=True) or []:
            most = self.window.options.max_file * MIB
            if picked.size > most:
                self.window.toast(self.say("file_too_large", name=picked.name, size=show_size(most)))
                continue
            message = Message(self.chats.own, datetime.now().astimezone(), state="sending", picked=picked,
                              file={"name": picked.name, "size": picked.size})
            message.task = self.window.spawn(self.send_message(talk, message))

    def show_progress(self, message: Message, start: float) -> Progress:
        """A callback that moves the message's bar: in a browser, the second half of it."""
        drawn = 0.0

        def show(done: int, size: int) -> None:
            nonlocal drawn
            part = 0.5 if self.page.web and message.state == "sending" else 1
            message.done = start + part * (done / size if size else 1)
            if message in self.bars and time.monotonic() - drawn > 0.15:
                drawn = time.monotonic()
                self.bars[message].value = message.done        # that alone: a button drawn anew would miss its click
                self.window.update(self.bars[message])

        return show

    def cancel(self, message: Message) -> None:
        """Ends a transfer."""
        if message.task:
            message.task.cancel()

    async def load_picture(self, message: Message) -> None:
        """Fetches a picture, to be shown where it stands."""
        try:
            path = await self.conn.fetch_file(str(message.file["id"]), self.window.new_folder())
            message.source = self.window.publish(path)
        except (ChatError, OSError) as refusal:
            message.reason = self.window.reason(refusal)
            message.source = "none"
        message.task = None
        self.draw_message(message)

    def enlarge(self, message: Message) -> None:
        """A picture as large as the page."""
        viewer = ft.InteractiveViewer(ft.Image(src=message.source, fit=ft.BoxFit.CONTAIN), max_scale=8,
                                      width=self.page.width * 0.85, height=self.page.height * 0.7)
        self.window.show_dialog(message.file["name"], viewer, [
            ft.TextButton(self.say("save"), on_click=self.on(self.save, message))])

    async def fetch(self, file_id: str, progress: Progress = unwatched) -> Path:
        """Brings a file to the person: a browser's download, or in the folder of downloads."""
        folder = self.window.new_folder() if self.page.web else self.window.options.downloads
        path = await self.conn.fetch_file(file_id, folder, progress)
        await self.window.hand_over(path)
        return path

    async def save(self, message: Message) -> None:
        """Saves the file of a message."""
        if message.task:
            return

        async def fetch() -> None:
            try:
                await self.fetch(str(message.file["id"]), self.show_progress(message, 0))
            finally:
                message.task = None
                self.draw_message(message)

        message.done = 0.0
        message.task = self.window.spawn(fetch())
        self.draw_message(message)

    # -- dialogs

    def ask_person(self) -> None:
        """Someone to write to, of any realm."""
        chats = self.chats
        people = sorted((address for address in chats.people if address != chats.own),
                        key=lambda address: (not chats.is_online(address), chats.name_of(address)))
        self.ask("new_message", "person_hint", "", [
            (address, chats.name_of(address), f"{address} · {chats.people[address]['negara']}") for address in people])
        self.window.spawn(self.read_people())

    async def ask_join(self) -> None:
        """A group to join, of any realm."""
        await self.read_groups()
        self.ask("join_group", "group_hint", "joingroup", [
            (f"#{address}", short(address, self.realm), address) for address in self.chats.open_groups])

    def ask(self, title: str, hint: str, word: str, rows: list[tuple[str, str, str]] | None = None) -> None:
        """A dialog to type a name into, or to pick a row of: what is chosen is opened, a group after its command."""
        def matching() -> list[tuple[str, str, str]]:
            words = entry.value.lower()
            return [row for row in rows or () if words in f"{row[1]} {row[2]}".lower()]

        async def submit() -> None:
            keys = [key for key, _, _ in matching()] if entry.value.strip() else []
            try:
                typed = ("#" if word else "") + "@".join(common.parse_address(entry.value.strip(), self.realm))
            except ChatError as refusal:           # it may still be a part of someone's full name
                typed, entry.error = "", self.window.reason(refusal)
            if typed or keys:
                return await take(typed if typed in keys or not keys else keys[0])
            self.window.update(entry)

        async def take(key: str) -> None:
            if word:
                try:
                    await self.conn.request(word, short(key.lstrip("#"), self.realm))
                except ChatError as refusal:
                    entry.error = self.window.reason(refusal)
                    return self.window.update(entry)
                await self.read_groups()
                self.chats.talk(key).complete = word == "addgroup"
            self.page.pop_dialog()
            self.open(key)

        def draw() -> None:
            listing.controls = [self.list_tile(key, name, below, on_click=self.on(take, key))
                                for key, name, below in matching()[:100]]
            self.window.update(listing)

        entry = ft.TextField(label=self.say(hint), autofocus=True, dense=True, on_change=self.on(draw),
                             on_submit=self.on(submit))
        listing = ft.ListView(expand=True, spacing=0)
        draw()
        content = ft.Column([entry, listing], width=380, height=80 if rows is None else 380,
                            horizontal_alignment=ft.CrossAxisAlignment.STRETCH)
        self.window.show_dialog(self.say(title), content, [
            ft.FilledButton(self.say("ok"), on_click=self.on(submit))])

    def list_tile(self, key: str, name: str, below: str, **more: Any) -> Any:
        """A person or a group in a dialog."""
        return ft.ListTile(leading=avatar(name, key, self.chats.is_online(key)), title=two_lines(name, below), **more)

    def show_members(self) -> None:
        """Who is in the group, and the way out of it."""
        async def leave() -> None:
            self.page.pop_dialog()
            await self.conn.request("leavegroup", talk.address)
            await self.read_groups()

        talk = self.current
        rows = [self.list_tile(member, self.chats.name_of(member), member) for member in talk.members]
        buttons = [ft.TextButton(self.say("leave_group"), icon=ft.Icons.LOGOUT, on_click=self.on(leave))]
        self.window.show_dialog(f"{self.title_of(talk.key)} · {len(rows)} {self.say('members')}", ft.ListView(
            rows, width=360, height=min(360, 60 * len(rows))), buttons if talk.members else [])


# ---- prompt, wire and realms on the page ---------------------------------------------------------


class Wire(Part):
    """Every frame that crossed one or two connections, the newest last; so many and no more."""

    KEPT = 500
    SHOWN = 150

    def __init__(self, window: Window) -> None:
        super().__init__(window)
        self.frames: collections.deque[tuple[str, Frame, bytes]] = collections.deque(maxlen=self.KEPT)
        self.paused = False
        self.drawing: asyncio.TimerHandle | None = None
        self.undrawn = 0
        self.list = StillList(expand=True, reverse=True, spacing=0, padding=6)
        self.holder = ft.Container(self.list, expand=True)

    def see(self, who: str, frame: Frame) -> None:
        """A frame; drawn a little later with others."""
        if self.paused:
            return
        self.frames.append((who, frame, common.mask(frame.head)))
        self.undrawn += 1
        if not self.drawing and self.window.holds(self.holder):
            self.drawing = asyncio.get_running_loop().call_later(0.05, self.draw)

    def build(self) -> Any:
        """The panel."""
        self.filter = ft.TextField(hint_text=self.say("filter"), dense=True, text_size=13, width=220, height=36,
                                   on_change=self.on(self.redraw), content_padding=8)
        self.pause = self.button(ft.Icons.PAUSE, "pause", self.toggle, icon_size=18)
        self.draw_pause()
        bar = ft.Row([ft.Semantics(content=self.filter, label=self.say("filter")), self.pause,
                      self.button(ft.Icons.COPY, "copy", self.copy, icon_size=18),
                      self.button(ft.Icons.DELETE_SWEEP, "clear", self.clear, icon_size=18)], spacing=2)
        self.redraw()
        return ft.Column([ft.Container(bar, padding=ft.Padding(10, 4, 0, 0)), self.holder], spacing=0, expand=True)

    def matching(self, entries: Iterable[tuple[str, Frame, bytes]]) -> list[tuple[str, Frame, bytes]]:
        """Those that hold what is looked for."""
        words = (self.filter.value or "").encode().lower()
        return [entry for entry in entries if words in entry[2].lower()]

    def row(self, entry: tuple[str, Frame, bytes]) -> Any:
        """A frame on one line; a click shows its fields."""
        who, frame, head = entry
        box = StillBox(ink=True, padding=ft.Padding(6, 2, 6, 2), border_radius=6)
        more = f" … {frame.size} B" if frame.size > FRAME_HEAD else ""
        text = common.visible(head if frame.outgoing or more else head + FRAME_END)
        mono = {"font_family": "Mono", "size": 12}
        arrow, color = ("→", ft.Colors.PRIMARY) if frame.outgoing else ("←", ft.Colors.TERTIARY)
        end = f"{frame.elapsed * 1000:.1f} ms" if frame.elapsed is not None else f"{frame.size} B"
        line = ft.Row([
            ft.Text(f"{datetime.fromtimestamp(frame.when):%H:%M:%S.%f}"[:-3], color=ft.Colors.OUTLINE, **mono),
            *([ft.Text(f"{who:6}", color=ft.Colors.TERTIARY, **mono)] if who else []),
            ft.Text(arrow, weight=ft.FontWeight.BOLD, color=color, **mono),
            ft.Text(text[:400] + more, expand=True, max_lines=1, overflow=ft.TextOverflow.ELLIPSIS, **mono),
            ft.Text(end, color=ft.Colors.OUTLINE, **mono)], spacing=10)
        box.content = line

        def unfold() -> None:
            if box.content is line:
                fields = ft.Text("\n".join(f"{key:>12}: {value}" for key, value in common.decode(head)), **mono)
                box.content = ft.Column([line, ft.Container(fields, padding=ft.Padding(20, 0, 0, 6))], spacing=2)
            else:
                box.content = line
            self.window.update(box)

        box.on_click = self.on(unfold)
        return box

    def draw(self) -> None:
        """Adds what has come since the last time."""
        new = list(self.frames)[-self.undrawn:] if self.undrawn else []
        self.drawing, self.undrawn = None, 0
        self.list.controls[:0] = [self.row(entry) for entry in reversed(self.matching(new)[-self.SHOWN:])]
        del self.list.controls[self.SHOWN:]
        self.window.update(self.holder)

    def redraw(self) -> None:
        """After the filter has changed."""
        self.list.controls.clear()
        self.undrawn = len(self.frames)
        self.draw()

    def toggle(self) -> None:
        """Pauses, or goes on."""
        self.draw()                                # what came before; from here on no row moves
        self.paused = not self.paused
        self.draw_pause()
        self.window.update(self.pause)

    def draw_pause(self) -> None:
        """What the button would do."""
        self.pause.icon = ft.Icons.PLAY_ARROW if self.paused else ft.Icons.PAUSE
        self.pause.tooltip = self.say("resume" if self.paused else "pause")

    async def copy(self) -> None:
        """All frames that match, as text."""
        lines = [f"{datetime.fromtimestamp(frame.when):%H:%M:%S.%f} {who} {'>' if frame.outgoing else '<'} "
                 + head.decode(errors="replace").rstrip() for who, frame, head in self.matching(self.frames)]
        await self.window.copy("\n".join(lines))

    def clear(self) -> None:
        """Forgets the frames."""
        self.frames.clear()
        self.list.controls.clear()
        self.undrawn = 0
        self.window.update(self.holder)


class Tools(Part):
    """Below a chat: the commands of the README to type, the frames they become, the realms."""

    HEIGHT = 300

    def __init__(self, view: ChatView) -> None:
        super().__init__(view.window)
        self.view, self.wire = view, Wire(view.window)
        self.root = ft.Container(visible=False, height=self.HEIGHT, bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST,
                                 border=ft.Border.only(top=ft.BorderSide(1, ft.Colors.OUTLINE_VARIANT)))
        self.list = StillList(expand=True, reverse=True, spacing=1, padding=10)      # what was typed and answered
        self.list_holder = ft.Container(ft.SelectionArea(self.list), expand=True)
        self.table = ft.Row(wrap=True, spacing=12, run_spacing=12)     # of the realms
        self.typed: list[str] = []
        self.recalled = 0
        self.has_focus = False
        self.tab = "commands"
        self.user = ""

    def serve(self, user: str) -> None:
        """This user has logged in: what an earlier one typed and was sent is not theirs to see."""
        if self.user not in ("", user):
            self.typed.clear()
            self.list.controls.clear()
            self.window.update(self.list_holder)
            self.wire.clear()
        self.user = user

    def see_frame(self, frame: Frame) -> None:
        """For the wire."""
        self.wire.see("", frame)
        if self.window.wire:
            self.window.wire.see(self.view.realm, frame)

    def toggle(self) -> None:
        """Opens or closes the panel."""
        self.root.visible = not self.root.visible
        self.draw()
        self.window.update(self.view.root)

    def draw(self) -> None:
        """The panel, as it stands."""
        if not self.root.visible:
            self.root.content = None
            return
        tabs = [ft.TextButton(self.say(tab), icon=icon, on_click=self.on(self.choose, tab), style=ft.ButtonStyle(
            bgcolor=ft.Colors.SECONDARY_CONTAINER if tab == self.tab else None))
            for tab, icon in (("commands", ft.Icons.TERMINAL), ("wire", ft.Icons.CABLE), ("realms", ft.Icons.HUB))]
        close = self.button(ft.Icons.CLOSE, "close", self.toggle, icon_size=18)
        panel = {"commands": self.build_commands, "wire": self.wire.build, "realms": self.build_realms}[self.tab]()
        self.root.height = min(self.HEIGHT, (self.page.height or 800) * 0.45)
        self.root.content = ft.Column([ft.Row([*tabs, ft.Container(expand=True), close], spacing=4), panel],
                                      spacing=0, expand=True)

    def choose(self, tab: str) -> None:
        """Another tab."""
        self.tab = tab
        self.draw()
        self.window.update(self.root.parent)
        if tab == "realms" and self.view.chats.own:
            self.window.spawn(self.view.read_realms())

    # -- commands

    def build_commands(self) -> Any:
        """What was typed and answered, and the line to type in."""
        self.choices = ft.Row(spacing=6, scroll=ft.ScrollMode.AUTO)
        self.input = ft.TextField(
            label=self.say("command"), dense=True, text_style=ft.TextStyle(font_family="Mono", size=13), autofocus=True,
            on_submit=self.on(self.submit), on_change=self.on(self.suggest),
            on_focus=self.on(self.focus, True), on_blur=self.on(self.focus, False))
        self.suggest()
        return ft.Column([self.list_holder, ft.Container(self.choices, padding=ft.Padding(10, 0, 10, 0)),
                          ft.Container(self.input, padding=ft.Padding(10, 6, 10, 8))],
                         spacing=0, expand=True, horizontal_alignment=ft.CrossAxisAlignment.STRETCH)

    def print(self, *texts: str, color: str | None = None) -> None:
        """Adds lines to what was typed and answered."""
        for text in texts:
            self.list.controls.insert(0, ft.Text(text, font_family="Mono", size=12.5, color=color))
        del self.list.controls[300:]
        self.window.update(self.list_holder)

    def print_failure(self, why: str) -> None:
        """Adds a line in red."""
        self.print(why, color=ft.Colors.ERROR)

    def focus(self, has_focus: bool) -> None:
        """Whether arrows recall lines."""
        self.has_focus = has_focus

    def completions(self) -> list[tuple[str, str]]:
        """What the line may become, and a remark on each."""
        text, chats = self.input.value or "", self.view.chats
        before, space, last = text.rpartition(" ")
        kind = parameter_after(before.split())
        if kind == "COMMAND":
            found = [(command.word, command.prompt_usage) for command in PUBLIC_COMMANDS]
        else:
            talks = list(chats.talks.values())
            names = {"USER": chats.people, "GROUP": [talk.address for talk in talks if talk.is_group],
                     "USER-or-GROUP": [talk.address for talk in talks], "REALM": chats.realms}.get(kind, ())
            found = [(name, name) for name in (short(name, self.view.realm) for name in names)]
        return [(f"{before}{space}{word} ", label) for word, label in found if word.startswith(last.lower())]

    def suggest(self) -> None:
        """Shows what the line may become."""
        text = self.input.value or ""
        command = COMMANDS.get(text.partition(" ")[0].lower())
        usage = [small(command.prompt_usage, font_family="Mono")] if command in PUBLIC_COMMANDS and " " in text else []
        self.choices.controls = [*usage, *[
            ft.TextButton(ft.Text(label, size=12), on_click=self.on(self.complete, value), height=26,
                          style=ft.ButtonStyle(padding=ft.Padding(8, 0, 8, 0)))
            for value, label in self.completions()[:12]]]
        self.window.update(self.choices)

    async def complete(self, value: str = "") -> None:
        """Puts a completion into the line: the one clicked, or what all have in common."""
        found = [value] if value else [value for value, _ in self.completions()]
        if found:
            self.input.value = os.path.commonprefix(found)
            self.suggest()
            self.window.update(self.input)
        await self.input.focus()

    def recall(self, by: int) -> None:
        """An earlier line, or a later one."""
        self.recalled = min(max(0, self.recalled + by), len(self.typed))
        self.input.value = self.typed[-self.recalled] if self.recalled else ""
        self.window.update(self.input)

    async def submit(self) -> None:
        """Carries out the line."""
        line = (self.input.value or "").strip()
        self.recall(-self.recalled)
        self.suggest()
        if line:
            shown = line
            if SECRET.match(line):
                shown = common.mask(" ".join(line.split()).encode()).decode()
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
            command, arguments = parse_typed(line, bool(conn.token))
            if command.takes_file and self.page.web:      # a visitor must not name files of this computer
                picked = await self.window.picker.pick_files()
                if not picked:
                    return self.print_failure(self.say("cancelled"))
                path = await self.window.upload(picked[0])
                reply = await conn.send_file(word, *arguments[:-1], path=path, name=picked[0].name)
                lines = describe(word, reply, view.realm)
            elif word == "getfile":
                path = await view.fetch(arguments[0])
                lines = [self.say("saved", path=path.name, size=show_size(path.stat().st_size))]
            else:
                lines = await perform(conn, line, self.window.options.downloads)
            self.print(*lines)
        except (ChatError, OSError) as refusal:
            return self.print_failure(self.say("failed", reason=self.window.reason(refusal)))
        if conn.token != before:
            await (view.entered() if conn.token else view.left())
        elif word in ("addgroup", "joingroup", "leavegroup"):
            await view.read_groups()

    # -- realms

    def build_realms(self) -> Any:
        """The realms of the table and the link to each."""
        self.draw_realms()
        return ft.Container(ft.Column([self.table], scroll=ft.ScrollMode.AUTO), padding=14, expand=True)

    def draw_realms(self) -> None:
        """After news of a link."""
        self.table.controls = [realm_card(name, [(name, row)], self.say)
                               for name, row in self.view.chats.realms.items()] or [small(self.say("no_realms"))]
        self.window.update(self.table)
        if self.window.demo:
            self.window.draw_cards()


def realm_card(name: str, links: list[tuple[str, dict]], say: Callable[..., str], end: Any = None) -> Any:
    """A realm, and its links: whether each is up, how quick, and what waits for it."""
    lines = []
    for other, row in links:
        up = row["link"] in ("up", "local")
        words = [other if other != name else f"{row['address']}:{row['port']}", say(f"link_{row['link']}")]
        if up and row.get("rtt_ms") is not None:
            words.append(f"{row['rtt_ms']:.1f} ms")
        if row.get("queued"):
            words.append(say("queued_count", count=row["queued"]))
        icon, color = (ft.Icons.LINK, ft.Colors.GREEN_500) if up else (ft.Icons.LINK_OFF, ft.Colors.ERROR)
        lines.append(ft.Row([ft.Icon(icon, size=16, color=color), small(
            " · ".join(words), max_lines=1, overflow=ft.TextOverflow.ELLIPSIS, expand=bool(end))],
            spacing=6, tight=not end))
    return ft.Container(ft.Row([
        ft.Icon(ft.Icons.DNS, color=ft.Colors.PRIMARY),
        ft.Column([ft.Text(name, weight=ft.FontWeight.W_600), *lines], spacing=2, tight=True, expand=bool(end)),
        *([end] if end else [])], spacing=12, tight=not end), border_radius=14, padding=12,
        bgcolor=ft.Colors.SURFACE_CONTAINER_HIGH)


# ---- the page ------------------------------------------------------------------------------------

FILES: dict[str, Path] = {}                        # what browsers may fetch: token -> file


class Window:
    """One page, in a browser or a window of its own: what the chats on it share."""

    def __init__(self, page: Any, options: argparse.Namespace, demo: Demo | None) -> None:
        self.page, self.options, self.demo = page, options, demo
        self.settings = {"language": INDONESIAN, "theme": "system"}
        self.visible = True
        self.busy_until = 0.0                      # until then Esc is a dialog's
        self.views: list[ChatView] = []
        self.wire: Wire | None = None              # of the demo, for all its chats
        self.folder = Path(tempfile.mkdtemp(dir=options.uploads))      # what is fetched here, and sent from here
        self.tasks: set[asyncio.Task] = set()
        self.prefs = ft.SharedPreferences()
        self.clipboard = ft.Clipboard()
        self.launcher = ft.UrlLauncher()
        self.picker = ft.FilePicker(on_upload=self.heard(self.uploading))
        self.upload_lock = asyncio.Lock()
        self.upload_state: tuple[Any, Path, asyncio.Future, Progress] | None = None
        self.storing: set[str] = set()

    # -- what the views use

    def say(self, key: str, **fields: object) -> str:
        """A text in the page's language."""
        return say(key, self.settings["language"], **fields)

    async def guard(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Carries something out; an error becomes a note, where Flet would cover the page."""
        try:
            result = work(*arguments)
            if asyncio.iscoroutine(result):
                await result
        except (ChatError, OSError) as refusal:
            self.toast(self.reason(refusal))
        except Exception:
            log.exception("handler")
            self.toast(self.say("went_wrong"))

    def on(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """A handler for a control's event."""
        return self.heard(lambda event: work(*arguments))

    def heard(self, work: Callable[[Any], Any]) -> Any:
        """Likewise, for one that wants the event."""
        async def handle(event: Any) -> None:
            await self.guard(work, event)

        return handle

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task:
        """Starts work beside the page; what fails is shown."""
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
        """Whether a control is on the page."""
        try:
            return control.page is not None
        except RuntimeError:
            return False

    def toast(self, text: str) -> None:
        """A note that goes away by itself."""
        with contextlib.suppress(RuntimeError):
            self.page.show_dialog(ft.SnackBar(ft.Text(text), duration=4000))

    def reason(self, error: Exception) -> str:
        """Why something failed, in the page's language where it has the words."""
        return reason(error, self.settings["language"])

    def show_dialog(self, title: str, content: Any, buttons: list[Any]) -> None:
        """A dialog; Esc closes it, and nothing else then."""
        def dismissed(event: Any) -> None:
            self.busy_until = time.monotonic() + 0.5

        self.busy_until = math.inf
        self.page.show_dialog(ft.AlertDialog(
            title=ft.Text(title, size=18), content=content, on_dismiss=self.heard(dismissed), actions=[
                ft.TextButton(self.say("close"), on_click=self.on(self.page.pop_dialog)), *buttons]))

    async def copy(self, text: str) -> None:
        """To the clipboard."""
        await self.clipboard.set(text)
        self.toast(self.say("copied"))

    def show_day(self, moment: datetime, short_form: bool = False) -> str:
        """A day for people; in short, the time if it is today."""
        days = (datetime.now().date() - moment.date()).days
        if days == 0:
            return f"{moment:%H:%M}" if short_form else self.say("today")
        if days == 1:
            return self.say("yesterday")
        if short_form:
            return f"{moment:%d/%m/%y}"
        return f"{self.say('weekdays').split()[moment.weekday()]}, {moment.day} " \
            f"{self.say('months').split()[moment.month - 1]} {moment.year}"

    def count_unread(self) -> None:
        """In the title of the tab."""
        count = sum(talk.unread for view in self.views for talk in view.chats.talks.values())
        title = f"({count}) {self.say('title')}" if count else self.say("title")
        if self.page.title != title:
            self.page.title = title
            self.update(self.page)

    # -- storage of the browser

    async def recall(self, key: str) -> Any:
        """What was stored under that key."""
        with contextlib.suppress(Exception):
            text = await asyncio.wait_for(self.prefs.get(f"chat.{key}"), 5)
            return json.loads(text) if text else None

    async def store(self, key: str, value: Any) -> None:
        """Stores it in the browser, or on this computer."""
        with contextlib.suppress(Exception):
            await asyncio.wait_for(self.prefs.set(f"chat.{key}", json.dumps(value)), 5)

    def store_soon(self, key: str, value: Any) -> None:
        """Likewise, once for many changes of a dict."""
        async def store() -> None:
            await asyncio.sleep(1)
            self.storing.discard(key)
            await self.store(key, value)

        if key not in self.storing:
            self.storing.add(key)
            self.spawn(store())

    # -- files

    async def upload(self, picked: Any, progress: Progress = unwatched) -> Path:
        """A file that was picked in a browser, brought here."""
        path = self.folder / secrets.token_hex(16)
        path.touch()
        async with self.upload_lock:
            if picked.size:
                done = asyncio.get_running_loop().create_future()
                self.upload_state = picked, path, done, progress
                await self.picker.upload([ft.FilePickerUploadFile(
                    id=picked.id, name=picked.name,
                    upload_url=self.page.get_upload_url(f"{self.folder.name}/{path.name}", 600))])
                await done
        return path

    def uploading(self, event: Any) -> None:
        """News of a file on its way from the browser."""
        picked, path, done, progress = self.upload_state
        if done.done() or event.file_name != picked.name:      # it was cancelled
            return
        if event.error:
            done.set_exception(OSError(event.error))
        elif event.progress is not None:
            progress(int(event.progress * picked.size), picked.size)
            if event.progress >= 1 and path.stat().st_size == picked.size:     # else it is a cancelled one of that name
                done.set_result(None)

    def new_folder(self) -> Path:
        """For a file that keeps its name, though there are others of that name."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def publish(self, path: Path) -> str:
        """Where the page finds a file of this computer."""
        if not self.page.web:
            return str(path)
        token = secrets.token_urlsafe(24)
        FILES[token] = path
        return f"/dl/{token}?show"                 # with its `?` Flet can't take it for a picture in base64

    async def hand_over(self, path: Path) -> None:
        """Gives a fetched file to the person."""
        if self.page.web:
            url = self.publish(path).replace("?show", "?save")
            await self.launcher.launch_url(url, web_only_window_name="_self")
            asyncio.get_running_loop().call_later(600, lambda: path.unlink(missing_ok=True))
        else:
            self.toast(self.say("saved", path=path, size=show_size(path.stat().st_size)))

    # -- the page itself

    async def open(self) -> None:
        """Builds the page, and stays with it."""
        page = self.page
        page.padding, page.spacing = 0, 0
        page.fonts = {"Emoji": "/NotoColorEmoji.ttf", "Mono": "/DejaVuSansMono.ttf"}
        style = ft.TextStyle(color=ft.Colors.ON_SURFACE, font_family="Roboto", font_family_fallback=["Emoji", "Mono"])
        page.theme = page.dark_theme = ft.Theme(color_scheme_seed=ft.Colors.INDIGO, text_theme=ft.TextTheme(
            body_small=style, body_medium=style, body_large=style, title_medium=style))
        page.on_close = self.on(self.close)
        page.on_keyboard_event = self.heard(self.key_pressed)
        page.on_resize = self.on(self.resize)
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
        """The chat, or the demo's two beside one another, with the wire below."""
        page = self.page
        page.theme_mode = getattr(ft.ThemeMode, self.settings["theme"].upper())
        if self.demo:
            self.wire = Wire(self)
            self.views = [ChatView(self, realm, "127.0.0.1", port, (user, "surabaya"))
                          for (realm, port), user in zip(self.demo.ports.items(), self.demo.USERS, strict=False)]
            chats = ft.Row([self.views[0].root, ft.VerticalDivider(width=1), self.views[1].root], spacing=0,
                           expand=True)
            self.below = ft.Container(height=236, bgcolor=ft.Colors.SURFACE_CONTAINER_LOWEST)
            page.controls = [ft.Column([chats, ft.Divider(height=1), self.below], spacing=0, expand=True)]
            self.draw_below()
        else:
            self.views = [ChatView(self, self.options.realm, *self.options.place)]
            page.controls = [self.views[0].root]
        self.count_unread()
        self.resize()
        page.update()

    def draw_below(self) -> None:
        """The demo's panel: the realms at the left, every frame of both chats at the right."""
        self.cards = ft.Column(spacing=8, tight=True, scroll=ft.ScrollMode.AUTO)
        self.draw_cards()
        self.below.content = ft.Row([ft.Container(self.cards, padding=10, width=320), ft.VerticalDivider(width=1),
                                     self.wire.build()], spacing=0, expand=True)

    def draw_cards(self) -> None:
        """The demo's realms, each with its own view of the link to the other, and a switch."""
        def switch(name: str) -> Any:
            runs = name in self.demo.servers
            return ft.Switch(value=runs, tooltip=self.say("turn_off" if runs else "turn_on", realm=name),
                             on_change=self.on(self.turn, name))

        self.cards.controls = [
            realm_card(view.realm, [(name, row) for name, row in view.chats.realms.items() if name != view.realm],
                       self.say, switch(view.realm)) for view in self.views]
        self.update(self.cards)

    async def turn(self, name: str) -> None:
        """Ends a realm's server, or starts it again: what is said meanwhile waits."""
        change = self.demo.stop if name in self.demo.servers else self.demo.start
        await asyncio.to_thread(change, name)
        self.draw_cards()

    async def switch_language(self) -> None:
        """The other of the two."""
        await self.keep(language=ENGLISH if self.settings["language"] == INDONESIAN else INDONESIAN)
        self.rebuild()

    async def set_theme(self, theme: str) -> None:
        """System, light or dark."""
        self.page.theme_mode = getattr(ft.ThemeMode, theme.upper())
        self.page.update()
        await self.keep(theme=theme)

    async def keep(self, **settings: object) -> None:
        """Settings, for the next visit too."""
        self.settings |= settings
        await self.store("settings", self.settings)

    def rebuild(self) -> None:
        """All texts anew."""
        if self.demo:
            self.draw_below()
            self.update(self.below.parent)
        for view in self.views:
            view.tools.draw()
            key = view.current and view.current.key
            if view.chats.own:
                view.show_chat()
                if key:
                    view.open(key)
            else:
                view.show_login(view.registering, {key: entry.value for key, entry in view.form.items()})
        self.count_unread()

    def resize(self) -> None:
        """Each view has its part of the width."""
        for view in self.views:
            view.resize((self.page.width or 1000) / len(self.views))
        self.update(*[view.root for view in self.views])

    def shown_or_hidden(self, event: Any) -> None:
        """What comes in while nobody looks is not read."""
        self.visible = event.state in (ft.AppLifecycleState.SHOW, ft.AppLifecycleState.RESUME)
        for view in self.views:
            if self.visible and view.current:
                view.mark_read()
                view.draw_soon()

    async def key_pressed(self, event: Any) -> None:
        """Ctrl+K finds, Esc closes, Alt and arrows walk through the conversations."""
        for view in self.views:
            tools = view.tools
            if tools.has_focus and event.key in ("Arrow Up", "Arrow Down", "Tab"):
                if event.key == "Tab":
                    return await tools.complete()
                return tools.recall(1 if event.key == "Arrow Up" else -1)
        view = next((view for view in self.views if view.chats.own), None)
        if not view:
            return
        if event.key.upper() == "K" and (event.ctrl or event.meta):
            if view.is_narrow and view.current:
                view.close_talk()
            await view.filter.focus()
        elif event.key == "Escape" and time.monotonic() > self.busy_until:
            if view.tools.root.visible:
                view.tools.toggle()
            elif view.filter.value:
                view.filter.value = ""
                view.draw_list()
                self.update(view.filter)
            elif view.is_narrow and view.current:
                view.close_talk()
        elif event.key in ("Arrow Up", "Arrow Down") and event.alt:
            view.step(-1 if event.key == "Arrow Up" else 1)

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
        """Ends the connections, forgets the files."""
        for view in self.views:
            if view.conn:
                await view.conn.close()
        for token in [token for token, path in FILES.items() if self.folder in path.parents]:
            del FILES[token]
        shutil.rmtree(self.folder, ignore_errors=True)
        for task in list(self.tasks):
            task.cancel()


# ---- serving the page ----------------------------------------------------------------------------

def run_page(options: argparse.Namespace) -> int:
    """Shows the page: a window under `flet run`, else in browsers."""
    common.ensure_packages("flet", "flet-web", "flet-cli")
    os.environ.setdefault("FLET_SESSION_TIMEOUT", "30")       # seconds that a page may be away
    os.environ.setdefault("FLET_SECRET_KEY", secrets.token_hex(16))
    os.environ.setdefault("FLET_MAX_UPLOAD_SIZE", str(options.max_file * MIB))
    load_flet()
    assets = str(Path(__file__).resolve().parent / "assets")
    with contextlib.ExitStack() as stack:
        def folder_for_now(prefix: str) -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)))

        options.uploads = folder_for_now("chat-uploads-")
        demo = None
        if options.demo:
            demo = stack.enter_context(Demo(options.data or folder_for_now("chat-demo-")))

        async def open_page(page: Any) -> None:
            await Window(page, options, demo).open()

        under_flet = "FLET_DISPLAY_URL_PREFIX" in os.environ
        if under_flet and "FLET_FORCE_WEB_SERVER" not in os.environ and has_display():
            ft.run(open_page, assets_dir=assets)
        else:
            app = ft.run(open_page, export_asgi_app=True, no_cdn=True, upload_dir=str(options.uploads),
                         assets_dir=assets)
            serve(app, options)
    return 0


def has_display() -> bool:
    """Whether a window could be opened."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def serve(app: Any, options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    import uvicorn
    from fastapi.responses import FileResponse, PlainTextResponse
    from fastapi.routing import APIRoute

    async def download(token: str, save: str | None = None) -> Any:
        path = FILES.get(token)
        if not path or not path.exists():
            return PlainTextResponse(common.ERRORS["file_not_found"], 404)
        kind = IMAGES.get(path.suffix.lower()) if save is None else None
        return FileResponse(path, media_type=kind or "application/octet-stream", filename=path.name, headers={
            "X-Content-Type-Options": "nosniff"}, content_disposition_type="inline" if kind else "attachment")

    app.router.routes.insert(0, APIRoute("/dl/{token}", download))
    app.middleware("http")(guard)
    host = os.environ.get("FLET_SERVER_IP") or "127.0.0.1"
    port = options.web_port or int(os.environ.get("FLET_SERVER_PORT") or 0) or free_port(8550)
    url = f"http://{host}:{port}"
    prefix = os.environ.get("FLET_DISPLAY_URL_PREFIX")
    print(f"{prefix} {url}" if prefix else say("open_url", url=url), flush=True)
    if not prefix and sys.stdout.isatty() and has_display():
        threading.Timer(1, webbrowser.open, [url]).start()
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: not record.exc_info or record.exc_info[0].__name__ != "WebSocketDisconnect")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))      # so that all that was started is ended
    uvicorn.run(app, host=host, port=port, ws="websockets-sansio", ws_max_size=64 * MIB, log_level="warning",
                timeout_graceful_shutdown=1)


async def guard(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
    """Changes two of the headers of all that the web server sends.

    Flet isolates its pages from other origins, for which browsers give them threads; with these Flutter's renderer
    corrupts its memory, and one page in a few hundred crashes or stands still (flutter/flutter#190039). And a part of
    Flet that is not used here fetches a script from a public host; a page of the chat runs no script but its own.
    """
    response = await answer(request)
    del response.headers["Cross-Origin-Embedder-Policy"]
    response.headers["Content-Security-Policy"] = "script-src 'self' blob: 'unsafe-inline' 'wasm-unsafe-eval'"
    return response


def free_port(wish: int = 0) -> int:
    """A port that nobody listens on: that one, if it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wish))
        except OSError:
            return free_port()
        return probe.getsockname()[1]


class Demo:
    """Every realm's server on this computer, for as long as `with` lasts."""

    USERS = ("messi", "henderson")                 # who logs in at the first realm, and at the second

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in REALMS}
        self.servers: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Demo:
        try:
            for name in REALMS:
                self.start(name)
            asyncio.run(self.begin_talk())
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.servers):
            self.stop(name)

    def start(self, name: str) -> None:
        """Starts a realm's server and waits until it listens."""
        program = Path(__file__).resolve().parent / "ChatServer.py"
        peers = [f"--peer={realm}=127.0.0.1:{port}" for realm, port in self.ports.items()]
        server = self.servers[name] = subprocess.Popen(
            [sys.executable, str(program), "--realm", name, "--bind", "127.0.0.1", "--port", str(self.ports[name]),
             *peers, "--data", str(self.folder / name), "--log-level", "error"], stdout=subprocess.PIPE, text=True)
        if not server.stdout.readline():
            sys.exit(say("demo_failed"))

    def stop(self, name: str) -> None:
        """Ends a realm's server."""
        server = self.servers.pop(name)
        server.terminate()
        server.communicate()

    async def begin_talk(self) -> None:
        """A few words, so that there is something to see; not again where the data was kept."""
        conns = [ServerConnection("127.0.0.1", self.ports[realm], realm) for realm in REALMS]
        (here, there), (one, other) = list(REALMS)[:2], self.USERS
        try:
            for conn, user in zip(conns, self.USERS, strict=False):
                await conn.request("auth", user, "surabaya")
            if (await conns[0].request("groups"))["groups"]:
                return
            await conns[0].request("addgroup", "jarkom3")
            await conns[1].request("joingroup", f"jarkom3@{here}")
            await conns[0].request("sendgroup", "jarkom3", "hallo guys welcome")
            await conns[0].request("send", f"{other}@{there}", say("demo_hello", realm=here))
            await conns[1].request("send", f"{one}@{here}", say("demo_answer", realm=there))
        finally:
            for conn in conns:
                await conn.close()


# ---- start -------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; each option may come from the environment too."""
    parser = argparse.ArgumentParser(description="A chat client: a page, or with --prompt a command line.")
    home = common.realm_of_folder(Path(__file__).resolve().parent.name)
    add_option(parser, "--realm", default=home, choices=list(REALMS), help=f"the realm to log in at ({home})")
    add_option(parser, "--server", metavar="HOST:PORT", help="a server elsewhere than the realm table says")
    add_option(parser, "--tls", action="store_true", help="the server has a certificate")
    add_option(parser, "--tls-ca", type=Path, metavar="FILE", help="who vouches for it; implies --tls")
    add_option(parser, "--local", action="store_true", help="every realm is on this computer")
    add_option(parser, "--prompt", action="store_true", help="type commands; from a pipe, run them as a script")
    add_option(parser, "--demo", action="store_true", help="two realms on this computer, a chat in each")
    add_option(parser, "--data", type=Path, metavar="DIR", help="where the demo keeps its data (else it is removed)")
    add_option(parser, "--web-port", type=int, metavar="N", help="the page's port (8550, or a free one)")
    add_option(parser, "--downloads", type=Path, metavar="DIR", help="where files are saved (received/)")
    add_option(parser, "--max-file", type=int, default=common.MAX_FILE // MIB, metavar="MIB",
               help="the server's limit (64)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the client as the command line says."""
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
