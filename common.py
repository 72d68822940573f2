"""What the chat servers, their clients and the tests agree on. No socket, no database, no window.

In this order:
  limits        every bound of the system, each with its reason
  errors        ChatError and the table of error codes
  realms        the peer table: which machine is which realm (add a realm here)
  commands      the command table (add a command here, then its do_<word> in ChatServer.py)
  requests      one line of bytes -> tag, command, arguments
  replies       fields -> one JSON frame
  LineBuffer    bytes as they arrive -> whole lines
  for people    a frame without its secrets, as text, as fields
  files         base64 and file names, both ways, in pieces
  start-up      options that server and client share, and the private environment of a client

`python3 common.py readme` writes the command table into README.md, and into Wireshark's dissector, again.
"""
from __future__ import annotations

import argparse
import base64
import binascii
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import urllib.parse
import venv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property, lru_cache
from pathlib import Path
from typing import BinaryIO

# ---- limits ------------------------------------------------------------------------------------

KIB, MIB = 1024, 1024 * 1024

MAX_LINE = 64 * KIB            # bytes of a request without its file: room for the longest text, eight times over
MAX_TEXT = 8 * KIB             # bytes of one message's text: four printed pages, more belongs in a file
MAX_TARGETS = 250              # people of one `sendgrouprealm`: a line of 14,000 names would be 14,000 messages
MAX_NAME = 32                  # characters of a user, group or realm: fits a column of a terminal
MAX_FULL_NAME = 128            # bytes of a person's name or country
MAX_FILE_NAME = 255            # bytes: what Linux, macOS and Windows can store
MAX_FILE = 64 * MIB            # bytes of one file (--max-file): a minute on a busy lab network

LINES_PER_TURN = 128           # requests of one connection in one turn of the loop, so that none starves the rest
TURN_SECONDS = 0.02            # what is carried out in one turn; past this it is committed, the others come next
TURN_LISTENERS = 2000          # connections that get an event in one turn, each event counted
PERSON_SECONDS = 0.005         # and what one person's connections get of it
RECEIVE_SIZE = 64 * KIB        # bytes asked of a socket at once: one allocation that malloc keeps at hand
GUEST_RECEIVE = 4 * KIB        # and of one on which nobody has logged in
TLS_RECORD = 16 * KIB          # but with TLS a whole record, since nothing tells that a part of one is left
PERSON_RECEIVE = 1 * MIB       # bytes that one person's connections bring in one turn
GUEST_MARK = 16 * KIB          # bytes unsent to such a one
OUTPUT_MARK = 256 * KIB        # bytes unsent: past this no request of the connection is read, no event is queued
MAX_REPLY = 1 * MIB            # bytes of the rows in one reply; the rest comes with the next request (`more`)
LIST_REPLY = 256 * KIB         # of the rows of people or groups: more would hold up the others for over 10 ms
MAX_UNREAD = 8 * MIB           # bytes that one person's connections may hold here, unread replies and unserved requests
MAX_WAITING = 256              # replies of one connection that may wait for another realm's word at once
MAX_GROUPS = 1000              # that one person may be in (their rows have to fit a page of `conversations`), or make
MAX_CONVERSATIONS = 10_000     # past which one begins no other
MAX_SHARED = 1000              # connections of one person: a class may share an account
MAX_UPLOADS = 64               # files of one person that may be under way at once
UPLOAD_SECONDS = 30            # an upload without a byte for so long is ended
PLACE_EVERY = 1000             # messages after which `places` has the next ones: a COMMIT's pages shared by so many
HISTORY_PAGE = 50              # messages in one `history` reply, where the request names no number
HISTORY_MAX = 500              # the most that a `history` may ask for
MAX_MEMBERS_SHOWN = 1000       # names of a group's members in one row of `groups`, of its readers in `conversations`
CONVERSATIONS_PAGE = 100       # rows of one `conversations` reply
MAX_UNREAD_COUNT = 1000        # to which unread messages are counted
UNREAD_LOOK = 2000             # the newest messages of a conversation among which they are
LOOK_WEIGHT = 64               # bytes of a reply that a message counts as which was looked at and is not in it
SEARCH_PAGE = 50               # messages that one `search` finds
SEARCH_QUEUE = 64              # searches waiting for their thread; more are told `busy`

MAX_CONNECTIONS = 16_000       # in all (--max-connections), as far as the system gives file descriptors
MAX_PER_ADDRESS = 8_000        # of one address (--max-per-address): a school behind one router, but not all of them
SPARE_DESCRIPTORS = 64         # kept for the database, the files and the links
MAX_STORED = 4096 * MIB        # bytes of files that one user may have stored (--max-stored)
BURST_SECONDS = 10             # with --max-rate: what a user may send at once, in seconds of that rate

LOGIN_SECONDS = 30             # a connection that has not logged in by then is ended, whatever it sends
REALM_REPLY_SECONDS = 5.0      # how long a reply waits for another realm's word before it says "queued"
KEEPALIVE_SECONDS = 25         # silence after which TCP asks whether the other side lives; gone 15 s later
DRAIN_SECONDS = 2.0            # how long an ended connection may take to read what it is still owed
SESSION_DAYS = 30              # a token that nobody used on so many days has ended
MAX_SESSIONS = 1000            # of one person; a login past that ends the oldest one that nobody is connected with
SWEEP_SECONDS = 60             # between two looks at what can be thrown away
SWEEP_FILES = 100              # files that one turn looks at
SWEEP_AGE = 3600               # seconds that a file stays though no message names it: longer than any upload's pause

GUESSES = 10                   # failed logins of one account in GUESS_SECONDS, then `rate_limited`
GUESS_SECONDS = 60
SYNC_STEP = 8 * MIB            # bytes of a growing file after which the disk is set to work on them
HASH_WORKERS = 2               # threads for password hashes and for file syncs: the loop never waits for either
HASH_QUEUE = 256               # logins waiting for a thread; 256 take under 30 s, more are told `busy`
AUDIENCE = 500                 # subscribers of a realm above which presence goes only to those who share a chat

LINK_RETRY_FIRST = 0.5         # seconds before a lost link is tried again, doubled at each failure
LINK_RETRY_MOST = 15.0
LINK_PING_SECONDS = 5.0        # a quiet link is asked for a sign of life
LINK_DEAD_SECONDS = 12.0       # and is ended when none came
LINK_BATCH = 1000              # items of one batch between realms: two commits are shared by so many
LINK_BATCH_BYTES = 256 * KIB   # the most that a batch's items weigh
LINK_LINE = 1 * MIB            # bytes of one line between realms: a piece of a file has half of that
LINK_UNREAD = 4 * MIB          # bytes that a peer may leave unread
LINK_PIECE = 384 * KIB         # bytes of a file in one `piece`: small enough that texts pass between two of them
LINK_FILES = 4                 # files of a peer here that no item has named yet
LINK_QUESTIONS = 4             # that wait for an answer of one realm at once
LINK_REST = 1.0                # seconds before a file is tried again that the peer can't take now
SEALING_FIRST = 0.005          # seconds before the peer is asked again whether a file is on its disk, doubled
SEALING_MOST = 0.2             # each time up to this
MAX_PEOPLE = 100_000           # of one other realm that are known here
MAX_BELIEVED = 250             # people of other realms that a sender may write to though nobody could be asked
EPOCH_SECONDS = 60.0           # a peer makes us begin an epoch once in this time, else it could push out all others
MAX_EPOCHS = 1000              # starts of a server whose numbers its peers are told of

# ---- errors ------------------------------------------------------------------------------------

ERRORS = {
    "unknown_command": "Maaf, command tidak benar",
    "bad_arguments": "Parameter salah",
    "bad_credentials": "User tidak ada atau password salah",
    "user_exists": "User sudah ada",
    "session_not_found": "Session tidak ditemukan",
    "user_not_found": "User tidak ditemukan",
    "group_not_found": "Group tidak ditemukan",
    "group_exists": "Group sudah ada",
    "already_member": "User sudah dalam group",
    "not_member": "Bukan anggota group",
    "realm_not_found": "Realm tidak ditemukan",
    "realm_unreachable": "Realm tidak terhubung",
    "unknown_realm": "Realm tidak ada dalam tabel realm",
    "file_not_found": "File tidak ditemukan",
    "too_long": "Terlalu panjang",
    "too_large": "File terlalu besar",
    "bad_name": "Nama tidak sah",
    "bad_encoding": "Bukan UTF-8",
    "bad_base64": "Isi file bukan base64",
    "rate_limited": "Terlalu banyak percobaan",
    "busy": "Server penuh",
    "quota_exceeded": "Kuota file habis",
    "storage": "Server tidak dapat menyimpan",
    "internal_error": "Kesalahan pada server",
    "realm_refused": "Realm ditolak",
}


class ChatError(Exception):
    """A refusal that the asking side is told: an ERROR reply with `code`, a text for people, and any `fields`."""

    def __init__(self, code: str, detail: str = "", **fields: object) -> None:
        super().__init__(code)
        self.code = code
        self.message = ERRORS[code] + (f": {detail}" if detail else "")
        self.fields = fields

    def reply(self) -> dict[str, object]:
        """The fields of the ERROR reply."""
        return {"status": "ERROR", "code": self.code, "message": self.message, **self.fields}


# ---- realms ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Realm:
    """One row of the peer table: a realm's name, where it listens, the folder that keeps its data, and its wire."""

    name: str
    address: str
    port: int
    folder: str
    tls: bool = False              # whether its server was given a certificate


REALMS = {
    realm.name: realm
    for realm in (
        Realm("mesin1", "172.16.16.101", 8889, "Mesin1 (Chat App)"),
        Realm("mesin2", "172.16.16.102", 8890, "Mesin2 (Chat App)"),
    )
}

ROOT = Path(__file__).resolve().parent


def realm_of_folder(folder: str) -> str:
    """The realm whose row names this folder, else the table's first: how a program knows which machine it is on."""
    return next((realm.name for realm in REALMS.values() if realm.folder == folder), next(iter(REALMS)))


def realm_table(local: bool = False, replacements: list[str] | None = None) -> dict[str, Realm]:
    """The peer table, with every realm at 127.0.0.1 if `local`, then each `NAME=[tls:]HOST:PORT` put in place.

    A replacement may also add a realm, for labs and tests. Raises ValueError for one of another form.
    """
    table = {name: replace(realm, address="127.0.0.1") if local else realm for name, realm in REALMS.items()}
    for replacement in replacements or []:
        name, _, place = replacement.partition("=")
        address, port = parse_host_port(place.removeprefix("tls:"))
        name = fold_name(name)
        folder = table[name].folder if name in table else name
        table[name] = Realm(name, address, port, folder, place.startswith("tls:"))
    return table


def parse_host_port(place: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT` -> (host, port). Raises ValueError."""
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"not HOST:PORT: {place!r}")
    return host.strip("[]"), int(port)


NAME = re.compile(f"[A-Za-z0-9._-]{{1,{MAX_NAME}}}")


@lru_cache(maxsize=4096)
def fold_name(text: str) -> str:
    """A user's, group's or realm's name, letters folded to lower case. Raises ChatError `bad_name`."""
    if not NAME.fullmatch(text):
        raise ChatError("bad_name", text[:MAX_NAME])
    return text.lower()


def clean(text: str) -> str:
    """A text without what steers a terminal or turns the direction of writing; the joiners of letters stay."""
    return "".join(letter for letter in text if letter.isprintable() or letter in "\u200c\u200d")


def parse_address(text: str, home: str) -> tuple[str, str]:
    """`user` or `user@realm` -> (name, realm), where a bare name means the realm `home`. Raises ChatError."""
    name, at, realm = text.partition("@")
    return fold_name(name), fold_name(realm) if at else home


# ---- commands ----------------------------------------------------------------------------------

ANYONE, USER, STRANGER, REALM = "anyone", "user", "stranger", "realm"     # who may send a command


@dataclass(frozen=True)
class Command:
    """One row of the command table.

    `parameters` names the words on the wire in order. `T` is the session's token, `[…]` encloses words that may be
    left out, and a last word ending in `…` takes the rest of the line. BASE64 is a file's content, which the server
    takes from the line as it arrives.
    """

    word: str
    parameters: str
    caller: str
    indonesian: str
    english: str
    example: str                                   # empty where it is programs that send it, not people

    @cached_property
    def names(self) -> list[str]:
        """The parameters without their brackets."""
        return [name.strip("[]") for name in self.parameters.split()]

    @cached_property
    def required(self) -> int:
        """How many of the parameters may not be left out."""
        return sum(not name.startswith("[") for name in self.parameters.split())

    @cached_property
    def takes_rest(self) -> bool:
        """Whether the last parameter is the rest of the line."""
        return self.parameters.endswith("…")

    @cached_property
    def takes_token(self) -> bool:
        """Whether the first parameter is the session's token."""
        return self.parameters.split()[:1] in (["T"], ["[T]"])

    @cached_property
    def is_send(self) -> bool:
        """Whether it stores a message, so that a repeated tag must not store it again."""
        return self.word.startswith("send")

    @cached_property
    def takes_file(self) -> bool:
        """Whether the last parameter is a file's content."""
        return self.parameters.endswith("BASE64")

    @property
    def usage(self) -> str:
        """The words on the wire: `send T USER TEXT…`."""
        return f"{self.word} {self.parameters}".strip()

    @property
    def prompt_usage(self) -> str:
        """The words that a person types: no token, and a file's name in place of its content."""
        parameters = re.sub(r"\[?\bT\]? ?", "", self.parameters, count=1) if "T" in self.names else self.parameters
        return f"{self.word} {parameters.replace('NAME BASE64', 'FILE')}".strip()


COMMANDS = {
    command.word: command
    for command in (
        Command("auth", "USER PASSWORD", ANYONE, "Login", "Log in.", "auth messi surabaya"),
        Command("register", "USER PASSWORD NAMA NEGARA", ANYONE, "Register",
                "Make an account and log in; `_` stands for a space in the name.",
                "register joni admin joni_perkasa Indonesia"),
        Command("addgroup", "T GROUP", USER, "Buat group", "Make a group; its maker is the first member.",
                "addgroup jarkom3"),
        Command("joingroup", "T GROUP", USER, "Join group", "Become a member of a group.", "joingroup jarkom3"),
        Command("send", "T USER TEXT…", USER, "Mengirim pesan private", "Send a message to a person.",
                "send messi hello world"),
        Command("sendfile", "T USER NAME BASE64", USER, "Mengirim file private", "Send a file to a person.",
                "sendfile messi file.txt"),
        Command("sendgroup", "T GROUP TEXT…", USER, "Mengirim pesan ke group", "Send a message to a group.",
                "sendgroup jarkom3 hallo guys welcome"),
        Command("sendgroupfile", "T GROUP NAME BASE64", USER, "Mengirim file ke group", "Send a file to a group.",
                "sendgroupfile jarkom3 file.txt"),
        Command("passwd", "T OLD NEW", USER, "Mengganti password",
                "Change one's password; it ends one's other sessions.", "passwd surabaya rahasia"),
        Command("inbox", "T", USER, "Melihat pesan", "Take the messages that came in since the last `inbox`.", "inbox"),
        Command("logout", "T", USER, "Logout", "End the session everywhere.", "logout"),
        Command("info", "[T] [REALM] [AFTER]", ANYONE, "Melihat user yang aktif",
                "Who is there, and who is online; also of another realm.", "info mesin2"),
        Command("getfile", "T FILE_ID", USER, "Mengambil file", "Fetch the file of a message.", "getfile 17"),
        Command("history", "T USER-or-GROUP [BEFORE_ID] [LIMIT]", USER, "Melihat percakapan",
                "Read a conversation again, newest last.", "history messi"),
        Command("conversations", "T [BEFORE_ID]", USER, "Melihat daftar percakapan",
                "One's conversations, the newest first, with what is unread.", "conversations"),
        Command("read", "T USER-or-GROUP ID", USER, "Menandai sudah dibaca",
                "Say that one has read a conversation up to this message.", "read messi 17"),
        Command("search", "T USER-or-GROUP TEXT…", USER, "Mencari pesan",
                "The newest messages of a conversation with this text.", "search messi socket"),
        Command("groups", "T [REALM] [AFTER]", USER, "Melihat group",
                "One's groups with their members, and those of a realm one could join.", "groups"),
        Command("leavegroup", "T GROUP", USER, "Keluar dari group", "Leave a group.", "leavegroup jarkom3"),
        Command("realms", "T", USER, "Melihat realm", "The realms, and the state of the link to each.", "realms"),
        Command("subscribe", "T [AFTER_ID]", USER, "Menerima pesan langsung",
                "Get events on this connection, first the messages after AFTER_ID.", ""),
        Command("help", "[COMMAND]", ANYONE, "Bantuan", "The commands and their usage.", "help send"),
        Command("sendprivaterealm", "T REALM USER TEXT…", USER, "Mengirim pesan private ke realm lain",
                "Send a message to a person of another realm.", "sendprivaterealm mesin2 henderson hello"),
        Command("sendfilerealm", "T REALM USER NAME BASE64", USER, "Mengirim file private ke realm lain",
                "Send a file to a person of another realm.", "sendfilerealm mesin2 henderson file.txt"),
        Command("sendgrouprealm", "T REALM GROUP-or-USERS TEXT…", USER, "Mengirim pesan ke group di realm lain",
                "Send a message to a group (`group:NAME`) or to several people (`u1,u2`) of another realm.",
                "sendgrouprealm mesin2 henderson,lineker hello"),
        Command("sendgroupfilerealm", "T REALM GROUP-or-USERS NAME BASE64", USER,
                "Mengirim file ke group di realm lain",
                "Send a file to a group (`group:NAME`) or to several people (`u1,u2`) of another realm.",
                "sendgroupfilerealm mesin2 group:jarkom3 file.txt"),
        Command("getrealminbox", "T REALM", USER, "Melihat pesan dari realm lain",
                "Take the messages that came in from one realm.", "getrealminbox mesin2"),
        Command("addrealm", "NAME ADDRESS PORT", ANYONE, "Menambah realm",
                "Ask whether the peer table holds this row (the table is fixed).",
                "addrealm mesin2 172.16.16.102 8890"),
        # Between realms; no person types these.
        Command("peer", "NAME EPOCHS NONCE", STRANGER,
                "Membuka link: siapa yang memanggil, riwayat start-nya, angka acak baru",
                "Open a link: who calls, its epochs, a fresh nonce.", ""),
        Command("peerproof", "[PROOF]", STRANGER, "Membuktikan diri sebagai realm itu; sejak ini link tersambung",
                "Prove to be that realm; from here on the link is up.", ""),
        Command("deliver", "STREAM AFTER ITEMS…", REALM, "Isi antrean untuk realm ini, berurutan, dalam JSON",
                "Items of the outbox, in order, as JSON.", ""),
        Command("piece", "SHA256 SIZE OFFSET [CONTENT]", REALM, "Potongan file yang akan disebut sebuah pesan",
                "A piece of a file that an item will name.", ""),
        Command("ask", "QUESTION…", REALM, "Yang hanya dapat diputuskan realm ini, dalam JSON",
                "What only this realm can decide, as JSON.", ""),
        Command("ping", "", REALM, "Tanda masih hidup", "A sign of life.", ""),
    )
}
PUBLIC_COMMANDS = [command for command in COMMANDS.values() if command.example]


def help_text(word: str = "") -> str:
    """The text of `help`, or of `help WORD`. Raises ChatError `unknown_command`."""
    if not word:
        width = max(len(command.prompt_usage) for command in PUBLIC_COMMANDS)
        return "\n".join(f"{command.prompt_usage:<{width}}  {command.indonesian}" for command in PUBLIC_COMMANDS)
    command = COMMANDS.get(word.lower())
    if command is None or command.caller not in (ANYONE, USER):
        raise ChatError("unknown_command")
    example = f"\nContoh: {command.example}" if command.example else ""
    return f"{command.prompt_usage}\n{command.indonesian}. {command.english}{example}"


def readme_table() -> str:
    """The README's command table, in Markdown."""
    rows = ["| you type | | it does | for example |", "|---|---|---|---|"]
    for command in PUBLIC_COMMANDS:
        rows.append(f"| `{command.prompt_usage}` | {command.indonesian} | {command.english} | `{command.example}` |")
    return "\n".join(rows)


# ---- requests ----------------------------------------------------------------------------------

TAG = re.compile(rb"@([A-Za-z0-9._-]{1,64})(?: +|$)")


@dataclass(slots=True)
class Request:
    """One request: its tag (or None), its row of the command table, and its arguments, the token included."""

    tag: str | None
    command: Command
    arguments: list[str]


def split_tag(line: bytes) -> tuple[str | None, bytes]:
    """A line -> (tag or None, the line without tag and surrounding spaces). Raises ChatError for a malformed tag."""
    line = line.strip(b" \r\n")
    if line[:1] != b"@":
        return None, line
    found = TAG.match(line)
    if not found:
        raise ChatError("bad_arguments", "@TAG")
    return found[1].decode(), line[found.end():]


def parse_request(tag: str | None, line: bytes) -> Request:
    """A line without its tag -> a Request. Raises ChatError: unknown_command, bad_arguments, bad_encoding."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ChatError("bad_encoding") from None
    word, _, rest = text.partition(" ")
    command = COMMANDS.get(word) or COMMANDS.get(word.lower())
    if command is None:
        raise ChatError("unknown_command")
    names = command.names
    arguments = split_arguments(rest, len(names), command.takes_rest)
    if not command.required <= len(arguments) <= len(names):
        raise ChatError("bad_arguments", command.usage)
    return Request(tag, command, arguments)


def split_arguments(text: str, count: int, takes_rest: bool) -> list[str]:
    """Splits at runs of spaces; with `takes_rest` the argument number `count` is all that is left, spaces and all."""
    arguments = text.split(" ", count - 1 if takes_rest else -1)
    if "" not in arguments and not arguments[-1].startswith(" "):
        return arguments
    arguments, rest = [], text.lstrip(" ")         # the rarer case: runs of spaces, or nothing at all
    while rest and not (takes_rest and len(arguments) == count - 1):
        word, _, rest = rest.partition(" ")
        arguments.append(word)
        rest = rest.lstrip(" ")
    return arguments + [rest] if rest else arguments


# ---- replies -----------------------------------------------------------------------------------

FRAME_END = b"\r\n\r\n"
LINE_BREAK = "\u2028"          # how a line break inside a message travels (LINE SEPARATOR)

encode_text = json.encoder.encode_basestring_ascii     # a str -> its JSON string in pure ASCII, quotes included
encode_row = json.JSONEncoder(separators=(",", ":")).encode    # an object of a long list: the quickest way for many


class Json(str):
    """A text that is JSON already, and goes into a frame as it is."""


def encode_json(value: object) -> str:
    """A value -> compact JSON in pure ASCII. For the small objects of a frame quicker than a `json.dumps` each."""
    kind = type(value)
    if kind is str:
        return encode_text(value)
    if kind is int:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is dict:
        return f"{{{encode_members(value)}}}"
    if kind is list:
        return f"[{','.join([encode_json(member) for member in value])}]"
    return value if kind is Json else json.dumps(value)


def encode_members(fields: dict[str, object]) -> str:
    """A dict -> its JSON without the braces."""
    return ",".join([f"{encode_text(name)}:{encode_text(member) if type(member) is str else encode_json(member)}"
                     for name, member in fields.items()])


def format_frame(members: str) -> bytes:
    """A reply or an event, given without the braces, as it goes on the wire: pure ASCII, then CR LF CR LF."""
    return f"{{{members}}}\r\n\r\n".encode()


def format_reply(fields: dict[str, object], tag: str | None = None) -> bytes:
    """A reply, status OK unless `fields` say otherwise, with the tag of the request that it answers."""
    status = "" if "status" in fields else '"status":"OK",'
    tag = f'"tag":"{tag}",' if tag is not None else ""
    return format_frame(f"{status}{tag}{encode_members(fields)}".rstrip(","))      # an OK may have no fields


def format_event(kind: str, **fields: object) -> bytes:
    """An event that a subscriber gets between its replies."""
    return format_frame(f'"event":"{kind}",{encode_members(fields)}')


@lru_cache(maxsize=1024)
def format_time(milliseconds: int) -> str:
    """Milliseconds since 1970 -> UTC in RFC 3339, to the millisecond: `2024-05-04T17:03:09.250Z`."""
    moment = datetime.fromtimestamp(milliseconds // 1000, timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


# ---- LineBuffer --------------------------------------------------------------------------------


class LineBuffer:
    """Bytes as they arrive -> whole lines, a few at a time: each is an object, and 64 KiB may be 32,000 of them.

    A line that grows past `limit` before its end has come is not gathered: `overlong` turns true. When the owner has
    taken the lines before it, it takes the rest of it piece by piece with `take_overlong` (a file is decoded that way,
    anything else is thrown away). A whole line may be longer than `limit` by what one `feed` brought.
    """

    __slots__ = ("limit", "lines", "overlong", "_uncut", "_rest")

    CUT = 64                                       # lines at a time

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overlong = False                      # the unfinished line is past the limit; see take_overlong
        self.lines: list[bytes] = []               # the next whole lines, without their LF, the last one first
        self._uncut = b""                          # what came behind those
        self._rest = bytearray()                   # the unfinished line, where nothing is uncut

    def feed(self, data: bytes) -> None:
        """Takes in what a socket gave."""
        if self.overlong or (b"\n" not in data and not self._uncut):
            self._rest += data
            self.overlong = self.overlong or len(self._rest) > self.limit
            return
        if self._rest:
            data = bytes(self._rest) + data
            self._rest.clear()
        self._uncut += data
        if not self.lines:
            self._cut()

    def take(self) -> bytes:
        """The next whole line; there has to be one in `lines`."""
        line = self.lines.pop()
        if self._uncut and not self.lines:
            self._cut()
        return line

    def _cut(self) -> None:
        *self.lines, left = self._uncut.split(b"\n", self.CUT)
        self._uncut = left if len(self.lines) == self.CUT else b""
        self.lines.reverse()
        if left and not self._uncut:               # there is no other end of a line in it
            self._rest += left
            self.overlong = len(left) > self.limit

    def take_overlong(self) -> tuple[bytes, bool]:
        """What is here of the overlong line, and whether that was its end. Lines behind the end are kept as lines."""
        data, end, behind = bytes(self._rest).partition(b"\n")
        self._rest.clear()
        if end:
            self.overlong = False
            self.feed(behind)
        return data, bool(end)

    def __len__(self) -> int:
        """Bytes held of the unfinished line."""
        return len(self._rest)

    @property
    def weight(self) -> int:
        """Bytes of memory that are held, about."""
        return len(self._rest) + len(self._uncut) + sum([len(line) + 40 for line in self.lines])


# ---- frames for people -------------------------------------------------------------------------

HIDDEN = "•••".encode()       # stands where a password or a token stood


def mask(line: bytes) -> bytes:
    """A frame without its password or token, a few dots in place of each."""
    if line.startswith(b"{"):
        return re.sub(rb'("tokenid"\s*:\s*")[^"]*', b"\\1" + HIDDEN, line)
    words = line.split(b" ")
    place = 1 if words[0].startswith(b"@") else 0
    command = COMMANDS.get(words[place].strip().decode(errors="replace").lower())
    for number, name in enumerate(command.names if command else [], 1):
        at = place + number
        if name in ("T", "PASSWORD", "OLD", "NEW") and at < len(words):
            end = b"\r\n" if words[at].endswith(b"\r\n") else b""
            words[at] = HIDDEN + end
    return b" ".join(words)


def visible(frame: bytes) -> str:
    """A frame's bytes as they are, the ends of lines written out."""
    text = frame.decode(errors="backslashreplace")
    return text.replace("\r", "\\r").replace("\n", "\\n").replace(LINE_BREAK, "\\u2028")


def decode(frame: bytes) -> list[tuple[str, str]]:
    """A masked frame's fields, one by one."""
    text = visible(frame.strip())
    if text.startswith("{"):
        try:
            return [(key, json.dumps(value, ensure_ascii=False)) for key, value in json.loads(text).items()]
        except ValueError:
            return [("…", text)]
    words = text.split(" ")
    fields = [("tag", words.pop(0)[1:])] if words[0].startswith("@") else []
    command = COMMANDS.get(words[0].lower())
    if not command:
        return [*fields, ("?", text)]
    values = split_arguments(" ".join(words[1:]), len(command.names), command.takes_rest)
    names = [name.rstrip("…") for name in command.names]
    return [*fields, ("command", command.word), *zip(names, values, strict=False)]


# ---- files -------------------------------------------------------------------------------------

ENCODE_SIZE = 48 * KIB         # bytes read from a file at a time; a multiple of 3, so that pieces join without padding


def encode_file(stream: BinaryIO, size: int | None = None) -> Iterator[bytes]:
    """A file's content in base64 (RFC 4648, section 4), in pieces that join to one; `size` bytes at most."""
    left = sys.maxsize if size is None else size
    while left and (data := stream.read(min(ENCODE_SIZE, left))):
        left -= len(data)
        yield binascii.b2a_base64(data, newline=False)


class Base64Decoder:
    """Base64 in pieces of any length -> the file's bytes. Takes it bare, or wrapped in b'…' as old clients send it."""

    __slots__ = ("_carry", "_quote", "_started", "_ended")

    HOLD = 8                                       # bytes kept back: the padding and the closing quote come last

    def __init__(self) -> None:
        self._carry = b""
        self._quote = b""
        self._started = self._ended = False

    def feed(self, data: bytes) -> bytes:
        """The bytes that are certain so far. Raises ChatError `bad_base64`."""
        if self._ended:                            # only spaces may follow the end
            if data.strip(b" \r"):
                raise ChatError("bad_base64")
            return b""
        data = self._carry + data
        if not self._started:
            data = data.lstrip(b" ")
            if len(data) < 2:
                self._carry = data
                return b""
            self._started = True
            if data[:2] in (b"b'", b'b"'):
                self._quote, data = data[1:2], data[2:]
        text = data.rstrip(b" \r")
        self._ended = len(text) < len(data)
        certain = max(len(text) - self.HOLD, 0) // 4 * 4
        self._carry = text[certain:]
        if b"=" in text[:certain]:
            raise ChatError("bad_base64")
        return self._decode(text[:certain])

    def finish(self) -> bytes:
        """The last bytes. Raises ChatError `bad_base64` where the content is cut short."""
        text = self._carry
        if self._quote:
            if not text.endswith(self._quote):
                raise ChatError("bad_base64")
            text = text[:-1]
        return self._decode(text)

    @staticmethod
    def _decode(text: bytes) -> bytes:
        if len(text) % 4:                          # Python 3.10 lets a lone "=" through
            raise ChatError("bad_base64")
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ChatError("bad_base64") from None


def decode_base64(text: str) -> bytes:
    """Base64 in one piece. Raises ChatError `bad_base64`."""
    try:
        return Base64Decoder._decode(text.encode("ascii"))
    except UnicodeEncodeError:
        raise ChatError("bad_base64") from None


def encode_file_name(name: str) -> str:
    """A file name as it travels: percent-encoded (RFC 3986), so that it has no space."""
    return urllib.parse.quote(name, safe="") or "file"


def decode_file_name(text: str) -> str:
    """A file name as it came -> a bare name: no folder, no control character, at most MAX_FILE_NAME bytes."""
    name = urllib.parse.unquote(text).replace("\\", "/").rpartition("/")[2]
    name = "".join(letter for letter in name if letter.isprintable()).strip()
    stem, dot, ending = name.rpartition(".")
    if dot and len(ending) < 16:                   # what is too long loses the end of its stem, not its ending
        stem = stem.encode()[: MAX_FILE_NAME - len(ending.encode()) - 1].decode(errors="ignore")
        name = f"{stem}.{ending}"
    name = name.encode()[:MAX_FILE_NAME].decode(errors="ignore")
    return name if name.strip(". ") else "file"


# ---- start-up ----------------------------------------------------------------------------------


def add_option(parser: argparse.ArgumentParser, flag: str, **keywords: object) -> None:
    """Adds an option whose default may also come from the environment: `--max-file` from CHAT_MAX_FILE."""
    variable = "CHAT_" + flag.lstrip("-").replace("-", "_").upper()
    value = os.environ.get(variable)
    if value is not None:
        if keywords.get("action") == "store_true":
            keywords["default"] = value.lower() not in ("", "0", "no", "false")
        elif keywords.get("action") == "append":
            keywords["default"] = value.split()
        else:
            keywords["default"] = value            # argparse applies `type` to a default that is a string
    keywords["help"] = f"{keywords.get('help', '')} [{variable}]"
    parser.add_argument(flag, **keywords)          # type: ignore[arg-type]


VERSIONS = {"flet": "1.0.5", "flet-web": "1.0.5", "flet-cli": "1.0.5", "playwright": "1.65.2"}     # tried together


def ensure_packages(*names: str) -> None:
    """Comes back if these packages are here in their versions; else goes on in `.venv`, made and filled for that."""
    if all(installed_version(name) == VERSIONS[name] for name in names):
        return
    folder = ROOT / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if Path(sys.prefix).resolve() != folder.resolve():
        if not python.exists():
            print(f"{', '.join(names)}: not installed here, making {folder}", file=sys.stderr)
            try:
                venv.create(folder, with_pip=True, clear=folder.exists())
            except (OSError, subprocess.CalledProcessError):
                sys.exit("that failed; on Debian and Ubuntu it needs the package python3-venv")
    else:
        print(f"installing {', '.join(names)} into {folder}", file=sys.stderr)
        pins = [f"{name}=={VERSIONS[name]}" for name in names]
        if subprocess.call([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *pins]):
            sys.exit("they could not be installed: is there a connection to the package index?")
    command = [str(python), *sys.orig_argv[1:]]
    if os.name == "nt":                            # there, exec would give the terminal back at once
        sys.exit(subprocess.call(command))
    os.execv(python, command)


def installed_version(name: str) -> str | None:
    """A package's version here, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def dissector_table() -> str:
    """The command table as Wireshark's dissector has it: a line of Lua for each command."""
    return "\n".join(f'  {command.word} = "{command.parameters}",' for command in COMMANDS.values())


DISSECTOR = ROOT / "Mesin1 (Chat App)" / "assets" / "progjar.lua"
WRITTEN = (                    # (file, the line before what is written, the line behind it, what is written)
    (ROOT / "README.md", "<!-- commands -->\n", "\n<!-- /commands -->", readme_table),
    (DISSECTOR, "-- commands\n", "\n-- /commands", dissector_table),
)


def main() -> None:
    """`python3 common.py readme`: writes the command table between the marker comments of two files."""
    if sys.argv[1:] != ["readme"]:
        sys.exit(__doc__)
    for path, before, behind, table in WRITTEN:
        head, _, rest = path.read_text("utf-8").partition(before)
        tail = rest.partition(behind.lstrip())[2]
        path.write_text(f"{head}{before}{table()}{behind}{tail}", "utf-8")


if __name__ == "__main__":
    main()
