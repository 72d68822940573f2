"""The chat server of one realm: `python3 ChatServer.py` on the realm's machine. Standard library only.

Chapter one is a complete server of one realm. It can be read alone, from top to bottom:
  model         Person, Conversation, Session, Message: what the tables hold, as objects in memory
  Store         the database: one method for each question, one COMMIT for each turn of the loop
  Workers       the only threads: password hashes, and the syncing of files
  Upload        a file on its way from a request line to the disk
  Connection    one socket: the table of what it may do, the lines that came in, the replies that go out
  Chat          from a line to its reply; one do_<word> for each row of the command table in common.py
  Server        the loop; the only part that touches sockets
Chapter two is the other realms, for which chapter one has the few calls that begin with `self.realms`:
  Outbox        what waits for other realms, and what has come from them, as rows of the same database
  RealmLink     the connection that we open to one other realm
  Realms        what we ask and tell the other realms, and what we do for them
The end starts the program:
  main          options and start

Two rules hold everywhere. Only Workers uses threads; all other code runs in one thread. A turn of the loop is: read,
carry out, COMMIT, write. So nothing that a turn decided leaves the process before it is on disk.

To follow one request, read Server.receive, Server.serve, Chat.execute, its do_<word>, and then Server.turn.
"""
from __future__ import annotations

import argparse
import binascii
import bisect
import contextlib
import errno
import gc
import hashlib
import heapq
import hmac
import itertools
import json
import logging
import os
import random
import re
import secrets
import selectors
import signal
import socket
import sqlite3
import ssl
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO, ClassVar, NamedTuple

try:
    import fcntl
    import resource
    import termios
except ImportError:                # Windows has none of them; the functions that use them do without
    fcntl = resource = termios = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: E402  (the line above says where it lies)
from common import COMMANDS, USER, ChatError, Json, Realm, Request, encode_json, format_event, format_reply  # noqa: E402

log = logging.getLogger("chat")

# ================================================================================================
# Chapter one: a server of one realm
# ================================================================================================

# ---- model -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Person:
    """A user of this realm (with a password) or of another one (without)."""

    id: int
    name: str
    realm: str
    nama: str
    negara: str
    password: str | None
    met: bool                      # false for a person of another realm who was only believed to exist
    address: str
    conversations: dict[str, Conversation] = field(default_factory=dict)   # by the other's address, or `group:ADDRESS`
    cursors: dict[str, int] = field(default_factory=dict)                  # realm -> id up to which `inbox` took
    sessions: list[Session] = field(default_factory=list)                  # the oldest first
    connections: set[Connection] = field(default_factory=set)              # open here now
    uploads: set[Upload] = field(default_factory=set)                      # under way now
    brought: int = 0                                                       # bytes that came since `check_hoards`
    made: int = 0                                                          # groups of this realm, also those they left
    stored: int = 0                                                        # bytes of the files that they sent, and
    wasted: int = 0                                                        # of those that came to nothing since
    wasted_since: float = 0.0
    allowance: float = 0.0                                                 # messages that they may send at once, and
    counted: float = 0.0                                                   # when that was counted

    def describe(self) -> dict[str, object]:
        """What everybody may know of a person of this realm."""
        return {"user": self.name, "nama": self.nama, "negara": self.negara, "realm": self.realm,
                "online": bool(self.connections)}


@dataclass(slots=True, eq=False)
class Conversation:
    """What two people say to each other, or a group with its members."""

    id: int
    name: str | None               # a group's name
    realm: str                     # a group's; of two people the one who is not of this realm says it
    admin: str = ""                # the address of a group's admin
    members: dict[Person, int] = field(default_factory=dict)   # -> the id after which they see messages
    realms: Counter[str] = field(default_factory=Counter)      # how many members each realm has
    last_id: int = 0               # of its newest message
    reads: dict[Person, int] = field(default_factory=dict)     # the id up to which each has read it
    heads: dict[Person, str] = field(default_factory=dict)     # by sender: the part of each message that stays the same

    @property
    def address(self) -> str:
        """A group's address."""
        return f"{self.name}@{self.realm}"

    def other(self, person: Person) -> Person:
        """Whom a person talks with in a private conversation; oneself where one writes to oneself."""
        return next((member for member in self.members if member is not person), person)

    def key(self, person: Person) -> str:
        """The name under which a person has this conversation."""
        return f"group:{self.address}" if self.name else self.other(person).address

    def head(self, sender: Person) -> str:
        """Who speaks and to whom, as a piece of a message's JSON."""
        head = self.heads.get(sender)
        if head is None:
            fields: dict[str, object] = {"from": sender.address, "from_name": sender.nama}
            if self.name:
                fields |= {"group": self.address, "msg_from": sender.nama, "msg_to": self.name}
            else:
                other = self.other(sender)
                fields |= {"to": other.address, "msg_from": sender.nama, "msg_to": other.nama}
            head = self.heads[sender] = common.encode_members(fields)
        return head


@dataclass(slots=True, eq=False)
class Session:
    """One login. Only the SHA-256 of its token is kept."""

    digest: bytes
    person: Person
    used: int                      # the last day on which it was used; see Store.day
    ended: bool = False
    routes: list[bytes] = field(default_factory=list)          # its keys in Chat.routes


class File(NamedTuple):
    """A stored file: its name for people, its size in bytes, and the SHA-256 under which the content lies."""

    name: str
    size: int
    sha256: str


@dataclass(slots=True, eq=False)
class Message:
    """One row of the messages table: a text or a file."""

    id: int
    conversation: Conversation
    ts: int                        # milliseconds since 1970
    sender: Person
    text: str | None
    file: File | None
    uid: str                       # its name in every realm: `REALM:ID` of the realm that stored it first

    def fields(self) -> str:
        """The message as clients see it: a JSON object without its braces."""
        if self.file is None:
            body = f'"msg":{common.encode_text(self.text)}'
        else:
            body = f'"file":{encode_json(self.file_fields())}'
        return (f'"id":{self.id},"uid":"{self.uid}","ts":"{common.format_time(self.ts)}",'
                f'{self.conversation.heads.get(self.sender) or self.conversation.head(self.sender)},{body}')

    def file_fields(self) -> dict[str, object]:
        """The file as clients see it."""
        return {"id": self.id, **self.file._asdict()}


# ---- Store -------------------------------------------------------------------------------------

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES('day', 0), ('clock', 0), ('aborted', 0);
CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT NOT NULL, realm TEXT NOT NULL, nama TEXT NOT NULL,
    negara TEXT NOT NULL, password TEXT, met INTEGER NOT NULL, UNIQUE(realm, name));
CREATE TABLE conversations(id INTEGER PRIMARY KEY, name TEXT, realm TEXT NOT NULL, admin TEXT NOT NULL);
CREATE TABLE members(conversation INTEGER, person INTEGER, since INTEGER NOT NULL,
    PRIMARY KEY(conversation, person)) WITHOUT ROWID;
CREATE TABLE messages(id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL, ts INTEGER NOT NULL,
    sender INTEGER NOT NULL, text TEXT, origin INTEGER);
CREATE TABLE places(conversation INTEGER, id INTEGER, PRIMARY KEY(conversation, id)) WITHOUT ROWID;
CREATE TABLE files(id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE INDEX files_by_content ON files(sha256);
CREATE TABLE reads(conversation INTEGER, person INTEGER, id INTEGER NOT NULL,
    PRIMARY KEY(conversation, person)) WITHOUT ROWID;
CREATE TABLE cursors(person INTEGER, realm TEXT, id INTEGER NOT NULL, PRIMARY KEY(person, realm)) WITHOUT ROWID;
CREATE TABLE sessions(digest BLOB PRIMARY KEY, person INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tags(person INTEGER, tag TEXT, reply TEXT NOT NULL, PRIMARY KEY(person, tag)) WITHOUT ROWID;
-- chapter two
CREATE TABLE epochs(number INTEGER PRIMARY KEY, name TEXT NOT NULL, ended INTEGER NOT NULL);
CREATE TABLE outbox(peer TEXT, stream INTEGER, seq INTEGER, message INTEGER NOT NULL, sender INTEGER,
    item TEXT NOT NULL, PRIMARY KEY(peer, stream, seq)) WITHOUT ROWID;
CREATE TABLE failed(message INTEGER PRIMARY KEY, code TEXT NOT NULL);
CREATE TABLE received(peer TEXT, epoch TEXT, texts INTEGER NOT NULL, files INTEGER NOT NULL,
    PRIMARY KEY(peer, epoch)) WITHOUT ROWID;
CREATE TABLE refusals(peer TEXT, stream INTEGER, seq INTEGER, code TEXT NOT NULL,
    PRIMARY KEY(peer, stream, seq)) WITHOUT ROWID;
"""
INSERT_MESSAGE = "INSERT INTO messages VALUES(?,?,?,?,?,?)"
INSERT_TAG = "INSERT OR REPLACE INTO tags VALUES(?,?,?)"
# Where the messages of a conversation are: in `places`. It is filled for PLACE_EVERY messages at once, conversation by
# conversation. An index would be kept up with each message, and cost a page for each conversation at every COMMIT.
# The messages past the last one that was placed are the tail, few enough to look through.
PLACE = "INSERT INTO places SELECT conversation, id FROM messages WHERE id>? ORDER BY conversation, id"
LAST_PLACED = """SELECT id FROM messages WHERE EXISTS
    (SELECT 1 FROM places WHERE places.conversation=messages.conversation AND places.id=messages.id)
    ORDER BY id DESC LIMIT 1"""
SELECT = "SELECT id, conversation, ts, sender, text, origin FROM "
PLACED_AFTER = SELECT + """places JOIN messages USING(conversation, id)
    WHERE conversation=? AND id>? ORDER BY id LIMIT ?"""
TAIL_AFTER = SELECT + """messages CROSS JOIN members USING(conversation)
    WHERE id>? AND id>since AND person=? ORDER BY id"""
PLACED_BEFORE = "places JOIN messages USING(conversation, id) WHERE conversation=? AND id>? AND id<? " \
    "ORDER BY id DESC LIMIT ?"
TAIL_BEFORE = "messages WHERE conversation=? AND id>? AND id<? ORDER BY id DESC LIMIT ?"
FIND = """SELECT id FROM (
    SELECT id, text FROM messages WHERE conversation=?1 AND id>MAX(?2, ?3)
    UNION ALL SELECT id, text FROM places JOIN messages USING(conversation, id) WHERE conversation=?1 AND id>?2)
    WHERE instr({}(text), ?4) ORDER BY id DESC LIMIT ?5"""


class StoreRefused(Exception):
    """The database can't be used, and was left as it is; the text says which file and why."""


class Store:
    """The database, and in memory all of it but the messages.

    A request checks everything first and writes then, so a refusal undoes nothing. A fault after a write, or a COMMIT
    that fails, fails the whole turn: `abort` rolls it back, and builds what is in memory anew from the disk.

    Rows of the hot tables are gathered and written by one `executemany` at the end of the turn (`flush`).
    """

    def __init__(self, folder: Path, realm: str) -> None:
        """Opens (or makes) the database of a realm in this folder. Raises StoreRefused."""
        self.realm = realm
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        for leftover in self.files.glob("upload-*"):
            leftover.unlink()
        self.path = folder / "chat.db"
        self._owner = self._claim(folder / "owner.db")
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False)
        is_new = self._check() == 0
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA cache_size=-65536")            # KiB: the leaves that a busy realm appends to
        if is_new:
            self.db.executescript(f"BEGIN; {SCHEMA}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        self._rows: dict[str, list[tuple]] = defaultdict(list)     # gathered rows by their INSERT
        self._tags: dict[tuple[int, str], str] = {}                # gathered tags
        self._used: list[Session] = []             # for the first time on this day, which is not in the table yet
        self._open = False                         # a transaction has begun
        self.changes = 0                           # writes so far: a fault looks whether its request had written
        self.failed = False                        # this turn can't be kept
        self.blocked = False                       # a COMMIT failed, and nothing could be written since
        self.load()

    @staticmethod
    def _claim(path: Path) -> sqlite3.Connection:
        """Holds a lock for as long as the process lives, so that no second server works in the same folder."""
        lock = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error:
            raise StoreRefused(f"another server is using {path.parent}") from None
        return lock

    def _check(self) -> int:
        """The schema's version, 0 of a new database. Raises StoreRefused for a damaged one, or of another program."""
        try:
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreRefused(f"{self.path} is of another version of this program (schema {version}, not "
                                   f"{SCHEMA_VERSION}): newer or older; move it away, or use that program")
            found = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise StoreRefused(f"{self.path} can't be used now: {error}") from None
        except sqlite3.DatabaseError as error:
            found = str(error)
        found = found.partition("\n")[0]
        if found != "ok":
            raise StoreRefused(f"{self.path} is damaged ({found}); put a backup in its place or move it away")
        return version

    def load(self) -> None:
        """Builds what is in memory from the disk: at the start, and after a turn that failed."""
        query = self.db.execute
        self.people: dict[str, Person] = {}        # by address
        self.person_of: dict[int, Person] = {}     # by id
        self.known: Counter[str] = Counter()       # how many of each realm
        self.conversation_of: dict[int, Conversation] = {}
        self.sessions: dict[bytes, Session] = {}   # by digest
        for id, name, realm, nama, negara, password, met in query("SELECT * FROM people"):
            self._put_person(Person(id, name, realm, nama, negara, password, bool(met), f"{name}@{realm}"))
        for id, name, realm, admin in query("SELECT * FROM conversations"):
            newest = query("SELECT MAX(id) FROM places WHERE conversation=?", (id,)).fetchone()[0] or 0
            self.conversation_of[id] = Conversation(id, name, realm, admin, last_id=newest)
        self._placed = (query(LAST_PLACED).fetchone() or (0,))[0]      # the id up to which `places` has the messages
        tail = query("SELECT conversation, MAX(id) FROM messages WHERE id>? GROUP BY conversation", (self._placed,))
        for conversation_id, id in tail:
            self.conversation_of[conversation_id].last_id = id
        for conversation_id, person_id, since in query("SELECT * FROM members"):
            self._put(self.conversation_of[conversation_id], self.person_of[person_id], since)
        for conversation in self.conversation_of.values():
            for person in conversation.members:
                person.conversations[conversation.key(person)] = conversation
        for person_id, size in query("SELECT sender, SUM(size) FROM files JOIN messages USING(id) GROUP BY sender"):
            self.person_of[person_id].stored = size
        for conversation_id, person_id, id in query("SELECT * FROM reads"):
            self.conversation_of[conversation_id].reads[self.person_of[person_id]] = id
        for person_id, realm, id in query("SELECT * FROM cursors"):
            self.person_of[person_id].cursors[realm] = id
        for digest, person_id, used in query("SELECT * FROM sessions ORDER BY used"):
            self._add_session(Session(digest, self.person_of[person_id], used))
        self.groups = {group.address: group for group in self.conversation_of.values() if group.name}
        for group in self.groups.values():
            self._count_made(group)
        self.group_names = sorted(self.groups)     # addresses, sorted
        self.last_id: int = query("SELECT MAX(id) FROM messages").fetchone()[0] or 0
        self.day, self._clock = (query("SELECT value FROM meta WHERE name=?", (name,)).fetchone()[0]
                                 for name in ("day", "clock"))

    # -- the turn

    def begin(self) -> None:
        """Opens the turn's transaction. Raises ChatError `storage` where nothing can be written now."""
        if self.failed or self.blocked:
            raise ChatError("storage")
        if not self._open:
            try:
                self.db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:          # another process holds the lock, or the disk is ill
                log.error("no transaction: %s", error)
                raise ChatError("storage") from None
            self._open = True
        self.changes += 1

    def write(self, sql: str, values: tuple = ()) -> sqlite3.Cursor:
        """Writes at once. Raises sqlite3.Error, and ChatError `storage` before anything was written."""
        self.begin()
        return self.db.execute(sql, values)

    def gather(self, sql: str, row: tuple) -> None:
        """Writes a row at the end of the turn, together with others of its kind."""
        if not self._open:
            self.begin()
        self.changes += 1
        self._rows[sql].append(row)

    def flush(self) -> None:
        """Writes the gathered rows, so that a query sees them. Raises sqlite3.Error."""
        for sql, rows in self._rows.items():
            self.db.executemany(sql, rows)
        self._rows.clear()

    def fail(self) -> None:
        """The turn can't be kept: nothing more is written in it, and its COMMIT fails."""
        self.failed, self._open = True, False

    def commit(self) -> None:
        """Puts the turn on disk. Raises sqlite3.Error; then call `abort`."""
        if self.failed:
            raise sqlite3.OperationalError("a fault after a write")
        self.flush()
        if self._open:
            if self.last_id - self._placed >= common.PLACE_EVERY:
                self.db.execute(PLACE, (self._placed,))
                self._placed = self.last_id
            self.db.execute("COMMIT")
            self._open = False
        self._tags.clear()

    def abort(self) -> None:
        """Undoes the turn, on disk and in memory. Raises sqlite3.Error where the database can't be read any more."""
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        self._open = self.failed = False
        for gathered in (self._rows, self._tags, self._used):
            gathered.clear()
        self.load()
        self.overwrite_log()

    def overwrite_log(self) -> None:
        """Writes a small transaction where the failed one may lie in SQLite's log, else a crash could bring that back.

        Until this has worked nothing else is written: the store is `blocked`.
        """
        try:
            self.db.execute("BEGIN IMMEDIATE")
            self.db.execute("UPDATE meta SET value=value+1 WHERE name='aborted'")
            self.db.execute("COMMIT")
            self.blocked = False
        except sqlite3.Error as error:
            log.error("the database can't be written: %s", error)
            self.blocked = True
            with contextlib.suppress(sqlite3.Error):
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")

    def close(self) -> None:
        """Gives the files back."""
        self.db.close()
        self._owner.close()

    # -- people and sessions

    def add_person(self, name: str, realm: str, nama: str, negara: str, password: str | None = None,
                   met: bool = True) -> Person:
        """A new person, of this realm where there is a password."""
        id = self.write("INSERT INTO people(name, realm, nama, negara, password, met) VALUES(?,?,?,?,?,?)",
                        (name, realm, nama, negara, password, met)).lastrowid
        person = Person(id, name, realm, nama, negara, password, met, f"{name}@{realm}")
        self._put_person(person)
        return person

    def _put_person(self, person: Person) -> None:
        self.people[person.address] = self.person_of[person.id] = person
        self.known[person.realm] += 1

    def people_after(self, name: str) -> Iterator[Person]:
        """The people of this realm whose names come after this one, in their order; read in this turn."""
        for id, in self.db.execute("SELECT id FROM people WHERE realm=? AND name>? ORDER BY name",
                                   (self.realm, name.lower())):
            yield self.person_of[id]

    def set_password(self, person: Person, password: str) -> None:
        """`password` is what `hash_password` gives."""
        self.write("UPDATE people SET password=? WHERE id=?", (password, person.id))
        person.password = password

    def add_session(self, person: Person, digest: bytes) -> Session:
        """A new login."""
        self.write("INSERT INTO sessions VALUES(?,?,?)", (digest, person.id, self.day))
        return self._add_session(Session(digest, person, self.day))

    def _add_session(self, session: Session) -> Session:
        self.sessions[session.digest] = session
        session.person.sessions.append(session)
        return session

    def use(self, session: Session) -> None:
        """A token was used: noted in the table by `count_day`, since a request that is refused writes nothing."""
        if session.used != self.day:
            session.used = self.day
            self._used.append(session)

    def end_session(self, session: Session) -> None:
        """From here on its token is good for nothing."""
        self.write("DELETE FROM sessions WHERE digest=?", (session.digest,))
        del self.sessions[session.digest]
        session.person.sessions.remove(session)
        session.ended = True

    def count_day(self, today: int) -> list[Session]:
        """Counts the days on which the server runs, so that no jump of the clock ends a session; notes who was here.

        `today` is the clock's day, counted from 1970. However far it jumps, it is one day more. Returns the sessions
        that nobody has used for SESSION_DAYS.
        """
        for session in self._used:
            self.write("UPDATE sessions SET used=? WHERE digest=?", (session.used, session.digest))
        self._used.clear()
        if today <= self._clock:
            return []
        self.write("UPDATE meta SET value=? WHERE name='clock'", (today,))
        self.write("UPDATE meta SET value=value+1 WHERE name='day'")
        self._clock, self.day = today, self.day + 1
        return [session for session in self.sessions.values() if self.day - session.used > common.SESSION_DAYS]

    # -- conversations

    def private(self, first: Person, second: Person) -> Conversation:
        """What two people say to each other, made at the first word."""
        realm = second.realm if first.password else first.realm
        return first.conversations.get(second.address) or self._add_conversation(None, realm, "", {first: 0, second: 0})

    def add_group(self, name: str, realm: str, admin: str, *members: Person) -> Conversation:
        """A new group, or what we know of one of another realm."""
        group = self._add_conversation(name, realm, admin, dict.fromkeys(members, self.last_id))
        self.groups[group.address] = group
        bisect.insort(self.group_names, group.address)
        self._count_made(group)
        return group

    def _count_made(self, group: Conversation) -> None:
        if group.realm == self.realm and group.admin in self.people:
            self.people[group.admin].made += 1

    def _add_conversation(self, name: str | None, realm: str, admin: str, members: dict[Person, int]) -> Conversation:
        id = self.write("INSERT INTO conversations(name, realm, admin) VALUES(?,?,?)", (name, realm, admin)).lastrowid
        conversation = self.conversation_of[id] = Conversation(id, name, realm, admin)
        for person, since in members.items():
            self.write("INSERT INTO members VALUES(?,?,?)", (id, person.id, since))
            self._put(conversation, person, since)
        for person in members:
            person.conversations[conversation.key(person)] = conversation
        return conversation

    @staticmethod
    def _put(conversation: Conversation, person: Person, since: int) -> None:
        conversation.members[person] = since
        conversation.realms[person.realm] += 1

    def add_member(self, group: Conversation, person: Person) -> None:
        """A person sees from now on what is said in the group."""
        self.write("INSERT INTO members VALUES(?,?,?)", (group.id, person.id, self.last_id))
        self._put(group, person, self.last_id)
        person.conversations[group.key(person)] = group

    def remove_member(self, group: Conversation, person: Person) -> None:
        """A person sees nothing more of the group."""
        self.write("DELETE FROM members WHERE conversation=? AND person=?", (group.id, person.id))
        del group.members[person], person.conversations[group.key(person)]
        group.realms[person.realm] -= 1
        if not group.realms[person.realm]:
            del group.realms[person.realm]

    # -- messages

    def add_message(self, conversation: Conversation, sender: Person, ts: int, text: str | None,
                    file: File | None = None, origin: int | None = None) -> Message:
        """Stores a message under the next id."""
        id = self.last_id + 1
        self.gather(INSERT_MESSAGE, (id, conversation.id, ts, sender.id, text, origin))
        self.last_id = conversation.last_id = id
        if file is not None:
            self.write("INSERT INTO files VALUES(?,?,?,?)", (id, *file))
            sender.stored += file.size
        uid = f"{self.realm}:{id}" if origin is None else f"{sender.realm}:{origin}"
        return Message(id, conversation, ts, sender, text, file, uid)

    def _message(self, row: tuple) -> Message:
        id, conversation, ts, sender, text, origin = row
        file = None
        if text is None:
            file = File(*self.db.execute("SELECT name, size, sha256 FROM files WHERE id=?", (id,)).fetchone())
        person = self.person_of[sender]
        uid = f"{self.realm}:{id}" if origin is None else f"{person.realm}:{origin}"
        return Message(id, self.conversation_of[conversation], ts, person, text, file, uid)

    def message(self, id: int) -> Message | None:
        """The message with this id."""
        self.flush()
        row = self.db.execute(SELECT + "messages WHERE id=?", (id,)).fetchone()
        return row and self._message(row)

    def messages_after(self, person: Person, after: int) -> Iterator[Message]:
        """All that a person may see past this id, in id order; read from the disk as it is asked for, in this turn."""
        self.flush()
        places, newest = [], 0
        for conversation in person.conversations.values():
            start = max(after, conversation.members[person])
            if conversation.last_id > start:
                places.append((conversation.id, start))
                newest = max(newest, conversation.last_id)
        tail_from = max(after, self._placed)
        if self.last_id - after < 50 * len(places):            # to look through all that is newer takes less time
            places, tail_from = [], after
        most = max(1, min(100, 1000 // max(1, len(places))))   # in all no more than a reply has
        rows = [self._placed_after(*place, most) for place in places]
        tail = self.db.execute(TAIL_AFTER, (tail_from, person.id)) if newest > tail_from else ()
        return map(self._message, itertools.chain(heapq.merge(*rows), tail))

    def _placed_after(self, conversation: int, after: int, most: int) -> Iterator[tuple]:
        """The placed messages of a conversation. A few at a time: a query left open could not be used for the next."""
        while rows := self.db.execute(PLACED_AFTER, (conversation, after, most)).fetchall():
            yield from rows
            after = rows[-1][0]

    def messages_before(self, conversation: Conversation, since: int, before: int, most: int) -> Iterator[Message]:
        """The last messages of a conversation with an id past `since` and below `before`, newest first."""
        return map(self._message, self._rows_before(SELECT, conversation, since, before, most))

    def _rows_before(self, select: str, conversation: Conversation, since: int, before: int, most: int) -> list[tuple]:
        self.flush()
        place, rows = (conversation.id, max(since, self._placed), before, most), []
        if conversation.last_id > self._placed:
            rows = self.db.execute(select + TAIL_BEFORE, place).fetchall()
        if len(rows) < most:
            place = (conversation.id, since, before, most - len(rows))
            rows += self.db.execute(select + PLACED_BEFORE, place).fetchall()
        return rows

    def unread(self, conversation: Conversation, person: Person) -> tuple[int, int]:
        """How many messages of others a person has not read yet, and at how many messages it had to look.

        It looks at the newest UNREAD_LOOK, and counts to MAX_UNREAD_COUNT.
        """
        since = max(conversation.reads.get(person, 0), conversation.members[person])
        if conversation.last_id <= since:
            return 0, 0
        senders = self._rows_before("SELECT sender FROM ", conversation, since, sys.maxsize, common.UNREAD_LOOK)
        return min(len(senders) - senders.count((person.id,)), common.MAX_UNREAD_COUNT), len(senders)

    def set_read(self, conversation: Conversation, person: Person, id: int) -> None:
        """A person has read a conversation up to this message."""
        self.write("INSERT OR REPLACE INTO reads VALUES(?,?,?)", (conversation.id, person.id, id))
        conversation.reads[person] = id

    def search(self, conversation: Conversation, since: int, text: str) -> Callable[[], list[int]]:
        """A function, to be called in another thread, that finds the newest messages with this text: their ids.

        It has a connection of its own that only reads, so that the loop never waits for it.
        """
        def find() -> list[int]:
            with contextlib.closing(sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
                db.create_function("fold", 1, lambda found: found and found.casefold(), deterministic=True)
                fold = "lower" if text.isascii() else "fold"   # SQLite knows the case of the first letters alone
                db.execute("BEGIN")                # both queries see the same moment
                placed = (db.execute(LAST_PLACED).fetchone() or (0,))[0]
                rows = db.execute(FIND.format(fold), (conversation.id, since, placed, text.casefold(),
                                                      common.SEARCH_PAGE + 1))
                return [id for id, in rows]
        return find

    def inbox(self, person: Person, realms: Iterable[str]) -> Iterator[tuple[Message, bool]]:
        """What a person may see past their cursors, and whether it is new: of others, and no `inbox` took it yet."""
        cursors = {realm: person.cursors.get(realm, 0) for realm in realms}
        for message in self.messages_after(person, min(cursors.values())):
            own = message.sender is person and (message.conversation.name or len(message.conversation.members) > 1)
            yield message, not own and message.id > cursors.get(message.sender.realm, sys.maxsize)

    def take(self, person: Person, realms: Iterable[str], id: int) -> None:
        """What these realms' people sent up to this id was taken by an `inbox`."""
        for realm in realms:
            if id > person.cursors.get(realm, 0):
                self.write("INSERT OR REPLACE INTO cursors VALUES(?,?,?)", (person.id, realm, id))
                person.cursors[realm] = id

    def is_named(self, sha256: str) -> bool:
        """Whether a message has this file."""
        return bool(self.db.execute("SELECT 1 FROM files WHERE sha256=? LIMIT 1", (sha256,)).fetchone())

    def tagged(self, person: Person, tag: str) -> str | None:
        """The reply that an earlier send with this tag got."""
        reply = self._tags.get((person.id, tag))
        if reply is None:
            row = self.db.execute("SELECT reply FROM tags WHERE person=? AND tag=?", (person.id, tag)).fetchone()
            reply = row and row[0]
        return reply

    def remember_tag(self, person: Person, tag: str, reply: str) -> None:
        """Keeps the reply to a tagged send."""
        self.gather(INSERT_TAG, (person.id, tag, reply))
        self._tags[person.id, tag] = reply


# ---- Workers -----------------------------------------------------------------------------------


class Workers:
    """A few threads for what would hold up the loop. What comes of it is handed back in the loop, by `finish`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.hashes = ThreadPoolExecutor(common.HASH_WORKERS, "hash")      # of passwords
        self.files = ThreadPoolExecutor(common.HASH_WORKERS, "files")      # syncs and lists
        self.searches = ThreadPoolExecutor(1, "search")
        self._wake = wake
        self._done: deque[tuple[Callable[[Future], None], Future]] = deque()

    def run(self, pool: ThreadPoolExecutor, done: Callable[[Future], None], work: Callable,
            *arguments: object) -> None:
        """Has something done in one of the pools, and `done` called in the loop with what came of it."""
        def hand_over(future: Future) -> None:
            self._done.append((done, future))
            self._wake()
        pool.submit(work, *arguments).add_done_callback(hand_over)

    def finish(self) -> None:
        """Calls back for all work that has been done."""
        while self._done:
            done, future = self._done.popleft()
            try:
                done(future)
            except Exception:                      # a fault of ours ends neither the loop nor the other work
                log.exception("%s failed", done)

    def close(self) -> None:
        """Waits for what is under way, drops the rest."""
        for pool in (self.hashes, self.files, self.searches):
            pool.shutdown(cancel_futures=True)


SCRYPT = {"n": 2**14, "r": 8, "p": 1}       # RFC 7914: 16 MiB and some 60 ms a guess


def hash_password(password: str) -> str:
    """A password -> what is stored of it: `scrypt$SALT$HASH` in hex."""
    salt = secrets.token_bytes(16)
    return f"scrypt${salt.hex()}${hashlib.scrypt(password.encode(), salt=salt, **SCRYPT).hex()}"


NO_PASSWORD = f"scrypt${bytes(16).hex()}${bytes(64).hex()}"      # what a guess at an unknown user is held against


def verify_password(password: str, stored: str, new: str | None = None) -> str | None:
    """What is stored of the password (of the `new` one, if given) where it is right, else None."""
    _, salt, expected = stored.split("$")
    found = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), **SCRYPT)
    if not hmac.compare_digest(found, bytes.fromhex(expected)):
        return None
    return hash_password(new) if new is not None else stored


def file_digest(path: Path) -> str:
    """A file's SHA-256 in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(common.MIB):
            digest.update(data)
    return digest.hexdigest()


def append_to_file(file: BinaryIO, data: bytes, position: int) -> None:
    """Writes at the end, which is `position`. Raises OSError, also where only a part could be written.

    At every SYNC_STEP bytes the system is asked to begin putting them on disk: so the sync at the end finds little to
    do, and the COMMITs of meanwhile need not wait for it.
    """
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, "a part was not written")
    step = position // common.SYNC_STEP
    if (position + len(data)) // common.SYNC_STEP > step and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), step * common.SYNC_STEP, common.SYNC_STEP, os.POSIX_FADV_DONTNEED)


def seal_file(path: Path, folder: Path, expected: str | None = None) -> str:
    """Puts a whole file on disk under its SHA-256, which is returned. Raises OSError, ValueError if not `expected`."""
    name = file_digest(path)
    if expected not in (None, name):
        path.unlink()
        raise ValueError(f"{path.name} is not what was announced")
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(path, folder / name)
    if os.name == "posix":                                     # the rename is on disk when its folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return name


def list_old_files(folder: Path) -> list[str]:
    """The names of the files that nobody has written to for SWEEP_AGE."""
    before = time.time() - common.SWEEP_AGE
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if is_older(entry.path, before)]


def is_older(path: str | Path, before: float) -> bool:
    """Whether a file is there and was last written to before that time (seconds since 1970)."""
    try:
        return os.stat(path).st_mtime < before
    except OSError:
        return False


# ---- Upload ------------------------------------------------------------------------------------


class Upload:
    """The file at the end of a request line, decoded to a temporary file as it arrives.

    What goes wrong is kept in `error` and the rest of the line is swallowed, so that the connection stays usable.
    """

    def __init__(self, request: Request, folder: Path, most: int, now: float, error: ChatError | None = None) -> None:
        self.request = request
        self.error = error
        self.size = 0
        self.heard = now                           # when its last byte came
        self.whole = False                         # the line has ended; the file is being put on disk
        self.person: Person | None = None          # who sends it
        self._most = most
        self._decoder = common.Base64Decoder()
        self._file: BinaryIO | None = None
        self.path: Path | None = None
        if error is None:
            try:
                descriptor, path = tempfile.mkstemp(prefix="upload-", dir=folder)
            except OSError as problem:
                log.error("no room for an upload: %s", problem)
                self.error = ChatError("storage")
            else:
                self._file, self.path = os.fdopen(descriptor, "wb", buffering=0), Path(path)

    def feed(self, data: bytes, now: float) -> None:
        """Takes in the next base64 of the line."""
        self.heard = now
        self._store(self._decoder.feed, data)

    def finish(self) -> None:
        """The line has ended."""
        self.whole = True
        self._store(lambda _: self._decoder.finish(), b"")
        if self._file:
            self._file.close()

    def _store(self, decode: Callable[[bytes], bytes], data: bytes) -> None:
        if self.error:
            return
        try:
            content = decode(data)
            if self.size + len(content) > self._most:
                raise ChatError("too_large", f"{self._most // common.MIB} MiB")
            append_to_file(self._file, content, self.size)
            self.size += len(content)
        except ChatError as error:
            self.abandon(error)
        except OSError as problem:
            log.error("an upload can't be written: %s", problem)
            self.abandon(ChatError("storage"))

    def abandon(self, error: ChatError) -> None:
        """Removes the temporary file."""
        self.error, self.size = error, 0
        if self._file:
            self._file.close()
            self.path.unlink(missing_ok=True)
            self._file = None


# ---- Connection --------------------------------------------------------------------------------


class State(NamedTuple):
    """What a connection may do in one state. Nothing else decides it but how full its buffers are."""

    name: str
    reads: bool                    # its bytes are taken in
    serves: bool                   # its requests are carried out
    finishes: bool                 # a request that was held is carried out once its answer is there
    sends: bool                    # what it is owed is sent


#                                 reads  serves finishes sends  and it goes on to
CONNECTING = State("connecting", False, False, False, False)  # OPEN, once the other realm has taken the call
OPEN = State("open", True, True, True, True)                  # HALF, when the other side says that it sends no more
HALF = State("half", False, True, True, True)                 # CLOSED in order, when all that came is answered
LAST_WORDS = State("last words", False, False, True, True)    # DRAINING (CLOSED, if it subscribed), when all is sent
DRAINING = State("draining", False, False, False, False)      # CLOSED by a reset, when the kernel has sent what it has
BROKEN = State("broken", False, False, False, False)          # CLOSED by a reset, at its next visit
CLOSED = State("closed", False, False, False, False)
# An old client never sees an orderly end as one: it would spin for ever. So LAST_WORDS ends in a reset, and that comes
# only after the kernel has handed over the last reply, because a reset throws away what is still on its way.


@dataclass(slots=True, eq=False)
class Waiting:
    """The reply to a send that waits for another realm's word. The send itself is done already."""

    conn: Connection
    tag: str | None
    reply: dict[str, object]                       # as it is when all arrives
    left: int                                      # of how many items the word is still missing
    due: float                                     # when the sender hears `queued` instead
    frame: bytes | None = None                     # the reply, once it is known

    WEIGHT: ClassVar[int] = 256                    # bytes that it counts as, until it is known


Frame = bytes | Iterator[bytes]    # a reply, or its pieces


def weight_of(reply: Frame | Waiting) -> int:
    """Bytes of memory that a reply counts as."""
    return len(reply) if type(reply) is bytes else Waiting.WEIGHT if type(reply) is Waiting else 0


@dataclass(slots=True, eq=False)
class Connection:
    """One socket: whose it is, the lines that came in, the replies that go out."""

    sock: socket.socket
    host: str
    state: State = OPEN
    mask: int = 0                                  # what the selector is asked to watch
    # in
    buffer: common.LineBuffer = field(default_factory=lambda: common.LineBuffer(common.MAX_LINE))
    upload: Upload | None = None
    held: Request | None = None                    # waits for its answer (a hash, a file, a realm); nothing passes it
    answer: tuple[object] | None = None            # what `held` waits for
    tag: str | None = None                         # of the request that is being carried out
    # out: replies go into `output` after the COMMIT, up to the first that waits
    replies: list[Frame | Waiting] = field(default_factory=list)
    earlier: int = 0                               # how many of them are of earlier turns
    waiting: int = 0                               # how many of them wait
    pending: int = 0                               # their bytes
    output: list[Frame] = field(default_factory=list)  # an empty list takes less memory than an empty deque
    unsent: int = 0                                # its bytes; what an iterator will give is not counted
    sending: bytes | memoryview = b""              # what a send left over
    streaming: bool = False                        # a reply is read from the disk as the socket drains
    blocked: int = 0                               # the event that it waits for, where the socket takes no more now
    blocked_since: float = 0.0
    # who
    session: Session | None = None
    asking: Session | None = None                  # the session of the request that is being carried out
    subscribed: bool = False
    behind: bool = False                           # a subscriber that is fed from the table
    cursor: int = 0                                # the id of the last message event
    taking: tuple[Person, list[str], int] | None = None  # an `inbox` whose reply is not sent yet
    link: RealmLink | None = None                  # of another realm
    claim: Claim | None = None                     # to be another realm, not yet proved
    deadline: float = 0.0                          # when a guest, or one that is draining, is ended

    def reply(self, reply: Frame | dict[str, object] | Waiting) -> None:
        """Puts a reply, or the place for one that is to come, behind the others; it leaves after the COMMIT."""
        if type(reply) is dict:
            reply = format_reply(reply, self.tag)
        self.replies.append(reply)
        if type(reply) is bytes:
            self.pending += len(reply)
        elif type(reply) is Waiting:
            self.pending += Waiting.WEIGHT
            self.waiting += 1
        else:
            self.streaming = True

    def release(self) -> None:
        """The turn is on disk: its replies may leave, up to the first that waits."""
        if not self.waiting:
            self.output += self.replies
            self.unsent += self.pending
            self.replies.clear()
            self.pending = self.earlier = 0
            return
        count = 0
        for reply in self.replies:
            frame = reply.frame if type(reply) is Waiting else reply
            if frame is None:
                break
            count += 1
            self.output.append(frame)
            self.unsent += weight_of(frame)
            self.pending -= weight_of(reply)
            self.waiting -= type(reply) is Waiting
        del self.replies[:count]
        self.earlier = len(self.replies)

    def undo(self) -> list[str | None]:
        """The turn has failed: takes its replies back, and returns their tags."""
        undone, self.taking, self.streaming = self.replies[self.earlier:], None, False
        del self.replies[self.earlier:]
        self.waiting = sum(type(reply) is Waiting for reply in self.replies)
        self.pending = sum(map(weight_of, self.replies))
        return [reply.tag if type(reply) is Waiting else json.loads(reply).get("tag") if type(reply) is bytes
                else self.tag for reply in undone]         # behind a file that streams nothing was carried out

    def push(self, chunk: bytes, last_id: int) -> None:
        """Sends events, unless the subscriber is fed from the table. `last_id` is 0 where they are no messages."""
        if self.behind or (last_id and last_id <= self.cursor):
            return
        if self.backlog + len(chunk) > common.OUTPUT_MARK:
            self.behind = bool(last_id)            # an event that is in no table is lost to one who does not read
            return
        self.output.append(chunk)
        self.unsent += len(chunk)
        self.cursor = last_id or self.cursor

    def settle(self, value: object) -> None:
        """What the held request waits for has come."""
        self.answer = (value,)

    @property
    def backlog(self) -> int:
        """Bytes that are still to be sent."""
        return self.pending + self.unsent + len(self.sending)

    @property
    def has_output(self) -> bool:
        """Whether there is something to send now."""
        return bool(self.output or self.sending or (self.behind and self.subscribed))

    @property
    def has_answer(self) -> bool:
        """Whether the next reply is known, and leaves with the next turn."""
        first = self.replies[0] if self.replies else None
        return first is not None and not (type(first) is Waiting and first.frame is None)

    @property
    def is_outgoing(self) -> bool:
        """Whether we opened it, to another realm."""
        return self.link is not None and self.link.conn is self

    @property
    def may_serve(self) -> bool:
        """Whether its next line may be carried out: not behind a held one, nor while its replies are not taken."""
        unsent = self.pending + self.unsent + len(self.sending)
        return (self.state.serves and self.held is None and self.taking is None and not self.streaming
                and self.waiting < common.MAX_WAITING
                and unsent <= (common.OUTPUT_MARK if self.session or self.link else common.GUEST_MARK))

    @property
    def has_work(self) -> bool:
        """Whether there is a request that may be carried out now."""
        if self.held is not None:
            return self.answer is not None and self.state.finishes
        buffer = self.buffer
        return bool(buffer.lines or (buffer.overlong and len(buffer))) and (
            self.may_serve or (self.is_outgoing and self.state.serves))

    @property
    def may_read(self) -> bool:
        """Whether more lines are welcome. Two realms that both wait for the other to read would wait for ever."""
        return self.state.reads and ((not self.buffer.lines and self.may_serve)
                                     or (self.is_outgoing and self.buffer.weight < common.LINK_LINE))

    @property
    def is_done(self) -> bool:
        """Whether all is answered and sent; half a request does not count."""
        buffer = self.buffer
        return not (self.held or self.taking or self.replies or self.has_output
                    or (self.state.serves and (buffer.lines or (buffer.overlong and len(buffer)))))


# ---- Chat --------------------------------------------------------------------------------------

SENT = "Pesan terkirim"
QUEUED = "Pesan disimpan, dikirim saat realm tujuan tersambung"
SYSTEM = "system"              # the name under which a realm itself writes; nobody can register it
TOKEN_BYTES = 24               # 192 random bits, twice as many letters
HEAD = len("send ") + 2 * TOKEN_BYTES + 1      # where the recipient stands in `send TOKEN USER TEXT`
MAX_ROUTES = 256               # of one session
MAX_ALL_ROUTES = 65_536        # past that all are forgotten: the next send of each finds its way anew


def fit(rows: Iterable, most: int, weigh: Callable[[object], int] = len) -> tuple[list, bool]:
    """The first of these rows, as many as weigh up to `most` bytes (one at least), and whether there are more."""
    fitting, weight = [], 0
    for row in rows:
        weight += weigh(row)
        if fitting and weight > most:
            return fitting, True
        fitting.append(row)
    return fitting, False


def json_list(texts: Iterable[str]) -> Json:
    """Texts that are JSON -> a list of them."""
    return Json(f"[{','.join(texts)}]")


class Later(Exception):
    """The request needs an answer that is not here yet. It is carried out again, from its start, with the answer."""


class Route(NamedTuple):
    """What `send TOKEN USER` means, so that a send by a way that was taken before is one look-up."""

    session: Session
    person: Person
    conversation: Conversation
    is_elsewhere: bool             # the other realm has a word in it


class Sent(NamedTuple):
    """What a send has stored, and to whom it could not be sent."""

    messages: list[Message]
    refused: list[str] = []


@dataclass(slots=True)
class Broadcast:
    """Messages of one turn for the same people, or another event: one chunk that all their connections share."""

    members: Collection[Person] | None             # None: everybody who has subscribed
    connections: list[Connection]                  # theirs, at that moment
    messages: list[Message]
    frame: bytes = b""                             # of an event that is no message
    more: str = ""                                 # what the messages have beside their fields, as JSON


class Limits(NamedTuple):
    """The limits that have options; 0 is none."""

    file: int = common.MAX_FILE                # bytes of one file
    stored: int = common.MAX_STORED            # bytes of the files of one user
    rate: int = 0                              # messages of one user in a second
    connections: int = common.MAX_CONNECTIONS
    per_address: int = common.MAX_PER_ADDRESS


@dataclass(slots=True)
class LoginThrottle:
    """The logins of one account: at most GUESSES may fail in GUESS_SECONDS, also of those that come all at once."""

    failed: deque[float] = field(default_factory=deque)        # when; of the last GUESS_SECONDS
    running: int = 0
    queue: deque[Callable[[ChatError | None], None]] = field(default_factory=deque)

    def ask(self, now: float, go: Callable[[ChatError | None], None]) -> None:
        """Calls `go(None)` when the account may be tried, or `go(error)`."""
        self.queue.append(go)
        self.next(now)

    def done(self, now: float, succeeded: bool) -> None:
        """A try has ended."""
        self.running -= 1
        if not succeeded:
            self.failed.append(now)
        self.next(now)

    def next(self, now: float) -> None:
        """Lets through, or refuses, those who wait."""
        while self.failed and self.failed[0] <= now - common.GUESS_SECONDS:
            self.failed.popleft()
        while self.queue:
            error = None
            if len(self.failed) >= common.GUESSES:
                seconds = int(self.failed[0] + common.GUESS_SECONDS - now) + 1
                error = ChatError("rate_limited", retry_after=seconds)
            elif len(self.failed) + self.running >= common.GUESSES:
                return
            else:
                self.running += 1
            self.queue.popleft()(error)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.failed or self.running or self.queue)


class Chat:
    """What the commands do. A handler returns the fields of its reply, or raises ChatError or Later.

    `do_<word>(conn, person, *arguments)`: `person` is who asks (None where no token is needed), and the arguments are
    those of the command's row without the token. Handlers stand in the order of the table. A handler that sends gets
    the text, or the File, as its last argument, and returns what it has Sent.
    """

    def __init__(self, realm: str, table: dict[str, Realm], store: Store, workers: Workers, *, key: bytes | None = None,
                 limits: Limits | None = None, wall: Callable[[], float] = time.time) -> None:
        self.realm = realm
        self.table = table
        self.store = store
        self.workers = workers
        self.limits = limits or Limits()
        self.wall = wall                           # seconds since 1970: for display, and to count days
        self.now = 0.0                             # of the turn: seconds of a clock that never goes back
        self.now_ms = 0                            # of the turn: milliseconds since 1970
        self.ready: dict[Connection, None] = {}    # who is owed a visit of the loop, in their order
        self.guests: dict[Connection, None] = {}   # who may not have logged in yet, the earliest first
        self.soon: list[Callable[[], None]] = []   # to be done at the begin of the next turn
        self.on_commit: list[Callable[[], None]] = []              # to be done when this turn is on disk
        self.broadcasts: list[Broadcast] = []      # events of this turn
        self.listeners = 0                         # to how many they go, each counted
        self.subscribers: set[Connection] = set()
        self.routes: dict[bytes, Route] = {}
        self.throttles: dict[str, LoginThrottle] = {}              # by account, existing or not
        self.hashes: Counter[str] = Counter()      # logins that wait for a hash, by the address they come from
        self.searches: Counter[int] = Counter()    # that wait for their thread, by the person's id
        self.next_sweep = 0.0
        self.next_try = 0.0                        # when a store that is blocked is tried again
        self.realms = Realms(self, key) if len(table) > 1 else None
        self._handlers = {word: getattr(self, f"do_{word}", None) or getattr(self.realms, f"do_{word}", None)
                          for word in COMMANDS}

    # -- the turn

    def tick(self, now: float) -> None:
        """A turn begins: takes the time, and does what is due."""
        self.now, self.now_ms = now, int(self.wall() * 1000)
        if self.store.blocked and now >= self.next_try:
            self.next_try = now + 1.0
            self.store.overwrite_log()
        actions, self.soon = self.soon, []
        for action in actions:
            self.guarded(action)
        if now >= self.next_sweep:
            self.next_sweep = now + common.SWEEP_SECONDS
            self.guarded(self.sweep)
        if self.realms:
            self.guarded(self.realms.tick)

    def sweep(self) -> None:
        """Throws away what is not needed any more, and counts the days."""
        for account, throttle in list(self.throttles.items()):
            throttle.next(self.now)
            if throttle.idle:
                del self.throttles[account]
        self.workers.run(self.workers.files, self.throw_away, list_old_files, self.store.files)
        for session in {conn.session for person in self.store.people.values() for conn in person.connections}:
            self.store.use(session)
        for session in self.store.count_day(self.now_ms // 86_400_000):
            self.end_session(session)

    def throw_away(self, listed: Future) -> None:
        """Removes those of the old files that no message names. What has come again meanwhile is not old any more."""
        if listed.exception():
            log.error("the files can't be listed: %s", listed.exception())
        else:
            self.remove_unnamed(iter(listed.result()))

    def remove_unnamed(self, names: Iterator[str]) -> None:
        """Looks at the next SWEEP_FILES of these names; the others' turn comes."""
        before, some = time.time() - common.SWEEP_AGE, list(itertools.islice(names, common.SWEEP_FILES))
        for name in some:
            path = self.store.files / name
            if not name.startswith("upload-") and not self.store.is_named(name) and is_older(path, before):
                path.unlink(missing_ok=True)
        if some:
            self.soon.append(partial(self.remove_unnamed, names))

    def guarded(self, action: Callable, *arguments: object) -> object:
        """Does something as one request: what it raises becomes the reply."""
        before = self.store.changes
        try:
            return action(*arguments)
        except Later:
            raise
        except Exception as error:
            return self.refusal(error, before)

    def refusal(self, error: Exception, before: int) -> dict[str, object]:
        """The ERROR reply for what a request raised. A fault after a write fails the turn.

        `before` is `store.changes` at the request's begin.
        """
        if isinstance(error, ChatError):
            return error.reply()
        if isinstance(error, sqlite3.Error):
            log.error("the database can't be used: %s", error)
            self.store.fail()
            return ChatError("storage").reply()
        log.error("a request failed", exc_info=error)
        if self.store.changes != before:
            self.store.fail()
        return ChatError("internal_error").reply()

    def release(self) -> None:
        """The turn is on disk: what it decided may leave. Other realms' news go before any reply."""
        for action in self.on_commit:
            action()
        self.on_commit.clear()
        if self.realms:
            self.realms.release()
        for conn in self.ready:
            if conn.replies:
                conn.release()
        for broadcast in self.broadcasts:
            if broadcast.connections:
                chunk = broadcast.frame or "".join(
                    [f'{{"event":"message",{message.fields()}{broadcast.more}}}\r\n\r\n'
                     for message in broadcast.messages]).encode()
                last_id = broadcast.messages[-1].id if broadcast.messages else 0
                for conn in broadcast.connections:
                    if conn.subscribed:            # still
                        conn.push(chunk, last_id)
                        self.ready[conn] = None
        self.broadcasts.clear()
        self.listeners = 0

    def audience(self, members: Collection[Person] | None) -> list[Connection]:
        """The connections of these people that have subscribed. With few subscribers those are looked through."""
        if members is None:
            return list(self.subscribers)
        if isinstance(members, dict) and len(members) > len(self.subscribers):
            return [conn for conn in self.subscribers if conn.session.person in members]
        return [conn for person in members for conn in person.connections if conn.subscribed]

    def abort(self) -> None:
        """The turn can't be put on disk: memory is what the disk has. Raises sqlite3.Error where that can't be read."""
        logged_in = [conn for person in self.store.people.values() for conn in person.connections]
        self.broadcasts.clear()
        self.on_commit.clear()
        self.routes.clear()
        self.store.abort()
        self.next_try = self.now + 1.0
        for conn in logged_in:
            session = self.store.sessions.get(conn.session.digest)
            conn.session = session
            if session:
                session.person.connections.add(conn)
                if conn.upload:
                    conn.upload.person = session.person
                    session.person.uploads.add(conn.upload)
            else:
                conn.subscribed = False
                self.subscribers.discard(conn)
        if self.realms:
            self.realms.reload()

    # -- from a line to its reply

    def execute(self, conn: Connection, line: bytes) -> None:
        """The path of a request: parse it, see whether it may be asked, carry it out, put its reply behind the others.

        A request that brings a file is carried out when the file is on disk.
        """
        before, conn.tag = self.store.changes, None
        try:
            if len(line) > conn.buffer.limit:
                self.end_upload(conn, self.begin_upload(conn, line))
                return
            line = line.strip(b" \r\n")
            if line.startswith(b"@"):
                conn.tag, line = common.split_tag(line)
            end = line.find(b" ", HEAD)
            route = self.routes.get(line[:end]) if end > 0 else None
            if route is None:
                self.execute_parsed(conn, line)
                return
            reply = self.send_on_route(conn, route, line[end + 1:].lstrip(b" "))
        except Exception as error:
            reply = self.refusal(error, before)
        conn.reply(reply)

    def execute_parsed(self, conn: Connection, line: bytes) -> None:
        """Parses a line without its tag, and has it carried out. Raises ChatError."""
        request = common.parse_request(conn.tag, line)
        if request.command.takes_file:
            content = request.arguments.pop()
            self.end_upload(conn, self.upload_for(conn, request, content.encode()))
            return
        self.carry_out(conn, request)
        if request.command.word == "send" and conn.asking:
            self.remember_route(conn.asking, request, line)

    def carry_out(self, conn: Connection, request: Request) -> None:
        """Carries out a parsed request; where it needs an answer first, it is held until that is there."""
        conn.tag, conn.held, conn.asking = request.tag, None, None
        try:
            reply = self.guarded(self.perform, conn, request)
        except Later:
            conn.held = request
            return
        conn.answer = None
        conn.reply(reply)

    def perform(self, conn: Connection, request: Request) -> object:
        """Checks a request, and has its handler carry it out."""
        command = request.command
        if conn.upload:
            self.forget_upload(conn)
        person, arguments = self.admit(conn, request)
        if not command.is_send:
            return self._handlers[command.word](conn, person, *arguments)
        earlier = self.earlier_reply(person, request.tag)
        if earlier:
            return earlier
        self.check_send(person, arguments[-1], 1)
        sent = self._handlers[command.word](conn, person, *arguments)
        if command.takes_file:
            person.wasted = max(0, person.wasted - arguments[-1].size)     # the file has its message
        reply = self.sent_fields(sent)
        if request.tag is not None:
            self.store.remember_tag(person, request.tag, encode_json(reply))
        return self.realms.reply_to(conn, sent.messages[0], reply) if self.realms else reply

    def send_on_route(self, conn: Connection, route: Route, text: bytes) -> bytes | dict | Waiting:
        """Carries out a `send` by a way that was taken before; its reply. Raises ChatError."""
        if not text:
            raise ChatError("bad_arguments", COMMANDS["send"].usage)
        try:
            words = text.decode()
        except UnicodeDecodeError:
            raise ChatError("bad_encoding") from None
        if len(text) > common.MAX_TEXT:
            raise ChatError("too_long")
        session, person, conversation, is_elsewhere = route
        tag = conn.tag
        if session.used != self.store.day:
            self.store.use(session)
        if conn.session is None:
            self.attach(conn, session)
        if tag is not None and (earlier := self.earlier_reply(person, tag)):
            return earlier
        if self.limits.rate:
            self.check_rate(person, 1)
            person.allowance -= 1
        message = self.post(person, conversation, words)
        members = f'"message":"{SENT}","id":{message.id},"uid":"{message.uid}"'
        if tag is not None:
            self.store.remember_tag(person, tag, f"{{{members}}}")
        if is_elsewhere:
            reply = {"message": SENT, "id": message.id, "uid": message.uid}
            if waiting := self.realms.wait(conn, message, reply):
                return waiting
            members = f'"message":"{QUEUED}","id":{message.id},"uid":"{message.uid}","queued":true'
        tagged = "" if tag is None else f'"tag":"{tag}",'
        return f'{{"status":"OK",{tagged}{members}}}\r\n\r\n'.encode()

    def remember_route(self, session: Session, request: Request, line: bytes) -> None:
        """Notes the way of a `send` that has been carried out."""
        token, user = request.arguments[:2]
        head = f"send {token} {user}".encode()
        name, at, realm = user.lower().partition("@")
        conversation = session.person.conversations.get(f"{name}@{realm if at else self.realm}")
        if (conversation and conversation.other(session.person).met and not session.ended
                and line.startswith(head + b" ") and len(session.routes) < MAX_ROUTES):
            if len(self.routes) >= MAX_ALL_ROUTES:
                self.forget_routes()
            session.routes.append(head)
            self.routes[head] = Route(session, session.person, conversation, conversation.realm != self.realm)

    def forget_routes(self) -> None:
        """Every way has to be found anew."""
        for route in self.routes.values():
            route.session.routes.clear()
        self.routes.clear()

    def admit(self, conn: Connection, request: Request) -> tuple[Person | None, list[str]]:
        """Who asks, and the arguments without the token. Raises ChatError where the command is not theirs to send."""
        command, arguments = request.command, request.arguments
        if command.caller == USER or (command.takes_token and arguments):
            session = self.store.sessions.get(hashlib.sha256(arguments[0].encode()).digest())
            if session is None:
                raise ChatError("session_not_found")
            self.store.use(session)
            conn.asking = session
            if conn.session is None:
                self.attach(conn, session)
            return session.person, arguments[1:]
        if self._handlers[command.word] is None:
            raise ChatError("unknown_command")     # chapter two is not there
        if command.caller == common.REALM and (conn.link is None or conn.link.incoming is not conn):
            raise ChatError("unknown_command")
        if command.caller == common.STRANGER and (conn.session or conn.link):
            raise ChatError("unknown_command")
        return (conn.session.person if conn.session and not conn.session.ended else None), arguments[:]

    def await_answer(self, conn: Connection, start: Callable[[], None]) -> object:
        """The answer that the request waits for. The first time it calls `start` and raises Later.

        Whoever has the answer calls `settle`. An answer that is a ChatError is raised.
        """
        if conn.answer is None:
            start()
            raise Later
        (value,), conn.answer = conn.answer, None
        if isinstance(value, ChatError):
            raise value
        return value

    def settle(self, conn: Connection, value: object) -> None:
        """The answer for a held request is there."""
        if conn.held is not None:
            conn.settle(value)
            self.ready[conn] = None

    # -- uploads

    def begin_upload(self, conn: Connection, start: bytes) -> Upload:
        """A line past the limit: the Upload of the file at its end, else one that swallows it. Never raises."""
        request = Request(None, COMMANDS["send"], [])
        try:
            request.tag, line = common.split_tag(start)
            word, _, rest = line.partition(b" ")
            command = COMMANDS.get(word.decode(errors="replace").lower())
            if command is None or not command.takes_file:
                raise ChatError("too_long")
            arguments = common.split_arguments(rest.decode(), len(command.names), True)
            if len(arguments) < command.required:
                raise ChatError("bad_arguments", command.usage)
            return self.upload_for(conn, Request(request.tag, command, arguments[:-1]), arguments[-1].encode())
        except (ChatError, UnicodeDecodeError) as error:
            refusal = error if isinstance(error, ChatError) else ChatError("bad_encoding")
            return Upload(request, self.store.files, 0, self.now, refusal)

    def upload_for(self, conn: Connection, request: Request, start: bytes) -> Upload:
        """The Upload of a request's file, with the start of its content. Raises ChatError where it is not allowed."""
        person, arguments = self.admit(conn, request)
        if len(person.uploads) >= common.MAX_UPLOADS:
            raise ChatError("busy")
        self.check_recipient(person, request.command.word, *arguments[:-1])
        upload = Upload(request, self.store.files, self.limits.file, self.now)
        upload.person = person
        person.uploads.add(upload)
        self.feed_upload(upload, start)
        return upload

    def check_recipient(self, person: Person, word: str, target: str, name: str = "") -> None:
        """What can be refused before a file's content has come. Raises ChatError."""
        if word == "sendgroupfile":
            self.group_of(person, target)
        elif word == "sendfile":
            name, realm = self.address(target)
            if realm == self.realm:
                self.person(name)
        else:
            self.address(f"x@{target}")

    def feed_upload(self, upload: Upload, data: bytes) -> None:
        """Takes in the next of a file's content, as far as the sender's quota goes."""
        upload.feed(data, self.now)
        if (person := upload.person) and not upload.error:
            try:
                self.check_quota(person, self.wasted(person) + sum(other.size for other in person.uploads))
            except ChatError as error:
                upload.abandon(error)

    def wasted(self, person: Person) -> int:
        """Bytes of a person's files that no message names, and that no sweep has thrown away yet."""
        return person.wasted if self.now - person.wasted_since < common.SWEEP_AGE else 0

    def take_overlong(self, conn: Connection) -> bool:
        """Takes what there is of a line past the limit into its upload; whether the line has ended."""
        data, ended = conn.buffer.take_overlong()
        if conn.upload is None:
            conn.upload = self.begin_upload(conn, data)
        else:
            self.feed_upload(conn.upload, data)
        if ended:
            self.end_upload(conn, conn.upload)
        return ended

    def end_upload(self, conn: Connection, upload: Upload) -> None:
        """A line with a file has ended: has the file put on disk, then its request is carried out."""
        def done(result: Future) -> None:
            try:
                name = common.decode_file_name(upload.request.arguments[-1])
                upload.request.arguments[-1] = File(name, upload.size, result.result())
            except OSError as problem:
                log.error("a file can't be stored: %s", problem)
                upload.abandon(ChatError("storage"))
            self.settle(conn, None)
        conn.upload, conn.held, conn.answer = upload, upload.request, None
        upload.finish()
        if upload.error:
            self.settle(conn, None)
        else:
            self.workers.run(self.workers.files, done, seal_file, upload.path, self.store.files)

    def forget_upload(self, conn: Connection) -> None:
        """The upload has come to its end; a file that no message names is thrown away by a sweep. Raises its error.

        Until a message names it, it counts as wasted.
        """
        upload, conn.upload, conn.answer = conn.upload, None, None
        if upload.person:
            upload.person.uploads.discard(upload)
            if not self.wasted(upload.person):
                upload.person.wasted, upload.person.wasted_since = 0, self.now
            upload.person.wasted += upload.size
        if upload.error:
            raise upload.error

    def drop_upload(self, conn: Connection) -> None:
        """The connection is gone: so is the file that was coming over it."""
        if conn.upload:
            if not conn.upload.whole:
                conn.upload.abandon(ChatError("internal_error"))
            with contextlib.suppress(ChatError):
                self.forget_upload(conn)

    # -- sessions and events

    def attach(self, conn: Connection, session: Session) -> None:
        """The connection is that session's from here on. Raises ChatError where the person has too many."""
        if conn.session is session:
            return
        self.check_shared(session.person)
        self.detach(conn)
        conn.session = session
        session.person.connections.add(conn)
        if len(session.person.connections) == 1:
            self.tell_presence(session.person)

    @staticmethod
    def check_shared(person: Person) -> None:
        """Raises ChatError where a person has as many connections as one may have."""
        if len(person.connections) >= common.MAX_SHARED:
            raise ChatError("busy")

    def detach(self, conn: Connection) -> None:
        """The connection is nobody's any more; a guest's, if it stays."""
        if conn.session is None:
            return
        conn.deadline = self.now + common.LOGIN_SECONDS
        self.guests.pop(conn, None)
        self.guests[conn] = None                   # behind all others, who came before
        person, conn.session, conn.subscribed = conn.session.person, None, False
        self.subscribers.discard(conn)
        person.connections.discard(conn)
        if not person.connections:
            self.tell_presence(person)

    def tell_presence(self, person: Person) -> None:
        """A person came or went."""
        self.announce("presence", self.acquainted(person), user=person.address, online=bool(person.connections))
        if self.realms:
            self.realms.tell("person", None, user=person.name, online=bool(person.connections))

    def acquainted(self, person: Person | None) -> Collection[Person] | None:
        """Who is told that a person came or went: everybody, or, where that is too many, those who share a chat."""
        if len(self.subscribers) <= common.AUDIENCE:
            return None
        return {conn.session.person for conversation in (person.conversations.values() if person else ())
                for conn in self.audience(conversation.members)}

    def announce(self, kind: str, members: Collection[Person] | None, **fields: object) -> None:
        """Publishes an event that is no message."""
        self.broadcasts.append(Broadcast(members, self.audience(members), [], format_event(kind, **fields)))
        self.listeners += len(self.broadcasts[-1].connections)

    def publish(self, message: Message, members: Collection[Person], more: str = "") -> None:
        """Publishes a message to these people, with `more` as JSON beside its fields."""
        last = self.broadcasts[-1] if self.broadcasts else None
        if last and last.members is members and last.messages and last.more == more:
            last.messages.append(message)
        else:
            self.broadcasts.append(Broadcast(members, self.audience(members), [message], more=more))
            self.listeners += len(self.broadcasts[-1].connections)

    def feed(self, conn: Connection) -> None:
        """Gives a subscriber who fell behind the next messages from the table."""
        frames, weight = [], 0
        person = conn.session.person
        for message in self.store.messages_after(person, conn.cursor):
            if weight > common.OUTPUT_MARK:
                break
            frames.append(common.format_frame(f'"event":"message",{self.show(message, person)}'))
            weight += len(frames[-1])
            conn.cursor = message.id
        if frames:
            conn.output.append(b"".join(frames))
        conn.unsent += weight
        conn.behind = weight > common.OUTPUT_MARK

    def show(self, message: Message, viewer: Person) -> str:
        """A message's fields as this person sees it: one's own to another realm has its state."""
        fields = message.fields()
        if self.realms and message.sender is viewer:
            fields += self.realms.state_fields(message)
        return fields

    def messages_reply(self, newest_first: Iterable[Message], viewer: Person, most: int) -> dict:
        """The reply that lists up to `most` messages, as many as fit, newest last."""
        texts, more = fit((f"{{{self.show(message, viewer)}}}" for message in itertools.islice(newest_first, most + 1)),
                          common.MAX_REPLY)
        return {"messages": json_list(texts[:most][::-1]), "more": more or len(texts) > most}

    # -- auth, register, groups

    def do_auth(self, conn: Connection, _: Person | None, user: str, password: str) -> dict:
        name = user.lower().removesuffix(f"@{self.realm}")
        account = f"{name[:common.MAX_NAME + 1]}@{self.realm}"             # a longer name is nobody's
        self.check_password(conn, account, password)
        return self.log_in(conn, self.store.people[account])

    def check_password(self, conn: Connection, account: str, password: str, new: str | None = None) -> str:
        """Raises ChatError where the password is wrong, and Later until that is known; the hash of the `new` one.

        It is tried only as often as the account may be. An account that does not exist costs the same. A password
        that was changed while this one was compared is not the one that was compared.
        """
        person = self.store.people.get(account)
        stored = person and person.password
        compared, hashed = self.await_answer(conn, lambda: self.begin_check(conn, account, stored, password, new))
        if hashed is None or compared != stored:
            log.warning("failed login of %s from %s", account if stored else "an unknown user", conn.host)
            raise ChatError("bad_credentials")
        return hashed

    def begin_check(self, conn: Connection, account: str, stored: str | None, password: str, new: str | None) -> None:
        """Has a password compared, in a thread, when the account may be tried."""
        throttle = self.throttles.setdefault(account, LoginThrottle())

        def go(error: ChatError | None) -> None:
            if error:
                self.soon.append(lambda: self.end_hash(conn, error))       # the request is held only after this
            else:
                self.workers.run(self.workers.hashes, done, verify_password, password, stored or NO_PASSWORD, new)

        def done(result: Future) -> None:
            if result.exception():
                log.error("a password can't be compared: %s", result.exception())
            hashed = result.result() if stored and not result.exception() else None
            throttle.done(self.now, hashed is not None)
            self.end_hash(conn, (stored, hashed))
        self.begin_hash(conn)
        throttle.ask(self.now, go)

    def begin_hash(self, conn: Connection) -> None:
        """Raises ChatError `busy` while too many wait for a hash; one address leaves the others half of the queue."""
        if self.hashes.total() >= common.HASH_QUEUE or self.hashes[conn.host] >= common.HASH_QUEUE // 2:
            raise ChatError("busy")
        self.hashes[conn.host] += 1

    def end_hash(self, conn: Connection, answer: object) -> None:
        """A hash is done, or refused."""
        self.hashes -= Counter([conn.host])        # what comes to 0 is gone
        self.settle(conn, answer)

    def log_in(self, conn: Connection, person: Person) -> dict:
        """A new session for a person who has proved to be it. Raises ChatError."""
        self.check_shared(person)
        if len(person.sessions) >= common.MAX_SESSIONS:
            in_use = {conn.session for conn in person.connections}
            self.end_session(next((session for session in person.sessions if session not in in_use),
                                  person.sessions[0]))
        token = secrets.token_hex(TOKEN_BYTES)
        session = self.store.add_session(person, hashlib.sha256(token.encode()).digest())
        self.attach(conn, session)
        log.info("%s logged in from %s", person.address, conn.host)
        return {"tokenid": token, "user": person.address}

    def do_register(self, conn: Connection, _: Person | None, user: str, password: str, nama: str, negara: str) -> dict:
        name = common.fold_name(user)
        nama, negara = (text.replace("_", " ").strip() or text for text in (nama, negara))
        if max(len(nama.encode()), len(negara.encode())) > common.MAX_FULL_NAME:
            raise ChatError("too_long")
        if common.clean(nama + negara) != nama + negara:
            raise ChatError("bad_name")
        if name == SYSTEM or f"{name}@{self.realm}" in self.store.people:
            raise ChatError("user_exists")

        def start() -> None:
            self.begin_hash(conn)
            self.workers.run(self.workers.hashes, done, hash_password, password)

        def done(result: Future) -> None:
            self.end_hash(conn, ChatError("storage") if result.exception() else result.result())
        hashed = self.await_answer(conn, start)
        return self.log_in(conn, self.store.add_person(name, self.realm, nama, negara, hashed))

    def do_addgroup(self, conn: Connection, person: Person, group: str) -> dict:
        name, realm = self.address(group)
        if realm != self.realm:
            return self.realms.join_there(conn, person, "addgroup", name, realm)
        self.make_group(name, person)
        return {"message": f"Group {name} dibuat"}

    def make_group(self, name: str, admin: Person) -> None:
        """A new group of this realm. Raises ChatError."""
        if f"{name}@{self.realm}" in self.store.groups:
            raise ChatError("group_exists")
        self.check_groups(admin)
        if admin.made >= common.MAX_GROUPS:
            raise ChatError("busy")
        self.tell_group(self.store.add_group(name, self.realm, admin.address, admin), admin, "created")

    def do_joingroup(self, conn: Connection, person: Person, group: str) -> dict:
        name, realm = self.address(group)
        if realm != self.realm:
            return self.realms.join_there(conn, person, "joingroup", name, realm)
        found = self.group(name)
        if person in found.members:
            raise ChatError("already_member")
        self.check_groups(person)
        self.join(found, person)
        return {"message": f"Bergabung dengan group {name}"}

    @staticmethod
    def check_groups(person: Person) -> None:
        """Raises ChatError where a person is in as many groups as one may be."""
        if sum(address.startswith("group:") for address in person.conversations) >= common.MAX_GROUPS:
            raise ChatError("busy")

    def join(self, group: Conversation, person: Person) -> None:
        """A person who is no member yet becomes one."""
        self.store.add_member(group, person)
        self.tell_group(group, person, "joined")

    def leave(self, group: Conversation, person: Person) -> None:
        """A member is one no more."""
        self.store.remove_member(group, person)
        self.tell_group(group, person, "left")

    def tell_group(self, group: Conversation, person: Person, change: str) -> None:
        """Our people, and the other realms, hear of a group's change."""
        fields = {"group": group.address, "user": person.address, "change": change}
        listeners = None if len(self.subscribers) <= common.AUDIENCE else {
            conn.session.person for conn in self.audience(group.members)} | {person}
        self.announce("group", listeners, **fields)
        if self.realms and group.realm == self.realm:
            self.realms.tell("group", person.realm, **fields)
            self.realms.tell_member(group, person)

    def person(self, name: str) -> Person:
        """A person of this realm. Raises ChatError."""
        person = self.store.people.get(f"{name}@{self.realm}")
        if person is None or person.password is None:
            raise ChatError("user_not_found")
        return person

    def group(self, name: str, realm: str = "") -> Conversation:
        """A group, of this realm where none is named. Raises ChatError."""
        group = self.store.groups.get(f"{name}@{realm or self.realm}")
        if group is None:
            raise ChatError("group_not_found")
        return group

    def group_of(self, person: Person, target: str) -> Conversation:
        """A group of any realm that a person is a member of. Raises ChatError."""
        group = self.group(*self.address(target))
        if person not in group.members:
            raise ChatError("not_member")
        return group

    def address(self, text: str) -> tuple[str, str]:
        """A name with or without its realm -> (name, realm), a realm of the table. Raises ChatError."""
        name, realm = common.parse_address(text, self.realm)
        if realm not in self.table:
            raise ChatError("realm_not_found")
        return name, realm

    # -- sending

    def do_send(self, conn: Connection, person: Person, user: str, body: str | File) -> Sent:
        name, realm = self.address(user)
        return self.send_to(conn, person, [name], realm, body)

    do_sendfile = do_send

    def do_sendgroup(self, conn: Connection, person: Person, group: str, body: str | File) -> Sent:
        found = self.group_of(person, group)
        person.allowance -= 1
        return Sent([self.post(person, found, body)])

    do_sendgroupfile = do_sendgroup

    def send_to(self, conn: Connection, person: Person, names: list[str], realm: str, body: str | File) -> Sent:
        """Sends to people of one realm: to those who exist. Raises ChatError where none does."""
        if realm == self.realm:
            found = [self.store.people[f"{name}@{realm}"] for name in names if f"{name}@{realm}" in self.store.people]
        else:
            found = self.realms.find_people(conn, person, names, realm)
        if not found:
            raise ChatError("user_not_found", *([", ".join(names)] if len(names) > 1 else []))
        self.check_conversations(person, found)
        person.allowance -= len(found)
        messages = [self.post(person, self.store.private(person, other), body) for other in found]
        there = {other.name for other in found}
        return Sent(messages, [name for name in names if name not in there])

    @staticmethod
    def check_conversations(person: Person, others: list[Person]) -> None:
        """Raises ChatError where a person would begin a conversation past the MAX_CONVERSATIONS that one may have."""
        begun = sum(other.address not in person.conversations for other in others)
        if begun and len(person.conversations) + begun > common.MAX_CONVERSATIONS:
            raise ChatError("busy")

    def post(self, sender: Person, conversation: Conversation, body: str | File, ts: int = 0,
             origin: int | None = None) -> Message:
        """Stores a message here, publishes it, and passes it on to the realms that are to have it.

        It is the same for what is sent here, whether to this realm or to another one, and for what comes from there.
        """
        text, file = (body, None) if isinstance(body, str) else (None, body)
        message = self.store.add_message(conversation, sender, ts or self.now_ms, text, file, origin)
        if self.realms is None or (conversation.realm == self.realm and len(conversation.realms) == 1):
            self.publish(message, conversation.members)
        else:
            self.realms.post(message)
        return message

    @staticmethod
    def sent_fields(sent: Sent) -> dict[str, object]:
        """The fields of the reply to a send."""
        last = sent.messages[-1]
        fields: dict[str, object] = {"id": last.id, "uid": last.uid}
        if last.file:
            fields["file"] = last.file_fields()
        if len(sent.messages) + len(sent.refused) > 1:
            fields |= {"ids": [message.id for message in sent.messages],
                       "uids": [message.uid for message in sent.messages]}
        if sent.refused:
            return ChatError("user_not_found", ", ".join(sent.refused), users=sent.refused, **fields).reply()
        return {"message": SENT, **fields}

    def earlier_reply(self, person: Person, tag: str | None) -> dict[str, object] | None:
        """The reply to an earlier send with the same tag, with what holds now."""
        stored = self.store.tagged(person, tag) if tag is not None else None
        if stored is None:
            return None
        reply = json.loads(stored)
        return self.realms.holds_now(reply) if self.realms else reply

    def check_send(self, person: Person | None, body: str | File, count: int) -> None:
        """Raises ChatError where a text is too long, or a person would send too much or too fast."""
        if type(body) is str:
            if len(body) > common.MAX_TEXT // 4 and len(body.encode()) > common.MAX_TEXT:
                raise ChatError("too_long")
        elif person:
            self.check_quota(person, count * body.size)
        if self.limits.rate and person:
            self.check_rate(person, count)

    def check_rate(self, person: Person, count: int) -> None:
        """Raises ChatError where a person sends faster than --max-rate; BURST_SECONDS of it may come at once.

        Whoever posts takes what was sent from the allowance.
        """
        burst = self.limits.rate * common.BURST_SECONDS
        gained = (self.now - person.counted) * self.limits.rate if person.counted else burst
        person.allowance = min(burst, person.allowance + gained)
        person.counted = self.now
        if person.allowance < count:
            raise ChatError("rate_limited", retry_after=1)

    def check_quota(self, person: Person, size: int) -> None:
        """Raises ChatError where a person's files would be past --max-stored with so many bytes more."""
        if self.limits.stored and person.stored + size > self.limits.stored:
            raise ChatError("quota_exceeded", f"{self.limits.stored // common.MIB} MiB")

    # -- passwd, inbox, logout, info

    def do_passwd(self, conn: Connection, person: Person, old: str, new: str) -> dict:
        hashed = self.check_password(conn, person.address, old, new)
        self.store.set_password(person, hashed)
        for session in [session for session in person.sessions if session is not conn.asking]:
            self.end_session(session)
        log.info("%s has a new password", person.address)
        return {"message": "Password diganti"}

    def do_inbox(self, conn: Connection, person: Person, realm: str | None = None) -> dict:
        realms = [realm] if realm else list(self.table)
        page, more = fit(((message, f"{{{self.show(message, person)}}}" if is_new else "")
                          for message, is_new in self.store.inbox(person, realms)), common.MAX_REPLY,
                         lambda row: len(row[1]) or common.LOOK_WEIGHT)
        conn.taking = (person, realms, page[-1][0].id if more else self.store.last_id)
        new = [(message.sender.address, text) for message, text in page if text]
        if realm:
            return {"messages": json_list(text for _, text in new), "more": more}
        senders: dict[str, list[str]] = defaultdict(list)
        for sender, text in new:
            senders[sender].append(text)
        return {"messages": {sender: json_list(texts) for sender, texts in senders.items()}, "more": more}

    def take_inbox(self, conn: Connection) -> None:
        """The reply to an `inbox` has gone out whole: what it held is not new any more, and the next line may come."""
        if conn.taking is None:                    # the turn has failed that made the reply
            return
        (person, realms, id), conn.taking = conn.taking, None
        self.ready[conn] = None
        self.store.take(self.store.person_of[person.id], realms, id)

    def do_logout(self, conn: Connection, person: Person) -> dict:
        self.end_session(conn.asking)
        return {"message": "Logout berhasil"}

    def end_session(self, session: Session) -> None:
        """A session's token ends at once, on every connection."""
        self.store.end_session(session)
        for head in session.routes:
            self.routes.pop(head, None)

        def leave() -> None:
            for conn in [conn for conn in session.person.connections if conn.session is session]:
                self.detach(conn)
        self.on_commit.append(leave)

    def do_info(self, conn: Connection, person: Person | None, realm: str = "", after: str = "") -> dict:
        if person is None:
            raise ChatError("session_not_found")
        _, realm = self.address(f"x@{realm}" if realm else "x")
        if realm != self.realm:
            return self.realms.info(conn, realm, after)
        return self.info_reply(map(Person.describe, self.store.people_after(after)))

    @staticmethod
    def info_reply(users: Iterable[dict], more: bool = False) -> dict:
        """The reply to `info` with as many of these people as fit; `more` where others come behind them."""
        rows, has_more = fit(((user, common.encode_row(user)) for user in users), common.LIST_REPLY,
                             lambda row: len(row[1]))
        return {"message": ", ".join([user["user"] for user, _ in rows if user["online"]]),
                "users": json_list(text for _, text in rows), "more": more or has_more}

    # -- getfile, history, groups, realms, subscribe, help

    def do_getfile(self, conn: Connection, person: Person, file_id: str) -> Frame:
        message = self.store.message(self.number(file_id))
        if message is None or message.file is None or message.id <= message.conversation.members.get(
                person, sys.maxsize):
            raise ChatError("file_not_found")
        if sum(other.streaming for other in conn.session.person.connections) >= common.MAX_UPLOADS:
            raise ChatError("busy")
        try:
            content = (self.store.files / message.file.sha256).open("rb")
        except OSError as problem:
            log.error("a stored file can't be read: %s", problem)
            raise ChatError("storage") from None
        return self.file_reply(conn.tag, message.file, content)

    @staticmethod
    def file_reply(tag: str | None, file: File, content: BinaryIO) -> Iterator[bytes]:
        """The reply to `getfile` in pieces, read from the disk as the socket drains."""
        head = format_reply({"file_name": file.name, "file_size": file.size, "sha256": file.sha256,
                             "file_content": ""}, tag)
        end = len(b'"}') + len(common.FRAME_END)
        with content:
            yield head[:-end]
            yield from common.encode_file(content)
            yield head[-end:]

    @staticmethod
    def number(text: str) -> int:
        """A whole number that a request names. Raises ChatError."""
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ChatError("bad_arguments", text[:20])
        return int(text)

    def do_history(self, conn: Connection, person: Person, target: str, before: str = "", limit: str = "") -> dict:
        most = min(self.number(limit), common.HISTORY_MAX) if limit else common.HISTORY_PAGE
        newest = self.number(before) if before else sys.maxsize
        talk = self.conversation(person, target)
        rows = self.store.messages_before(talk, talk.members[person], newest, most + 1) if talk else []
        return self.messages_reply(rows, person, most)

    def conversation(self, person: Person, target: str) -> Conversation | None:
        """A person's conversation with a user or (`group:NAME`, or where no user is called so) a group."""
        name, realm = self.address(target.removeprefix("group:"))
        address = f"{name}@{realm}"
        found = person.conversations.get(address)
        if not target.startswith("group:") and (found or address in self.store.people):
            return found
        group = person.conversations.get(f"group:{address}")
        if group is None:
            raise ChatError("not_member" if address in self.store.groups else
                            "group_not_found" if target.startswith("group:") else "user_not_found")
        return group

    def do_conversations(self, conn: Connection, person: Person, before: str = "") -> dict:
        newest = self.number(before) if before else sys.maxsize
        places = sorted(((max(talk.last_id, since), talk) for talk in person.conversations.values()
                         if max(talk.last_id, since := talk.members[person]) < newest),
                        key=lambda place: place[0], reverse=True)
        rows, weight, last = [], 0, None
        for at, talk in places:
            full = len(rows) >= common.CONVERSATIONS_PAGE or weight > common.MAX_REPLY
            if full and at != last:                # rows with the same `at` stay together
                return {"conversations": json_list(rows), "more": True}
            last = at
            unread, looked = self.store.unread(talk, person)
            rows.append(self.describe_conversation(talk, person, at, unread))
            weight += len(rows[-1]) + looked * common.LOOK_WEIGHT
        return {"conversations": json_list(rows), "more": False}

    def describe_conversation(self, talk: Conversation, person: Person, at: int, unread: int) -> str:
        """A row of `conversations`, as JSON."""
        since = talk.members[person]
        newest = next(self.store.messages_before(talk, since, sys.maxsize, 1), None) if talk.last_id > since else None
        others = ((other.address, id) for other, id in talk.reads.items() if other is not person and (
            other in talk.members or talk.realm != self.realm != other.realm))     # who is in it there is not known
        fields: dict[str, object] = {"group": talk.address, "name": talk.name} if talk.name else {
            "with": talk.key(person), "name": talk.other(person).nama}
        return encode_json({**fields, "last": Json(f"{{{self.show(newest, person)}}}") if newest else None,
                            "at": at, "unread": unread, "read": talk.reads.get(person, 0),
                            "read_by": dict(itertools.islice(others, common.MAX_MEMBERS_SHOWN))})

    def do_read(self, conn: Connection, person: Person, target: str, id: str) -> dict:
        talk, last = self.conversation(person, target), self.number(id)
        if talk is not None:
            self.mark_read(talk, person, min(last, talk.last_id))
        return {"message": "Ditandai sudah dibaca"}

    def mark_read(self, talk: Conversation, person: Person, id: int) -> None:
        """A person, of any realm, has read a conversation up to here: those who wrote what was read hear of it."""
        before = max(talk.reads.get(person, 0), talk.members.get(person, 0))
        if id <= before:
            return
        passed = list(self.store.messages_before(talk, before, id + 1, common.MAX_UNREAD_COUNT))
        self.store.set_read(talk, person, id)
        uid = passed[0].uid if passed else ""
        for viewer in {message.sender for message in passed} | {person}:
            where = {"group": talk.address} if talk.name else {
                "with": (talk.other(person) if viewer is person else person).address}
            if viewer.realm == self.realm:
                self.announce("read", [viewer], user=person.address, **where, id=id, uid=uid)
        if self.realms and person.realm == self.realm:
            self.realms.tell_read(talk, person, passed)

    def do_search(self, conn: Connection, person: Person, target: str, text: str) -> dict:
        if len(text.encode()) > common.MAX_TEXT:
            raise ChatError("too_long")
        talk = self.conversation(person, target)
        if talk is None:
            return {"messages": [], "more": False}
        since = talk.members[person]

        def start() -> None:
            if self.searches.total() >= common.SEARCH_QUEUE or self.searches[person.id] >= common.SEARCH_QUEUE // 8:
                raise ChatError("busy")
            self.searches[person.id] += 1
            self.workers.run(self.workers.searches, done, self.store.search(talk, since, text))

        def done(result: Future) -> None:
            self.searches[person.id] -= 1
            self.settle(conn, ChatError("storage") if result.exception() else result.result())
        ids = [id for id in self.await_answer(conn, start) if id > since]
        return self.messages_reply(map(self.store.message, ids), person, common.SEARCH_PAGE)

    def do_groups(self, conn: Connection, person: Person, realm: str = "", after: str = "") -> dict:
        _, name = self.address(f"x@{realm}" if realm else "x")
        if name != self.realm:
            return self.realms.groups(conn, person, name, after)
        return self.groups_page(after, person, lambda group: group.realm == self.realm or person in group.members)

    def groups_page(self, after: str, person: Person | None, wanted: Callable[[Conversation], bool],
                    realm: str = "") -> dict:
        """The groups whose addresses come after `after`, as many as fit a reply, with the members (of one realm)."""
        names = self.store.group_names
        after = after if "@" in after or not after else f"{after}@{self.realm}"
        groups = (self.store.groups[names[place]] for place in range(bisect.bisect_right(names, after), len(names)))
        rows, more = fit((self.describe_group(group, person, realm) for group in groups if wanted(group)),
                         common.LIST_REPLY)
        return {"groups": json_list(rows), "more": more}

    @staticmethod
    def describe_group(group: Conversation, person: Person | None, realm: str) -> str:
        """What everybody may know of a group, as JSON; names and addresses need no escapes."""
        members = (member for member in group.members if realm in ("", member.realm))
        names = [f'"{member.address}"' for member in itertools.islice(members, common.MAX_MEMBERS_SHOWN)]
        return (f'{{"group":"{group.address}","admin":"{group.admin}","count":{len(group.members)},'
                f'"members":[{",".join(names)}],"member":{"true" if person in group.members else "false"}}}')

    def do_leavegroup(self, conn: Connection, person: Person, group: str) -> dict:
        found = self.group_of(person, group)
        self.leave(found, person)
        if found.realm != self.realm:
            self.realms.leave_there(found, person)
        return {"message": f"Keluar dari group {found.name if found.realm == self.realm else found.address}"}

    def do_realms(self, conn: Connection, person: Person) -> dict:
        realms = {name: {"address": row.address, "port": row.port, "link": "local", "queued": 0, "rtt_ms": None}
                  for name, row in self.table.items()}
        for name, link in self.realms.links.items() if self.realms else ():
            realms[name] |= self.realms.describe(link)
        return {"realms": realms}

    def do_subscribe(self, conn: Connection, person: Person, after: str = "") -> dict:
        cursor = min(self.number(after), self.store.last_id) if after else self.store.last_id
        session = conn.asking

        self.attach(conn, session)

        def follow() -> None:
            if conn.session is session:
                conn.cursor, conn.subscribed, conn.behind = cursor, True, True # the table feeds it, after this reply
                self.subscribers.add(conn)
        self.on_commit.append(follow)
        return {"last_id": self.store.last_id}

    def do_help(self, conn: Connection, _: Person | None, word: str = "") -> dict:
        return {"message": common.help_text(word)}

    # -- the documented commands between realms

    def do_sendprivaterealm(self, conn: Connection, person: Person, realm: str, user: str, body: str | File) -> Sent:
        return self.do_send(conn, person, f"{user}@{realm}", body)

    do_sendfilerealm = do_sendprivaterealm

    def do_sendgrouprealm(self, conn: Connection, person: Person, realm: str, targets: str, body: str | File) -> Sent:
        before, is_group, group = targets.partition("group:")
        if is_group and not before:
            return self.do_sendgroup(conn, person, f"{group}@{realm}", body)
        _, realm = self.address(f"x@{realm}")
        users = list(dict.fromkeys(user.lower() for user in targets.split(",") if user))
        if not users:
            raise ChatError("bad_arguments", "u1,u2")
        if len(users) > common.MAX_TARGETS:
            raise ChatError("too_long")
        self.check_send(person, body, len(users))
        return self.send_to(conn, person, users, realm, body)

    do_sendgroupfilerealm = do_sendgrouprealm

    def do_getrealminbox(self, conn: Connection, person: Person, realm: str) -> dict:
        _, realm = self.address(f"x@{realm}")
        return self.do_inbox(conn, person, realm)

    def do_addrealm(self, conn: Connection, _: Person | None, name: str, address: str, port: str) -> dict:
        rows = (self.table.get(name.lower()), common.REALMS.get(name.lower()))     # as it is, and as it is documented
        if not any(row and (row.address, str(row.port)) == (address, port) for row in rows):
            raise ChatError("unknown_realm")
        return {"message": f"Realm {name.lower()} ada dalam tabel realm"}


# ---- Server ------------------------------------------------------------------------------------

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(slots=True, eq=False)
class Address:
    """Where connections come from: guests of one address share what one person has."""

    connections: set[Connection] = field(default_factory=set)
    brought: int = 0                               # by its guests, as for a Person


class Server:
    """The loop, and all sockets."""

    def __init__(self, chat: Chat, bind: str, port: int, *, tls: ssl.SSLContext | None = None,
                 peer_tls: ssl.SSLContext | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Listens at once. `tls` is for those who connect here, `peer_tls` for the realms whose rows say so."""
        self.chat = chat
        self.clock = clock
        self.tls = tls
        self.peer_tls = peer_tls
        self.selector = selectors.DefaultSelector()
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.listener = socket.create_server((bind, port), family=family, backlog=socket.SOMAXCONN)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.waker, self.wake_end = socket.socketpair()           # threads and signals end the selector's wait
        self.waker.setblocking(False)
        self.wake_end.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.waker, selectors.EVENT_READ, self.woken)
        self.connections: set[Connection] = set()
        self.addresses: defaultdict[str, Address] = defaultdict(Address)
        self.uploading: set[Connection] = set()    # a file is coming over them
        self.suspects: set[Person | Address] = set()               # whose connections may hold too much here
        self.emptying: set[Connection] = set()     # the kernel has not handed all over: an `inbox`, or last words
        self.accept_again = 0.0                    # when accepting failed: the time to try again
        self.stopping = False

    def wake(self) -> None:
        """Ends the selector's wait; may be called by any thread."""
        with contextlib.suppress(OSError):         # full: it will wake all the same
            self.wake_end.send(b"\0")

    def stop(self) -> None:
        """Has `run` come to its end; may be called by any thread, and by a signal."""
        self.stopping = True
        self.wake()

    def run(self) -> None:
        """Turns until `stop`, then lets what is under way come to its end, and gives everything back."""
        while not self.stopping:
            self.turn()
        if not self.accept_again:
            self.selector.unregister(self.listener)
        self.accept_again = 0.0
        self.listener.close()
        if self.chat.realms:
            self.chat.realms.stop()
        for conn in self.connections:
            if conn.state in (OPEN, HALF):
                conn.state = LAST_WORDS            # no further request
            elif conn.state is CONNECTING:
                conn.state = BROKEN
            self.chat.ready[conn] = None
        deadline = self.clock() + common.DRAIN_SECONDS
        while self.connections and self.clock() < deadline:
            self.turn()
        for conn in list(self.connections):
            self.close(conn, reset=True)
        self.chat.workers.close()
        self.chat.store.close()
        for sock in (self.waker, self.wake_end):
            sock.close()
        self.selector.close()

    def turn(self) -> None:
        """One turn of the loop: read, carry out, commit, write."""
        chat = self.chat
        self.poll(self.timeout())
        now = self.clock()
        chat.tick(now)
        self.check_times(now)
        visited = self.serve_all(now)
        self.poll(0.0)                             # what has come meanwhile shares the COMMIT
        chat.workers.finish()                      # after the last poll, which may have swallowed the wake-up byte
        visited |= self.serve_all(now)
        try:
            chat.store.commit()
        except sqlite3.Error as error:
            self.fail_turn(error)
        chat.release()
        for conn in reversed(list(chat.ready)):    # events before replies: somebody else waits for them
            self.write(conn)
            works = conn.has_work or conn.state.sends and (
                (conn.replies and conn.has_answer) or (conn.has_output and not conn.blocked))
            if conn in visited or not works:
                del chat.ready[conn]
            if works:
                chat.ready[conn] = None            # behind all others, if it was its turn
        self.check_hoards()

    def poll(self, timeout: float) -> None:
        """Waits for what the sockets have, so many seconds at most, and takes it in."""
        for key, mask in self.selector.select(timeout):
            conn = key.data
            if not isinstance(conn, Connection):
                conn()
            elif conn.state is CONNECTING:
                self.connected(conn)
            else:
                if mask & selectors.EVENT_READ:
                    self.receive(conn)
                conn.blocked = 0                   # with TLS, reading may be what a send waited for
                self.chat.ready[conn] = None

    def timeout(self) -> float:
        """Seconds that the selector may wait."""
        chat = self.chat
        if chat.ready or chat.soon or chat.broadcasts:
            return 0.0
        now = self.clock()
        times = [now + 60.0, chat.next_sweep]
        if chat.guests:
            times.append(max(next(iter(chat.guests)).deadline, now + 0.1))
        if self.uploading:
            times.append(now + 1.0)
        if self.emptying or self.stopping:
            times.append(now + 0.01)
        if self.accept_again:
            times.append(self.accept_again)
        if chat.store.blocked:
            times.append(chat.next_try)
        if chat.realms and not self.stopping:
            times.append(chat.realms.next_time(now))
        return max(0.0, min(times) - now)

    def fail_turn(self, error: Exception) -> None:
        """The turn could not be put on disk: it is undone, and those who took part are told, or reset.

        Nothing of it was acknowledged. Replies of earlier turns that wait for another realm's word go on waiting.
        """
        log.error("a turn can't be put on disk: %s", error)
        chat = self.chat
        taking_part = [conn for conn in chat.ready if len(conn.replies) > conn.earlier]
        try:
            chat.abort()
        except sqlite3.Error as problem:
            log.critical("the database can't be read any more: %s", problem)
            self.stopping = True
        for conn in taking_part:
            for tag in conn.undo():
                conn.reply(format_reply(ChatError("storage").reply(), tag))
            if chat.store.blocked:                 # it may be on disk after all: nothing true can be said
                conn.state = BROKEN

    # -- accept, read

    def accept(self) -> None:
        """Takes in new connections; when the process has no more file descriptors, waits before trying again."""
        for _ in range(common.LINES_PER_TURN):
            try:
                sock, address = self.listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    log.error("can't accept connections: %s", error)
                    self.selector.unregister(self.listener)
                    self.accept_again = self.clock() + 0.5
                    return
                continue                           # that one has gone again
            try:
                self.welcome(sock, address[0])
            except OSError:                        # gone before it was looked at
                sock.close()

    def welcome(self, sock: socket.socket, host: str) -> None:
        """A new connection; one too many is told so, and ended. Raises OSError."""
        sock.setblocking(False)
        self.tune(sock)
        limits = self.chat.limits
        count = {address: len(found.connections) for address, found in self.addresses.items()}
        is_one_too_many = sum(count.values()) >= limits.connections or count.get(host, 0) >= limits.per_address > 0
        if self.tls:                               # the first recv and send carry the handshake on
            if is_one_too_many:                    # it would have to shake hands before it can be told
                sock.close()
                return
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        conn = Connection(sock, host)
        conn.deadline = self.clock() + common.LOGIN_SECONDS
        if is_one_too_many:
            conn.reply(ChatError("busy").reply())
            conn.state = LAST_WORDS
            self.chat.ready[conn] = None
        self.connections.add(conn)
        self.addresses[host].connections.add(conn)
        self.chat.guests[conn] = None
        self.watch(conn, selectors.EVENT_READ)

    @staticmethod
    def tune(sock: socket.socket) -> None:
        """No delay for small packets; a dead other side is noticed within 45 s."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", common.KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3),
                            ("TCP_USER_TIMEOUT", (common.KEEPALIVE_SECONDS + 15) * 1000)):
            if hasattr(socket, name):              # not every system has each of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def watch(self, conn: Connection, mask: int) -> None:
        """Asks the selector for these events of a connection."""
        if conn.mask and mask:
            self.selector.modify(conn.sock, mask, conn)
        elif mask:
            self.selector.register(conn.sock, mask, conn)
        elif conn.mask:
            self.selector.unregister(conn.sock)
        conn.mask = mask

    def woken(self) -> None:
        """A thread or a signal has ended the wait."""
        with contextlib.suppress(BlockingIOError):
            while self.waker.recv(4096):
                pass

    def receive(self, conn: Connection) -> None:
        """Reads once what a connection has sent."""
        if not conn.may_read:
            self.watch(conn, conn.mask & ~selectors.EVENT_READ)    # `write` asks for it again
            return
        owner = self.owner(conn)
        if owner and owner.brought > common.PERSON_RECEIVE:
            return                                 # it stays in the kernel until the next turn
        size = (common.RECEIVE_SIZE if conn.session or conn.link else
                common.TLS_RECORD if isinstance(conn.sock, ssl.SSLSocket) else common.GUEST_RECEIVE)
        try:
            data = conn.sock.recv(size)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self.log_loss(conn, error)
            conn.state = BROKEN
            return
        if data:
            conn.buffer.feed(data)
            if owner:
                owner.brought += len(data)
                if owner.brought > common.RECEIVE_SIZE // 4:
                    self.suspects.add(owner)
        else:
            conn.state = HALF
            self.watch(conn, conn.mask & ~selectors.EVENT_READ)

    @staticmethod
    def log_loss(conn: Connection, error: Exception) -> None:
        """A connection is gone: what TLS says of it may be wanted, all else is an everyday matter."""
        log.log(logging.INFO if isinstance(error, ssl.SSLError) else logging.DEBUG, "connection with %s: %s",
                conn.host, error)

    def owner(self, conn: Connection) -> Person | Address | None:
        """Who answers for what a connection takes: a person, for guests their address, for a realm nobody."""
        return None if conn.link else conn.session.person if conn.session else self.addresses[conn.host]

    def check_hoards(self) -> None:
        """Where somebody's connections hold too much here, those are ended which have not read for the longest."""
        for owner in self.suspects:
            owner.brought = 0
            held = {conn: conn.backlog + conn.buffer.weight for conn in owner.connections
                    if conn.state is not BROKEN and self.owner(conn) is owner}
            excess = sum(held.values()) - common.MAX_UNREAD
            while excess > 0:
                idle = min(filter(held.get, held), key=lambda conn: conn.blocked_since or self.chat.now)
                log.info("%s does not read: a connection is ended", getattr(owner, "address", idle.host))
                excess -= held.pop(idle)
                idle.state = BROKEN
                self.chat.ready[idle] = None
        self.suspects.clear()

    # -- carry out

    def serve_all(self, now: float) -> set[Connection]:
        """Carries out requests of the connections that have some, in their order, until the turn has lasted enough.

        One person gets a part of the turn only, over however many connections; so do all guests of one address.
        Returns whose turn it was.
        """
        visited: set[Connection] = set()
        spent: dict[object, float] = {}            # seconds of this turn, for each person
        enough, started = now + common.TURN_SECONDS, now
        for conn in list(self.chat.ready):
            if not conn.has_work:
                continue
            owner = conn.session.person if conn.session else conn.link or conn.host
            used = spent.get(owner, 0.0)
            if used < common.PERSON_SECONDS:
                finished = self.serve(conn, min(enough, started + common.PERSON_SECONDS - used))
                visited.add(conn)
                spent[owner] = used + finished - started
                started = finished
                if finished > enough or self.chat.listeners > common.TURN_LISTENERS:
                    break
        return visited

    def serve(self, conn: Connection, until: float) -> float:
        """Carries out the requests of one connection that has some, at most LINES_PER_TURN. Returns when it ended.

        After `until` none is begun.
        """
        chat, buffer, finished = self.chat, conn.buffer, until
        is_outgoing = conn.is_outgoing
        for _ in range(common.LINES_PER_TURN):
            if conn.held is not None:
                chat.carry_out(conn, conn.held)
            elif buffer.lines:
                line = buffer.take()
                if is_outgoing:
                    chat.realms.hear(conn.link, line)
                else:
                    chat.execute(conn, line)
            elif conn.link:
                log.warning("realm %s sent a line that does not end", conn.link.realm.name)
                conn.state = BROKEN
            else:
                self.uploading.add(conn)
                chat.guarded(chat.take_overlong, conn)
            finished = self.clock()
            if finished > until or chat.listeners > common.TURN_LISTENERS or not conn.has_work:
                break
        return finished

    # -- write

    def write(self, conn: Connection) -> None:
        """Sends what a connection is owed, ends it if that is due, and says what the selector has to wait for."""
        if conn.state is BROKEN:
            self.close(conn, reset=True)
        if not conn.state.sends:
            return
        try:
            self.send(conn)
        except (OSError, sqlite3.Error) as error:
            self.log_loss(conn, error)
            self.close(conn, reset=True)
            return
        if conn.blocked and (owner := self.owner(conn)):
            self.suspects.add(owner)
        if conn.taking and not conn.has_output and not conn.replies:
            self.chat.soon.append(partial(self.check_emptying, conn))
        elif conn.state is not OPEN and conn.is_done:
            self.end(conn)
            return
        wanted = conn.blocked
        if conn.state is OPEN and (conn.mask & selectors.EVENT_READ or conn.may_read):
            wanted |= selectors.EVENT_READ         # where it is not wanted any more, `receive` finds out
        if wanted != conn.mask:
            self.watch(conn, wanted)

    def send(self, conn: Connection) -> None:
        """Sends up to OUTPUT_MARK bytes; `blocked` is what to wait for where the socket takes no more now."""
        sent = conn.blocked = 0
        while sent < common.OUTPUT_MARK:
            chunk = conn.sending or self.next_chunk(conn)
            if not chunk:
                break
            count, wanted = 0, selectors.EVENT_WRITE
            try:
                count = conn.sock.send(chunk)
            except ssl.SSLWantReadError:           # the handshake of TLS waits for the other side
                wanted = selectors.EVENT_READ
            except WOULD_BLOCK:
                pass
            if count < len(chunk):
                conn.sending = memoryview(chunk)[count:]
                conn.blocked = wanted
                if count or not conn.blocked_since:
                    conn.blocked_since = self.chat.now
                return
            conn.sending = b""
            sent += count
            if not (conn.output or conn.behind):
                break
        conn.blocked_since = 0.0

    def next_chunk(self, conn: Connection) -> bytes | None:
        """The next bytes for a socket: all that is there in one piece, or the next piece of a file."""
        output = conn.output
        if not output and conn.behind and conn.subscribed:
            self.chat.feed(conn)
        while output:
            count = len(output)
            if conn.streaming:
                count = next((place for place, frame in enumerate(output) if type(frame) is not bytes), count)
            if count:
                chunk = b"".join(output[:count])
                del output[:count]
                conn.unsent -= len(chunk)
                return chunk
            if chunk := next(output[0], None):
                return chunk
            del output[0]
            conn.streaming = False
        return None

    # -- ends

    def end(self, conn: Connection) -> None:
        """All is said and sent: an orderly close, or, for what may be an old client, a reset (see the states)."""
        if conn.state is HALF or conn.subscribed or conn.link:
            self.close(conn)
            return
        conn.state = DRAINING
        conn.deadline = self.clock() + common.DRAIN_SECONDS
        self.watch(conn, 0)
        self.emptying.add(conn)

    def check_times(self, now: float) -> None:
        """What is due: guests, uploads, those that drain, links, accepting again."""
        guests = self.chat.guests
        while guests and (conn := next(iter(guests))).deadline <= now:
            del guests[conn]
            if conn.session or conn.link:
                continue                           # not a guest any more
            if conn.held:                          # its login is being looked at; it is told of that, and no more
                conn.state = LAST_WORDS
            else:
                self.close(conn, reset=True)
        for conn in list(self.uploading):
            if conn.upload is None or conn.upload.whole:
                self.uploading.discard(conn)
            elif now - conn.upload.heard > common.UPLOAD_SECONDS:
                self.close(conn, reset=True)
        for conn in list(self.emptying):
            self.chat.guarded(self.check_emptying, conn)
        if self.accept_again and now >= self.accept_again:
            self.accept_again = 0.0
            self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        if self.chat.realms and not self.stopping:
            for link in self.chat.realms.due(now):
                self.connect(link, now)

    def check_emptying(self, conn: Connection) -> None:
        """Where the kernel has handed all over, an `inbox` is taken, and a connection that drains is closed."""
        left = unsent_bytes(conn.sock)
        if conn.state is DRAINING:
            if left == 0 or self.chat.now > conn.deadline:
                self.close(conn, reset=True)
        elif left:
            self.emptying.add(conn)
        else:
            self.emptying.discard(conn)
            self.chat.take_inbox(conn)

    def connect(self, link: RealmLink, now: float) -> None:
        """Opens a connection to another realm; `connected` goes on when it is open."""
        family = socket.AF_INET6 if ":" in link.host else socket.AF_INET
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            self.tune(sock)
            code = sock.connect_ex((link.host, link.realm.port))
            if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
                raise OSError(code, "connect")
        except OSError:
            if sock:
                sock.close()
            link.lost(now)
            return
        conn = Connection(sock, link.host, CONNECTING, buffer=common.LineBuffer(common.LINK_LINE), link=link)
        link.connecting(conn, now)
        self.connections.add(conn)
        self.watch(conn, selectors.EVENT_WRITE)

    def connected(self, conn: Connection) -> None:
        """A connection to another realm is open, or has failed."""
        conn.state = BROKEN
        self.chat.ready[conn] = None
        if conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            return
        self.watch(conn, 0)
        if conn.link.realm.tls:
            try:
                conn.sock = self.peer_tls.wrap_socket(conn.sock, server_hostname=conn.link.realm.address,
                                                      do_handshake_on_connect=False)
            except OSError:
                return
        conn.state = OPEN
        conn.link.greet(self.clock())

    def close(self, conn: Connection, reset: bool = False) -> None:
        """Closes a connection, and ends what hung on it."""
        if conn.state is CLOSED:
            return
        conn.state = CLOSED
        self.watch(conn, 0)
        if reset:
            with contextlib.suppress(OSError):
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.sock.close()
        self.connections.discard(conn)
        if not conn.is_outgoing:
            self.addresses[conn.host].connections.discard(conn)
            if not self.addresses[conn.host].connections:
                del self.addresses[conn.host]
        self.uploading.discard(conn)
        self.emptying.discard(conn)
        self.chat.detach(conn)
        self.chat.guests.pop(conn, None)
        self.chat.drop_upload(conn)
        if conn.link:
            self.chat.realms.closed(conn)


def unsent_bytes(sock: socket.socket) -> int | None:
    """Bytes that the kernel has not handed over yet; None on a system that does not tell."""
    try:
        return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    except (AttributeError, OSError):
        return None


# ================================================================================================
# Chapter two: the other realms
# ================================================================================================
#
# What has only to be delivered is queued: a message is a row of the outbox, written in the COMMIT that stored it. The
# link carries the rows until the other realm has said that they are on its disk. What the other realm has to decide is
# asked of it, and the request waits for the answer. The state of a message is derived: it is `queued` while its row is
# in the outbox, `failed` if the other realm refused it, else `delivered`.

# ---- Outbox ------------------------------------------------------------------------------------

TEXTS, FILES = 0, 1            # the two streams of a link; whatever is no file goes with the texts
INSERT_ITEM = "INSERT INTO outbox VALUES(?,?,?,?,?,?)"
OF_STREAM = "peer=? AND stream=?"
ENDLESS = 2**63 - 1            # where the running epoch ends


@dataclass(slots=True)
class Row:
    """One row of the outbox."""

    seq: int
    message: int                   # the id that the message has here; of what is no message, the next one's
    sender: int | None             # the person here whose own message it is
    item: str                      # JSON


@dataclass(slots=True)
class Backlog:
    """What waits in one stream of one realm."""

    count: int = 0
    seq: int = ENDLESS             # of the oldest row, and its message
    message: int = ENDLESS


class Outbox:
    """What waits for other realms, what has come from them, and by which numbers both sides know that.

    One counter numbers all rows. Each start of the server is an epoch of its numbers. A peer is told the epochs and
    where each ended; it answers what it has of the newest that it knows. So a database that was put back to an older
    copy, which begins a new epoch at a lower number, neither loses nor doubles what it still has.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.load()
        self.begin_epoch()
        store.commit()

    def load(self) -> None:
        """Builds what is in memory from the disk: at the start, and after a turn that failed."""
        query = self.store.db.execute
        self.backlogs: dict[tuple[str, int], Backlog] = defaultdict(Backlog)
        for peer, stream, count in query("SELECT peer, stream, COUNT(*) FROM outbox GROUP BY peer, stream").fetchall():
            self.backlogs[peer, stream].count = count
            self._find_first(peer, stream)
        self.has_failed = query("SELECT 1 FROM failed LIMIT 1").fetchone() is not None     # any message, ever
        self.last_seq: int = query("SELECT MAX(MAX(seq), (SELECT COALESCE(MAX(ended), 0) FROM epochs)) FROM "
                                   "(SELECT seq FROM outbox UNION ALL SELECT 0)").fetchone()[0]
        epochs = query("SELECT name, ended FROM epochs ORDER BY number DESC LIMIT ?", (common.MAX_EPOCHS,)).fetchall()
        self.epochs = ",".join([name if not place else f"{name}:{ended}" for place, (name, ended) in enumerate(epochs)])

    def _find_first(self, peer: str, stream: int) -> None:
        row = self.store.db.execute(f"SELECT seq, message FROM outbox WHERE {OF_STREAM} ORDER BY seq LIMIT 1",
                                    (peer, stream)).fetchone()
        backlog = self.backlogs[peer, stream]
        backlog.seq, backlog.message = row or (ENDLESS, ENDLESS)

    def begin_epoch(self) -> None:
        """From here on numbers are of a new epoch. The one before ends with the last number that was given."""
        self.store.flush()
        self.store.write("UPDATE epochs SET ended=? WHERE number=(SELECT MAX(number) FROM epochs)", (self.last_seq,))
        self.store.write("INSERT INTO epochs(name, ended) VALUES(?,?)", (secrets.token_hex(8), self.last_seq))
        self.store.write("DELETE FROM epochs WHERE number<=(SELECT MAX(number) FROM epochs)-?", (common.MAX_EPOCHS,))
        self.first_seq = self.last_seq             # before the first number of this epoch
        self.load()

    # -- what we send

    def add(self, peer: str, stream: int, message: int, sender: int | None, item: str) -> int:
        """Puts an item into the outbox; its number."""
        seq = self.last_seq + 1
        self.store.gather(INSERT_ITEM, (peer, stream, seq, message, sender, item))
        self.last_seq = seq
        backlog = self.backlogs[peer, stream]
        backlog.count += 1
        if backlog.count == 1:
            backlog.seq, backlog.message = seq, message
        return seq

    def rows(self, peer: str, stream: int, after: int, most: int) -> list[Row]:
        """The next rows of a stream."""
        return [Row(*row) for row in self.store.db.execute(
            f"SELECT seq, message, sender, item FROM outbox WHERE {OF_STREAM} AND seq>? ORDER BY seq LIMIT ?",
            (peer, stream, after, most))]

    def remove(self, peer: str, stream: int, last: int, sent: list[Row]) -> list[Row]:
        """Takes the rows up to `last` out, and returns them. `sent` are those of the last batch, to spare a look."""
        backlog = self.backlogs[peer, stream]
        if last < backlog.seq:
            return []
        self.store.flush()
        if sent and sent[0].seq == backlog.seq and sent[-1].seq >= last:
            gone = [row for row in sent if row.seq <= last]
        else:
            gone = [Row(*row) for row in self.store.db.execute(
                f"SELECT seq, message, sender, item FROM outbox WHERE {OF_STREAM} AND seq<=? ORDER BY seq",
                (peer, stream, last))]
        self.store.write(f"DELETE FROM outbox WHERE {OF_STREAM} AND seq<=?", (peer, stream, last))
        self.store.write("UPDATE epochs SET ended=MAX(ended, ?) WHERE number=(SELECT MAX(number) FROM epochs)", (last,))
        backlog.count -= len(gone)
        self._find_first(peer, stream)
        return gone

    def take_back(self, peer: str, stream: int, seq: int) -> None:
        """Removes one row that has not left yet, if it is still there."""
        self.store.flush()
        gone = self.store.write(f"DELETE FROM outbox WHERE {OF_STREAM} AND seq=?", (peer, stream, seq)).rowcount
        self.backlogs[peer, stream].count -= gone
        self._find_first(peer, stream)

    def fail(self, message: int, code: str) -> None:
        """The other realm refused this message."""
        self.store.write("INSERT OR REPLACE INTO failed VALUES(?,?)", (message, code))
        self.has_failed = True

    def failures(self, messages: Iterable[int]) -> dict[int, str]:
        """Those of these messages that the other realm refused, and the code of each."""
        if not self.has_failed:
            return {}
        found = [(id, self.store.db.execute("SELECT code FROM failed WHERE message=?", (id,)).fetchone())
                 for id in messages]
        return {id: row[0] for id, row in found if row}

    # -- what we have received

    def meet(self, peer: str, epochs: list[tuple[str, int]]) -> list[int]:
        """What we have of a peer's streams, by its epochs: [(name, where it ended)], the newest first."""
        known = {epoch: (texts, files) for epoch, texts, files in self.store.db.execute(
            "SELECT epoch, texts, files FROM received WHERE peer=?", (peer,))}
        have = next(([min(number, end) for number in known[epoch]] for epoch, end in epochs if epoch in known), [0, 0])
        for stream in (TEXTS, FILES):              # a refusal past that was of numbers that are given anew now
            self.store.write(f"DELETE FROM refusals WHERE {OF_STREAM} AND seq>?", (peer, stream, have[stream]))
        if len(known) > 2 * common.MAX_EPOCHS:
            for epoch in known.keys() - {epoch for epoch, _ in epochs}:
                self.store.write("DELETE FROM received WHERE peer=? AND epoch=?", (peer, epoch))
        self.set_received(peer, epochs, have, have)
        return have

    def set_received(self, peer: str, epochs: list[tuple[str, int]], before: list[int], have: list[int]) -> None:
        """Notes what we have, under the running epoch, and under the earlier ones as far as their numbers go."""
        for place, (epoch, end) in enumerate(epochs):
            texts, files = row = [min(number, end) for number in have]
            if place and row == [min(number, end) for number in before]:
                return                             # nothing new of this one, nor of those before it
            self.store.write("INSERT INTO received VALUES(?,?,?,?) ON CONFLICT(peer, epoch) DO UPDATE SET "
                             "texts=MAX(texts, excluded.texts), files=MAX(files, excluded.files)",
                             (peer, epoch, texts, files))

    def refuse(self, peer: str, stream: int, seq: int, code: str) -> None:
        """Notes, beside what was received, that an item was refused."""
        self.store.write("INSERT OR REPLACE INTO refusals VALUES(?,?,?,?)", (peer, stream, seq, code))

    def refusals(self, peer: str, stream: int, after: int) -> dict[str, str]:
        """The refused items past `after`; a realm that names `after` has heard of those up to it."""
        heard = (peer, stream, after)
        if self.store.db.execute(f"SELECT 1 FROM refusals WHERE {OF_STREAM} AND seq<=?", heard).fetchone():
            self.store.write(f"DELETE FROM refusals WHERE {OF_STREAM} AND seq<=?", heard)
        return {str(seq): code for seq, code in self.store.db.execute(
            f"SELECT seq, code FROM refusals WHERE {OF_STREAM}", (peer, stream))}


# ---- RealmLink ---------------------------------------------------------------------------------

DOWN, UP = "down", "up"


class Claim(NamedTuple):
    """What a connection says to be: another realm, with its epochs and both sides' fresh nonces."""

    link: RealmLink
    epochs: list[tuple[str, int]]
    their_nonce: str
    our_nonce: str


@dataclass(slots=True, eq=False)
class Question:
    """A request of somebody here that another realm has to answer."""

    conn: Connection
    link: RealmLink
    fields: dict[str, object]
    after: int                     # it goes out when the texts up to this number have been taken
    due: float                     # when it is given up
    seq: int = 0                   # the answer: it counts when the item with this number is here


@dataclass(slots=True)
class Stream:
    """One of a link's two streams, as far as we send it."""

    number: int
    acked: int = 0                                 # the peer has the items up to here
    sent: list[Row] = field(default_factory=list)  # the batch under way
    more: bool = True                              # there may be rows in the outbox
    waiting: dict[int, Waiting] = field(default_factory=dict)      # by number: the reply that waits for its word


@dataclass(slots=True)
class Transfer:
    """A file on its way to another realm."""

    row: Row
    file: File
    offset: int = -1               # bytes that are there; -1: not known yet
    asked: bool = False            # a piece is under way
    sealing: int = 0               # how often it was said that all of it is there, and is being put on disk
    failures: int = 0              # how often that came to nothing
    complete: bool = False         # it is on disk there, or will be refused with its item


class RealmLink:
    """The connection that we open to one other realm. It opens no socket and never sleeps: `Server` does that for it.

    After each COMMIT `pump` sends what may leave. One batch of each stream, and one piece of a file, is under way at a
    time. Requests are answered in order: `expected` says what each answer is about.
    """

    def __init__(self, realms: Realms, realm: Realm, key: bytes | None) -> None:
        self.realms = realms
        self.realm = realm
        self.name = realm.name
        self.host = realm.address                  # looked up now: in the loop it would hold up everybody
        if ":" not in self.host:
            with contextlib.suppress(OSError):
                self.host = socket.gethostbyname(self.host)
        self.key = key
        self.state = DOWN
        self.conn: Connection | None = None        # open, or being opened
        self.next_attempt = 0.0
        self.delay = common.LINK_RETRY_FIRST
        self.heard = self.asked = 0.0              # when something came, when the last ping left
        self.round_trip: float | None = None       # seconds
        self.nonce = ""
        self.expected: deque[tuple[str, object]] = deque()     # the requests that are not answered yet
        self.streams = [Stream(TEXTS), Stream(FILES)]
        self.transfer: Transfer | None = None
        self.rest_until = 0.0                      # no piece and no file's item leaves before
        self.next_epoch = 0.0                      # before that it can't make us begin another one
        self.questions: list[Question] = []        # that have not left yet
        self.silent = False                        # somebody has waited in vain, and nothing was heard since
        # what comes from there
        self.incoming: Connection | None = None    # the connection that the other realm opened to us
        self.epochs: list[tuple[str, int]] = []    # its epochs and where they ended, newest first
        self.received = [0, 0]                     # of each stream
        self.announced: list[Question] = []        # whose answer counts when an item is here
        self.sealing: set[str] = set()             # files that are being put on disk
        self.unnamed: dict[str, float] = {}        # files from there that no item has named yet -> since when

    @property
    def queued(self) -> int:
        """How many items wait for the realm."""
        backlogs = self.realms.outbox.backlogs
        return backlogs[self.name, TEXTS].count + backlogs[self.name, FILES].count

    # -- the state of the connection

    def next_check(self, now: float) -> float:
        """When `check` or an attempt is due, or a rest is over."""
        if self.conn is None:
            return self.next_attempt
        dead = self.heard + common.LINK_DEAD_SECONDS
        if self.state == DOWN:
            return dead
        times = [dead, max(self.heard, self.asked) + common.LINK_PING_SECONDS]
        if self.rest_until > now:
            times.append(self.rest_until)
        return min(times)

    def connecting(self, conn: Connection, now: float) -> None:
        """A connection is being opened."""
        self.conn, self.heard, self.asked = conn, now, now

    def greet(self, now: float) -> None:
        """The connection is open: says who we are."""
        self.heard = now
        self.nonce = secrets.token_hex(16)
        self.ask(f"peer {self.realms.home} {self.realms.outbox.epochs} {self.nonce}", "peer")

    def lost(self, now: float) -> None:
        """The connection is gone: it is tried again after a while, each time a longer one."""
        self.state, self.conn, self.round_trip = DOWN, None, None
        self.next_attempt = now + self.delay * random.uniform(0.8, 1.2)
        self.delay = min(self.delay * 2, common.LINK_RETRY_MOST)
        self.expected.clear()
        self.transfer = None
        self.rest_until = 0.0
        for stream in self.streams:
            stream.sent = []

    def check(self, now: float) -> bool:
        """Asks for a sign of life where it has been quiet; False when the other side is dead."""
        if now - self.heard >= common.LINK_DEAD_SECONDS:
            return False
        if self.state == UP and now - max(self.heard, self.asked) >= common.LINK_PING_SECONDS:
            self.asked = now
            self.ask("ping", "ping", now)
        return True

    def proof(self, role: str, caller: str, callee: str, caller_nonce: str, callee_nonce: str) -> str:
        """HMAC-SHA256 (RFC 2104) over the roles and both fresh nonces; empty without a key."""
        if self.key is None:
            return ""
        text = " ".join(("chat-realm-1", role, caller, callee, caller_nonce, callee_nonce))
        return hmac.new(self.key, text.encode(), hashlib.sha256).hexdigest()

    def is_proof(self, proof: str, *what: str) -> bool:
        """Whether the other side knows the key."""
        return hmac.compare_digest(proof.encode(), self.proof(*what).encode())

    def ask(self, line: str, kind: str, about: object = None) -> None:
        """Sends a request over the link."""
        data = line.encode() + b"\r\n"
        self.conn.output.append(data)
        self.conn.unsent += len(data)
        self.expected.append((kind, about))
        self.realms.chat.ready[self.conn] = None

    # -- what leaves

    def pump(self, now: float) -> None:
        """Sends what may be sent now. Only to be called when the turn is on disk."""
        texts, files = self.streams
        for question in self._next_questions(texts):
            self.questions.remove(question)
            self.ask(f"ask {encode_json(question.fields)}", "ask", question)
        if texts.more and not texts.sent:
            self._deliver(texts, self._next(texts, common.LINK_BATCH))
        if files.more and not files.sent and now >= self.rest_until:
            self._pump_file(files)

    def _next_questions(self, texts: Stream) -> list[Question]:
        """The questions that may leave: a few at a time, so that texts pass between them, and one of each person."""
        asking = [about.conn.session for kind, about in self.expected if kind == "ask"]
        leaving = []
        for question in self.questions:
            if len(asking) < common.LINK_QUESTIONS and question.after <= texts.acked and (
                    question.conn.session not in asking):
                leaving.append(question)
                asking.append(question.conn.session)
        return leaving

    def _next(self, stream: Stream, most: int) -> list[Row]:
        rows = self.realms.outbox.rows(self.name, stream.number, stream.acked, most)
        stream.more = bool(rows)
        return rows

    def _deliver(self, stream: Stream, rows: list[Row]) -> None:
        """Sends a batch: as many of the rows as it may weigh, at least one."""
        items, weight = [], 0
        for row in rows:
            weight += len(row.item)
            if items and weight > common.LINK_BATCH_BYTES:
                break
            items.append(f'{{"seq":{row.seq},{row.item[1:]}')      # the item's JSON, with its number in front
        stream.sent = rows[:len(items)]
        if items:
            self.ask(f"deliver {stream.number} {stream.acked} [{','.join(items)}]", "deliver", stream)

    def _pump_file(self, stream: Stream) -> None:
        """Sends the next piece of a file, or its item, when no text that was sent before it waits any more."""
        if self.transfer is None:
            rows = self._next(stream, 1)
            if not rows:
                return
            self.transfer = Transfer(rows[0], File(**json.loads(rows[0].item)["file"]))
        transfer = self.transfer
        if transfer.complete:
            if self.realms.outbox.backlogs[self.name, TEXTS].seq > transfer.row.seq:
                self._deliver(stream, [transfer.row])
        elif not transfer.asked:
            self._send_piece(transfer)

    def _send_piece(self, transfer: Transfer) -> None:
        file, content = transfer.file, ""
        if transfer.offset >= 0:
            try:
                with (self.realms.chat.store.files / file.sha256).open("rb") as stored:
                    stored.seek(transfer.offset)
                    data = stored.read(min(common.LINK_PIECE, file.size - transfer.offset))
            except OSError as problem:
                log.error("a stored file can't be read: %s", problem)
                data = b""
            if not data and file.size:
                self.give_up(transfer)
                return
            content = f" {binascii.b2a_base64(data, newline=False).decode()}"
        transfer.asked = True
        self.ask(f"piece {file.sha256} {file.size} {max(transfer.offset, 0)}{content}", "piece", transfer)

    def give_up(self, transfer: Transfer) -> None:
        """The file can't be sent: its item fails, and the rest goes on. What that writes is of the next turn."""
        self.streams[FILES].sent = [transfer.row]
        self.realms.chat.soon.append(lambda: self.realms.give_up(self, transfer))

    def hear_piece(self, transfer: Transfer, reply: dict, now: float) -> None:
        """The other realm says how much of a file it has. Raises KeyError, ValueError."""
        transfer.asked = False
        if reply["status"] != "OK":
            if reply["code"] == "too_large":
                transfer.complete = True           # it will be refused with its item
            else:
                transfer.offset, self.rest_until = -1, now + common.LINK_REST
            return
        offset, size = reply["offset"], transfer.file.size
        if type(offset) is not int or not 0 <= offset <= size:
            raise ValueError("offset")
        if reply["complete"] is True:
            transfer.complete = True
        elif reply["sealing"] is True:
            self.rest_until = now + min(common.SEALING_FIRST * 2**transfer.sealing, common.SEALING_MOST)
            transfer.offset, transfer.sealing = -1, min(transfer.sealing + 1, 10)
        else:
            transfer.failures += transfer.sealing > 0
            transfer.sealing = 0
            if transfer.failures > 1:              # what lies here is not what its name says
                self.give_up(transfer)
            elif offset <= transfer.offset:        # nothing was written
                self.rest_until = now + common.LINK_REST
            transfer.offset = offset


# ---- Realms ------------------------------------------------------------------------------------

BOUNCE = "Tidak terkirim ke {target}: {reason}. ({text})"
SHA256 = re.compile("[0-9a-f]{64}")
EPOCH = re.compile("[0-9a-f]{1,32}")
MAX_NUMBER = 2**62             # what a peer's numbers are held against, where we know nothing better


class Missing(Exception):
    """The file that an item names is not here yet."""


@lru_cache(maxsize=4096)
def cut_name(text: str) -> str:
    """A text as the full name of a person: without what steers a terminal, and as long as we would take it."""
    return common.clean(text).encode()[:common.MAX_FULL_NAME].decode(errors="ignore")


class Realms:
    """What we ask and tell the other realms, and what we do for them."""

    def __init__(self, chat: Chat, key: bytes | None) -> None:
        self.chat = chat
        self.store = chat.store
        self.home = chat.realm
        self.outbox = Outbox(chat.store)
        self.links = {name: RealmLink(self, row, key) for name, row in chat.table.items() if name != self.home}
        self.patience: dict[Waiting | Question, None] = {}         # those that wait, the one that is due first in front
        self.under_way: list[tuple[Stream, int]] = []              # what the present request has queued for a peer
        self.news: list[tuple[str | None, bytes]] = []             # events of this turn, and the realm that is not told
        self.poisoned: set[tuple[str, int, int]] = set()           # items that failed a turn: (peer, stream, seq)
        self.heads: dict[tuple[Conversation, Person], str] = {}    # the part of each item that stays the same
        self.marks: dict[tuple[str, Conversation, Person], int] = {}   # the number of the last `read` for a realm

    # -- the turn

    def tick(self) -> None:
        """Whoever has waited long enough is answered."""
        self.under_way.clear()
        now = self.chat.now
        while self.patience and (first := next(iter(self.patience))).due <= now:
            if isinstance(first, Waiting):
                self.answer(first, queued=True)
            else:
                first.link.silent = True
                self.answer_question(first, None)

    def next_time(self, now: float) -> float:
        """When something is due."""
        times = [link.next_check(now) for link in self.links.values()]
        if self.patience:
            times.append(next(iter(self.patience)).due)
        return min(times)

    def due(self, now: float) -> list[RealmLink]:
        """The links that are to be opened now. Those that are dead are ended."""
        for link in self.links.values():
            if link.conn and not link.check(now):
                self.end(link, "it is silent")
        return [link for link in self.links.values() if link.conn is None and now >= link.next_attempt]

    def release(self) -> None:
        """The turn is on disk: news leave, replies whose word has come, and what is queued."""
        for link in self.links.values():
            if link.incoming and self.news:
                frames = [frame for realm, frame in self.news if realm != link.name]
                link.incoming.output.extend(frames)
                link.incoming.unsent += sum(map(len, frames))
                self.chat.ready[link.incoming] = None
                if link.incoming.backlog > common.LINK_UNREAD:
                    log.warning("realm %s does not read its news", link.name)
                    link.incoming.state = BROKEN
            for stream in link.streams:
                while stream.waiting and (seq := next(iter(stream.waiting))) <= stream.acked:
                    self.has_come(stream.waiting.pop(seq))
            if link.state == UP:
                try:
                    link.pump(self.chat.now)
                except (OSError, sqlite3.Error) as error:
                    self.end(link, f"the outbox can't be read: {error}")
        self.news.clear()

    def reload(self) -> None:
        """A turn has failed: what the links had heard is forgotten, and asked for again over new connections."""
        self.outbox.load()
        self.news.clear()
        self.heads.clear()
        self.marks.clear()
        for link in self.links.values():
            for stream in link.streams:
                stream.acked = 0                   # what it said may be undone; it says so again
            for conn in (link.conn, link.incoming):
                if conn:
                    conn.state = BROKEN
                    self.chat.ready[conn] = None

    def stop(self) -> None:
        """The server ends: whoever waits for another realm's word is told how it stands."""
        for link in self.links.values():
            self.stop_waiting(link)

    def end(self, link: RealmLink, reason: str) -> None:
        """Ends the connection to a realm; it is opened anew after a while."""
        log.warning("link to %s: %s", link.name, common.clean(reason)[:200])
        link.conn.state = BROKEN
        self.chat.ready[link.conn] = None

    def closed(self, conn: Connection) -> None:
        """A connection from or to a realm is gone."""
        link = conn.link
        if link.incoming is conn:
            link.incoming = None
        if link.conn is not conn:
            return
        was_up = link.state == UP
        link.lost(self.chat.now)
        self.stop_waiting(link)
        if was_up:
            log.warning("link to %s is down", link.name)
            self.chat.announce("realm", None, realm=link.name, link=DOWN)

    def stop_waiting(self, link: RealmLink) -> None:
        """Nobody waits for this realm's word any longer."""
        for stream in link.streams:
            for waiting in stream.waiting.values():
                self.answer(waiting, queued=True)
            stream.waiting.clear()
        for question in [waits for waits in self.patience if isinstance(waits, Question) and waits.link is link]:
            self.answer_question(question, None)
        link.questions.clear()
        link.announced.clear()

    # -- messages for other realms

    def decides(self, message: Message) -> str | None:
        """The realm that decides about a message of somebody here; None where that is this realm."""
        realm = message.conversation.realm
        return realm if realm != self.home and message.sender.realm == self.home else None

    def destinations(self, message: Message) -> list[str]:
        """The realms that are to have a message of a group of ours: its members', but the sender's."""
        group = message.conversation
        if group.name is None or group.realm != self.home:
            return []
        return [realm for realm in group.realms if realm not in (self.home, message.sender.realm)]

    def post(self, message: Message) -> None:
        """Publishes a message of a conversation that reaches beyond this realm, and queues it for the others."""
        conversation, sender = message.conversation, message.sender
        decides = self.decides(message)
        if decides is None:
            self.chat.publish(message, conversation.members)
        elif conversation.name is None:            # nobody but the sender is here
            self.chat.publish(message, conversation.members, ',"state":"queued"')
        else:
            self.chat.publish(message, [sender], ',"state":"queued"')
            self.chat.publish(message, [member for member in conversation.members if member is not sender])
        destinations = [decides] if decides else self.destinations(message)
        if not destinations:
            return
        stream = TEXTS if message.file is None else FILES
        item = self.item(message, "send" if conversation.name is None else "copy" if decides is None else "post")
        for realm in destinations:
            seq = self.add(realm, stream, message.id, sender.id if decides else None, item)
            if decides:
                self.under_way.append((self.links[realm].streams[stream], seq))

    def item(self, message: Message, do: str) -> str:
        """A message as an item of the outbox, in JSON."""
        conversation, sender = message.conversation, message.sender
        head = self.heads.get((conversation, sender))
        if head is None:
            head = self.heads[conversation, sender] = common.encode_members({
                "do": do, "from": sender.address, "name": sender.nama,
                "to" if do == "send" else "group": conversation.name or conversation.other(sender).name})
        body = (f'"text":{common.encode_text(message.text)}' if message.file is None else
                f'"file":{encode_json(message.file._asdict())}')
        return f'{{{head},"ts":{message.ts},"uid":"{message.uid}",{body}}}'

    def add(self, realm: str, stream: int, message: int, sender: int | None, item: str) -> int:
        """Queues an item for a realm."""
        if realm in self.links:
            self.links[realm].streams[stream].more = True
        return self.outbox.add(realm, stream, message, sender, item)

    def queue(self, realm: str, do: str, person: str, **fields: object) -> int:
        """Queues an item that is no message; its number."""
        item = {"do": do, "from": person, "name": "", "ts": self.chat.now_ms, **fields}
        return self.add(realm, TEXTS, self.store.last_id + 1, None, encode_json(item))

    def tell_read(self, talk: Conversation, person: Person, passed: list[Message]) -> None:
        """Tells the realms of those who wrote what a person here has read, each by the newest message from there.

        A mark that still waits is taken back: the newer one says more.
        """
        newest: dict[str, Message] = {}
        for message in passed:
            if not message.uid.startswith(f"{self.home}:"):
                newest.setdefault(message.sender.realm, message)
        for realm, message in newest.items():
            place = (realm, talk, person)
            self.take_back(realm, self.marks.get(place, 0))
            self.marks[place] = self.queue(realm, "read", person.address, name=person.nama, uid=message.uid)

    def take_back(self, realm: str, seq: int) -> None:
        """Removes an item that has not left yet."""
        link = self.links.get(realm)
        if seq and not (link and any(row.seq == seq for row in link.streams[TEXTS].sent)):
            self.outbox.take_back(realm, TEXTS, seq)

    def state(self, message: Message) -> tuple[str, str]:
        """What became of a message: (`queued`, `delivered` or `failed`, code); empty where it is of this realm."""
        realm = self.decides(message)
        if realm is None:
            return "", ""
        if codes := self.outbox.failures([message.id]):
            return "failed", codes[message.id]
        stream = TEXTS if message.file is None else FILES      # what waits in a stream is its end
        return "queued" if message.id >= self.outbox.backlogs[realm, stream].message else "delivered", ""

    def state_fields(self, message: Message) -> str:
        """The same as a piece of the message's JSON."""
        state, code = self.state(message)
        return (f',"state":"{state}"' if state else "") + (f',"code":"{code}"' if code else "")

    def reply_to(self, conn: Connection, message: Message, reply: dict) -> dict | Waiting:
        """The reply to a send: what is known of it already, or the place for what the other realm will say."""
        if self.decides(message) is None:
            self.under_way.clear()
            return reply
        return self.wait(conn, message, reply) or self.outcome(reply, queued=True)

    def wait(self, conn: Connection, message: Message, reply: dict) -> Waiting | None:
        """The place for a reply that waits for the other realm; None where its word is far off: it is `queued`."""
        places, self.under_way = self.under_way, []
        link = self.links[self.decides(message)]
        if link.state != UP or link.silent or link.queued - len(places) > common.LINK_BATCH:
            return None
        waiting = Waiting(conn, conn.tag, reply, len(places), self.chat.now + common.REALM_REPLY_SECONDS)
        for stream, seq in places:
            stream.waiting[seq] = waiting
        self.patience[waiting] = None
        return waiting

    def outcome(self, reply: dict, queued: bool = False) -> dict:
        """A send's reply with what became of its messages."""
        failed = self.outbox.has_failed and self.outbox.failures(reply.get("ids") or [reply["id"]])
        if failed:
            fields = {name: value for name, value in reply.items() if name not in ("status", "code", "message")}
            users = fields.get("users", [])
            if "ids" in reply:
                messages = [self.store.message(id) for id in failed]
                users = fields["users"] = [*users, *(one.conversation.other(one.sender).name for one in messages)]
            reply = ChatError(next(iter(failed.values())), ", ".join(users), **fields).reply()
        if queued:
            return {**reply, **({} if "status" in reply else {"message": QUEUED}), "queued": True}
        return reply

    def holds_now(self, reply: dict) -> dict:
        """An earlier send's reply with what holds now."""
        messages = [self.store.message(id) for id in reply.get("ids", [reply["id"]])]
        return self.outcome(reply, any(self.state(message)[0] == "queued" for message in messages))

    def has_come(self, waiting: Waiting) -> None:
        """The other realm's word about one more of the items is on disk."""
        waiting.left -= 1
        if not waiting.left:
            self.answer(waiting)

    def answer(self, waiting: Waiting, queued: bool = False) -> None:
        """The reply to a send is known, once."""
        if waiting in self.patience:
            del self.patience[waiting]
            waiting.frame = format_reply(self.outcome(waiting.reply, queued), waiting.tag)
            self.chat.ready[waiting.conn] = None

    # -- the other realm's word

    def word(self, link: RealmLink, stream: Stream, have: int, refused: dict[str, str]) -> None:
        """The other realm has the items up to `have` on disk, but refused some of them."""
        for row in self.outbox.remove(link.name, stream.number, have, stream.sent):
            code = refused.get(str(row.seq)) if refused else None
            if code is not None:
                self.hear_refusal(link, stream, row, code)
            elif row.sender is not None:
                self.tell_state(row, "delivered")
        stream.acked = max(stream.acked, have)
        stream.sent, stream.more = [], True

    def give_up(self, link: RealmLink, transfer: Transfer) -> None:
        """A file can't be sent: its item fails here, and the rest of the stream goes on."""
        stream, row = link.streams[FILES], transfer.row
        if link.transfer is not transfer:          # the link was lost meanwhile: it is tried again
            return
        link.transfer = None
        for gone in self.outbox.remove(link.name, FILES, row.seq, stream.sent):
            self.hear_refusal(link, stream, gone, "storage")
        stream.sent, stream.more = [], True
        if waiting := stream.waiting.pop(row.seq, None):
            self.chat.on_commit.append(lambda: self.has_come(waiting))

    def tell_state(self, row: Row, state: str, **code: str) -> None:
        """Tells a sender what became of a message."""
        sender = self.store.person_of[row.sender]
        if self.chat.subscribers and any(conn.subscribed for conn in sender.connections):
            uid = f"{self.home}:{row.message}"
            self.chat.announce("status", [sender], id=row.message, uid=uid, state=state, **code)

    def hear_refusal(self, link: RealmLink, stream: Stream, row: Row, code: str) -> None:
        """The other realm refused an item. A sender who has heard `queued` gets a message of system@REALM."""
        item, group = json.loads(row.item), None
        if item["do"] == "copy":
            group = self.store.groups.get(f"{item['group']}@{self.home}")
            log.warning("realm %s refused a message of group %s: %s", link.name, item["group"], code)
            if group and code == "group_not_found":            # that realm has lost it: who was in it then is out
                for person in [member for member, since in group.members.items()
                               if member.realm == link.name and since < row.message]:
                    self.chat.leave(group, person)
        elif item["do"] == "member":
            group = self.store.groups.get(f"{item['group']}@{self.home}")
            person = self.store.people.get(f"{item['user']}@{link.name}")
            if group and item["in"] and person in group.members:
                self.chat.leave(group, person)
        if row.sender is None:
            return
        self.outbox.fail(row.message, code)
        self.tell_state(row, "failed", code=code)
        sender, target = self.store.person_of[row.sender], item.get("to") or item["group"]
        other = self.store.people.get(f"{target}@{link.name}")
        if code == "user_not_found" and other and other.met:
            self.store.write("UPDATE people SET met=0 WHERE id=?", (other.id,))
            other.met = False                      # the next time they are asked for again
            self.chat.forget_routes()
        waiting = stream.waiting.get(row.seq)
        if waiting is None or waiting.frame is not None or waiting.conn.state in (BROKEN, CLOSED):
            self.bounce(link, sender, f"{target}@{link.name}", code, item.get("text") or item["file"]["name"])

    def bounce(self, link: RealmLink, sender: Person, target: str, code: str, text: str) -> None:
        """Writes to a sender, who has long heard `queued`, that it came to nothing."""
        system = self.store.people.get(f"{SYSTEM}@{link.name}") or self.store.add_person(
            SYSTEM, link.name, f"Realm {link.name}", "", met=False)
        self.chat.post(system, self.store.private(system, sender),
                       BOUNCE.format(target=target, reason=common.ERRORS[code], text=text[:200]))

    def hear(self, link: RealmLink, line: bytes) -> None:
        """A line that came over a link: an event or a reply. No fault of it ends more than the link."""
        link.heard, link.silent = self.chat.now, False
        if line.strip():                           # else it is the second half of a frame's end
            refusal = self.chat.guarded(self.hear_frame, link, line)
            if refusal:
                self.end(link, str(refusal["message"]))

    def hear_frame(self, link: RealmLink, line: bytes) -> None:
        """Raises ChatError where it is neither an event nor a reply."""
        before = self.store.changes
        try:
            frame = json.loads(line)
            if "event" in frame:
                self.hear_event(link, frame)
            else:
                self.hear_reply(link, frame)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            if self.store.changes != before:       # a fault of ours
                raise
            log.debug("a frame of realm %s", link.name, exc_info=True)
            raise ChatError("realm_refused", f"malformed frame: {type(error).__name__}") from None

    def hear_reply(self, link: RealmLink, reply: dict) -> None:
        """The reply to the oldest request that is not answered yet."""
        kind, about = link.expected.popleft()
        if kind == "ask":
            self.hear_answer(link, about, reply)
            return
        if kind == "piece":
            link.hear_piece(about, reply, self.chat.now)
            return
        if reply["status"] != "OK":
            raise ChatError("realm_refused", f"{kind}: {reply.get('code')}")
        if kind == "peer":
            parties = (self.home, link.name, link.nonce, str(reply["nonce"]))
            if link.key is not None and not link.is_proof(str(reply["proof"]), "callee", *parties):
                raise ChatError("realm_refused")
            link.ask(f"peerproof {link.proof('caller', *parties)}".strip(), "peerproof")
        elif kind == "peerproof":
            self.hear_welcome(link, reply)
        elif kind == "deliver":
            have, refused = self.number(reply["have"]), self.refusals(reply["refused"])
            if self.believes(link, have):
                if about.number == FILES:
                    row, link.transfer = link.transfer.row, None
                    if have < row.seq:             # the file is there no longer
                        link.rest_until = self.chat.now + common.LINK_REST
                self.word(link, about, have, refused)
        elif kind == "ping":
            link.round_trip = self.chat.now - about

    def hear_welcome(self, link: RealmLink, reply: dict) -> None:
        """The other realm has let us in and says what it has: the link is up."""
        refused = [self.refusals(reply["refused"][stream.number]) for stream in link.streams]
        haves = [self.number(reply["have"][stream.number]) for stream in link.streams]
        if not self.believes(link, max(haves)):
            return
        for stream, have, codes in zip(link.streams, haves, refused, strict=True):
            stream.acked = have
            self.word(link, stream, have, codes)
        link.state, link.delay, link.asked = UP, common.LINK_RETRY_FIRST, self.chat.now
        log.info("link to %s is up", link.name)
        self.chat.announce("realm", None, realm=link.name, link=UP)

    @staticmethod
    def refusals(codes: dict[str, str]) -> dict[str, str]:
        """What a realm says of the items that it refused: number -> a code that we know. Raises AttributeError."""
        return {seq: code if code in common.ERRORS else "internal_error"
                for seq, code in codes.items() if isinstance(code, str)}

    def believes(self, link: RealmLink, have: int) -> bool:
        """Whether we ever gave the number that a realm says to have. Else the link ends.

        It may be right all the same, where this machine was put back together with its memory. So a new epoch begins:
        then the other realm says what it has of the earlier one, up to where that ended here.
        """
        if have <= self.outbox.last_seq:
            return True
        self.end(link, "it says to have what was never sent")
        if self.outbox.last_seq > self.outbox.first_seq and self.chat.now >= link.next_epoch:
            link.next_epoch = self.chat.now + common.EPOCH_SECONDS
            self.outbox.begin_epoch()
        return False

    def hear_event(self, link: RealmLink, event: dict) -> None:
        """What another realm tells of its people and groups is passed on, and kept by nobody."""
        if event["event"] == "person":
            user = f"{common.fold_name(event['user'])}@{link.name}"
            audience = self.chat.acquainted(self.store.people.get(user))
            self.chat.announce("presence", audience, user=user, online=event["online"] is True)
        elif event["event"] == "group" and event["change"] in ("created", "joined", "left"):
            name, realm = common.parse_address(event["group"], link.name)
            user = "@".join(common.parse_address(event["user"], link.name))
            group = self.store.groups.get(f"{name}@{link.name}")
            few = len(self.chat.subscribers) <= common.AUDIENCE
            if realm == link.name:
                self.chat.announce("group", None if few else list(group.members) if group else [],
                                   group=f"{name}@{realm}", user=user, change=event["change"])

    # -- questions to other realms

    def ask(self, conn: Connection, realm: str, fields: dict[str, object], after_texts: bool = False) -> dict | None:
        """Another realm's answer; None where the link is down, or none comes in time. Raises Later until it is here.

        With `after_texts` it is asked when the texts that are queued now have been taken.
        """
        link = self.links[realm]
        if link.state != UP and conn.answer is None:
            return None

        def start() -> None:
            after = self.outbox.last_seq if after_texts and self.outbox.backlogs[realm, TEXTS].count else 0
            question = Question(conn, link, fields, after, self.chat.now + common.REALM_REPLY_SECONDS)
            link.questions.append(question)
            self.patience[question] = None
        return self.chat.await_answer(conn, start)

    def answer_question(self, question: Question, value: dict | ChatError | None) -> None:
        """The answer to a question is known, once."""
        if question in self.patience:
            del self.patience[question]
            self.chat.settle(question.conn, value)
            if question in question.link.questions:
                question.link.questions.remove(question)

    def hear_answer(self, link: RealmLink, question: Question, reply: dict) -> None:
        """Another realm has answered. The answer to a join counts when the item that it names is here."""
        if reply["status"] != "OK":
            code = reply.get("code")
            known = isinstance(code, str) and code in common.ERRORS
            self.answer_question(question, ChatError(code if known else "internal_error"))
        elif "seq" in reply:
            question.seq = self.number(reply["seq"])
            link.announced.append(question)
            self.see_announced(link)
        else:
            self.answer_question(question, reply)

    def see_announced(self, link: RealmLink) -> None:
        """Answers the questions whose items have come."""
        for question in [one for one in link.announced if one not in self.patience or one.seq <= link.received[TEXTS]]:
            link.announced.remove(question)
            self.answer_question(question, {})

    def find_people(self, conn: Connection, person: Person, names: list[str], realm: str) -> list[Person]:
        """Those of another realm who exist. Who was never met is asked for, and believed while the link is down."""
        people = {name: self.store.people.get(f"{name}@{realm}") for name in names if common.NAME.fullmatch(name)}
        strangers = [name for name, other in people.items() if other is None or not other.met]
        if strangers:
            answer = self.ask(conn, realm, {"do": "who", "users": strangers})
            confirmed = self.confirmed(answer)
            if answer is None:
                self.believe_in(person, [name for name in strangers if f"{name}@{realm}" not in person.conversations])
            for name in strangers:
                if answer is None:
                    people[name] = people[name] or self.store.add_person(name, realm, name, "", met=False)
                elif name in confirmed:
                    people[name] = self.meet(name, realm, *confirmed[name])
                else:
                    del people[name]
        return [people[name] for name in names if name in people]

    def confirmed(self, answer: dict | None) -> dict[str, tuple[str, str]]:
        """The people whom an answer confirms: name -> (full name, country)."""
        people = {}
        users = answer.get("users") if answer else None
        for name, row in users.items() if isinstance(users, dict) else ():
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                people[name] = self.full_name(row["nama"]), self.full_name(row["negara"])
        return people

    @staticmethod
    def believe_in(person: Person, strangers: list[str]) -> None:
        """Raises ChatError where a sender would write to too many people whom no realm has confirmed."""
        believed = sum(not talk.name and talk.other(person).password is None and not talk.other(person).met
                       for talk in person.conversations.values())
        if believed + len(strangers) > common.MAX_BELIEVED:
            raise ChatError("realm_unreachable")

    def meet(self, name: str, realm: str, nama: str, negara: str = "") -> Person:
        """A person of another realm as that realm tells of them (see `full_name`), added or brought up to date."""
        nama = nama or name
        person = self.store.people.get(f"{name}@{realm}")
        if person is None:
            self.check_people(realm)
            return self.store.add_person(name, realm, nama, negara)
        negara = negara or person.negara
        if (nama, negara, True) != (person.nama, person.negara, person.met):
            self.store.write("UPDATE people SET nama=?, negara=?, met=1 WHERE id=?", (nama, negara, person.id))
            person.nama, person.negara, person.met = nama, negara, True
            for conversation in person.conversations.values():
                conversation.heads.clear()
            self.heads.clear()
        return person

    def check_people(self, realm: str) -> None:
        """Raises ChatError where so many people of a realm are known here that it may have made them up."""
        if self.store.known[realm] >= common.MAX_PEOPLE:
            raise ChatError("busy")

    @staticmethod
    def full_name(text: str) -> str:
        """A name that another realm tells, cut to what we would store ourselves. Raises AttributeError, TypeError."""
        return cut_name(text[:common.MAX_FULL_NAME])

    def join_there(self, conn: Connection, person: Person, do: str, name: str, realm: str) -> dict:
        """Makes or joins a group of another realm, which alone says who is in it."""
        fields = {"do": do, "group": name, "user": person.name, "nama": person.nama, "negara": person.negara}
        answer = self.ask(conn, realm, fields, after_texts=True)
        group = self.store.groups.get(f"{name}@{realm}")
        if answer is None or group is None or person not in group.members:
            raise ChatError("realm_unreachable")
        return {"message": f"Anggota group {group.address}"}

    def leave_there(self, group: Conversation, person: Person) -> None:
        """A person of ours has left a group of another realm."""
        self.queue(group.realm, "leave", person.address, group=group.name)

    def info(self, conn: Connection, realm: str, after: str) -> dict:
        """The people of another realm."""
        def row(user: dict) -> dict:
            return {"user": common.fold_name(user["user"]), "nama": self.full_name(user["nama"]),
                    "negara": self.full_name(user["negara"]), "realm": realm, "online": user["online"] is True}
        answer = self.ask_surely(conn, realm, {"do": "info", "after": after})
        return self.chat.info_reply(self.rows(answer, "users", row), answer.get("more") is True)

    def groups(self, conn: Connection, person: Person, realm: str, after: str) -> dict:
        """The groups of another realm."""
        def row(group: dict) -> str:
            name, _ = common.parse_address(group["group"], realm)
            ours = self.store.groups.get(f"{name}@{realm}")
            members = ["@".join(common.parse_address(member, realm))
                       for member in group["members"][:common.MAX_MEMBERS_SHOWN]]
            admin = "@".join(common.parse_address(group["admin"], realm))
            return encode_json({"group": f"{name}@{realm}", "admin": admin, "count": self.number(group["count"]),
                                "members": members, "member": bool(ours and person in ours.members)})
        answer = self.ask_surely(conn, realm, {"do": "groups", "after": after})
        rows, more = fit(self.rows(answer, "groups", row), common.LIST_REPLY)
        return {"groups": json_list(rows), "more": more or answer.get("more") is True}

    def ask_surely(self, conn: Connection, realm: str, fields: dict[str, object]) -> dict:
        """Another realm's answer. Raises Later until it is here, ChatError where none comes."""
        answer = self.ask(conn, realm, fields)
        if answer is None:
            raise ChatError("realm_unreachable")
        return answer

    @staticmethod
    def rows(answer: dict, name: str, build: Callable[[dict], object]) -> Iterator:
        """The rows of an answer, each built anew from what we believe of it, as they are asked for."""
        for row in answer[name] if isinstance(answer.get(name), list) else ():
            with contextlib.suppress(ChatError, KeyError, TypeError, AttributeError, ValueError):
                yield build(row)

    @staticmethod
    def number(value: object) -> int:
        """A whole number that another realm names. Raises ValueError."""
        if type(value) is not int or not 0 <= value < MAX_NUMBER:
            raise ValueError("number")
        return value

    def describe(self, link: RealmLink) -> dict:
        """What `realms` says of a link."""
        trip = link.round_trip
        return {"link": link.state, "queued": link.queued, "rtt_ms": None if trip is None else round(trip * 1000, 2)}

    def tell(self, kind: str, not_to: str | None, **fields: object) -> None:
        """Tells the other realms, but one, of somebody or something here."""
        self.news.append((not_to, format_event(kind, **fields)))

    def tell_member(self, group: Conversation, person: Person) -> None:
        """Tells a person's realm whether they are in a group of ours; only that changes what is known there."""
        if person.realm != self.home:
            self.queue(person.realm, "member", f"{SYSTEM}@{self.home}", group=group.name, user=person.name,
                       admin=group.admin, **{"in": person in group.members})

    # -- what they ask of us

    def do_peer(self, conn: Connection, _: Person | None, name: str, epochs: str, nonce: str) -> dict:
        link = self.links.get(name)
        if link is None or not 16 <= len(nonce) <= 128 or (link.key is None and conn.host != link.host):
            raise self.refused(conn, name)
        conn.claim = Claim(link, self.parse_epochs(epochs), nonce, secrets.token_hex(16))
        return {"nonce": conn.claim.our_nonce,
                "proof": link.proof("callee", name, self.home, nonce, conn.claim.our_nonce)}

    @staticmethod
    def parse_epochs(text: str) -> list[tuple[str, int]]:
        """`ID,ID:END,…` -> [(name, where it ended)], newest first. Raises ChatError."""
        epochs = []
        for word in text.split(","):
            name, colon, end = word.partition(":")
            if not EPOCH.fullmatch(name) or bool(colon) != bool(epochs) or len(epochs) >= common.MAX_EPOCHS:
                raise ChatError("bad_arguments", "EPOCHS")
            epochs.append((name, Chat.number(end) if colon else ENDLESS))
        return epochs

    def refused(self, conn: Connection, name: str) -> ChatError:
        """Somebody who is not the realm that it says to be."""
        log.warning("refused a connection from %s that says to be realm %r", conn.host, name[:common.MAX_NAME])
        conn.state = LAST_WORDS
        return ChatError("realm_refused")

    def do_peerproof(self, conn: Connection, _: Person | None, proof: str = "") -> dict:
        claim, conn.claim = conn.claim, None
        if claim is None:
            raise self.refused(conn, "")
        link, name = claim.link, claim.link.name
        if link.key is not None and not link.is_proof(proof, "caller", name, self.home, claim.their_nonce,
                                                      claim.our_nonce):
            raise self.refused(conn, name)
        have = self.outbox.meet(name, claim.epochs)
        if link.incoming:                          # the other side has given that one up
            link.incoming.state = BROKEN
            self.chat.ready[link.incoming] = None
        conn.link, link.incoming, conn.buffer.limit = link, conn, common.LINK_LINE
        link.epochs, link.received = claim.epochs, have
        link.next_attempt = min(link.next_attempt, self.chat.now)  # it is there: we need not wait with our own call
        link.delay = common.LINK_RETRY_FIRST
        return {"have": have, "refused": [self.outbox.refusals(name, stream, 0) for stream in (TEXTS, FILES)]}

    def do_deliver(self, conn: Connection, _: Person | None, stream: str, after: str, items: str) -> dict:
        link, which, before = conn.link, Chat.number(stream), Chat.number(after)
        try:
            batch = json.loads(items)
            sequence = [item["seq"] for item in batch] if type(batch) is list else [0]
        except (ValueError, TypeError, KeyError, RecursionError):
            sequence = [0]
        if (which not in (TEXTS, FILES) or not all(type(seq) is int and 0 < seq < MAX_NUMBER for seq in sequence)
                or len(sequence) > common.LINK_BATCH
                or len(self.outbox.refusals(link.name, which, before)) > 2 * common.LINK_BATCH):
            conn.state = LAST_WORDS
            log.warning("realm %s sent a batch that is none", link.name)
            raise ChatError("bad_arguments")
        have, codes = list(link.received), Counter()
        for item in batch if before <= have[which] else ():        # else there is a gap: we say what we have
            if item["seq"] > have[which]:
                try:
                    code = self.receive(link, which, item)
                except Missing:
                    break
                have[which] = item["seq"]
                if code:
                    codes[code] += 1
                    self.outbox.refuse(link.name, which, item["seq"], code)
        if codes:
            log.info("refused items of realm %s: %s", link.name, dict(codes))
        if have != link.received:
            self.outbox.set_received(link.name, link.epochs, link.received, have)
            link.received = have
            self.see_announced(link)
        return {"have": have[which], "refused": self.outbox.refusals(link.name, which, before)}

    def receive(self, link: RealmLink, stream: int, item: dict) -> str | None:
        """Carries out one item of another realm; returns the code of the refusal, if any. Raises Missing.

        An item that fails a turn is refused when it comes again.
        """
        place, before = (link.name, stream, item["seq"]), self.store.changes
        if place in self.poisoned:
            return "internal_error"
        try:
            return self.carry_out(link.name, item)
        except ChatError as error:
            if error.code == "storage":            # not the item's fault: the link tries again later
                raise
            if self.store.changes == before:
                return error.code
            self.poisoned.add(place)
            raise RuntimeError("a refusal after a write") from error
        except (Missing, sqlite3.Error):
            raise
        except Exception as error:
            if self.store.changes == before:
                log.warning("realm %s sent an item that is none: %s", link.name, type(error).__name__)
                return "bad_arguments"
            self.poisoned.add(place)
            raise

    def carry_out(self, realm: str, item: dict) -> str | None:
        """What a person of another realm does here; the code of a refusal that had something to write.

        Raises ChatError for any other refusal, and other errors where the item is malformed.
        """
        do, nama = item["do"], self.full_name(item["name"])
        name, home = common.parse_address(item["from"], realm)
        if home == self.home or home not in self.chat.table or (home != realm and do != "copy"):
            raise ChatError("realm_refused")       # nobody else speaks for our people
        sender = self.store.people.get(f"{name}@{home}")
        if do in ("send", "post", "copy"):
            return self.take_message(realm, item, sender, name, home, nama)
        if do == "member":
            self.change_member(realm, item)
        elif do == "leave":
            self.let_go(self.chat.group(common.fold_name(item["group"])), sender)
        elif do == "read":
            self.hear_read(item, name, realm, nama)
        else:
            raise ChatError("unknown_command")
        return None

    def take_message(self, realm: str, item: dict, sender: Person | None, name: str, home: str,
                     nama: str) -> str | None:
        """A message of another realm: to a person here, to a group here, or to our members of a group there."""
        do, ts, body = item["do"], item["ts"], self.body_of(item, realm, sender)
        ts = ts if type(ts) is int and 0 < ts < 253_402_300_800_000 else self.chat.now_ms      # the year 10000
        origin = self.origin_of(item, home)
        if do == "send":
            other = self.chat.person(common.fold_name(item["to"]))
            sender = self.meet(name, home, nama)
            conversation = self.store.private(sender, other)
        elif do == "post":
            conversation = self.chat.group(common.fold_name(item["group"]))
            if sender not in conversation.members:
                self.let_go(conversation, sender)
                return "not_member"
        else:
            conversation = self.chat.group(common.fold_name(item["group"]), realm)
            if not conversation.members:           # nobody here is in it any more
                raise ChatError("group_not_found")
            sender = sender or self.meet(name, home, nama)
        self.chat.post(sender, conversation, body, ts, origin)
        return None

    def let_go(self, group: Conversation, person: Person | None) -> None:
        """A person of another realm is in a group of ours no more; where they were not, their realm is told so."""
        if person in group.members:
            self.chat.leave(group, person)
        elif person:
            self.tell_member(group, person)

    def change_member(self, realm: str, item: dict) -> None:
        """The realm of a group says that a person of ours is in it, or out of it. Raises ChatError."""
        name, is_in = common.fold_name(item["group"]), item["in"]
        person = self.chat.person(common.fold_name(item["user"]))
        admin = "@".join(common.parse_address(item["admin"], realm))
        group = self.store.groups.get(f"{name}@{realm}")
        if type(is_in) is not bool:
            raise ValueError("in")
        if is_in and (group is None or person not in group.members):
            self.chat.check_groups(person)
            self.chat.join(group or self.store.add_group(name, realm, admin), person)
        elif not is_in and group and person in group.members:
            self.chat.leave(group, person)

    def hear_read(self, item: dict, name: str, realm: str, nama: str) -> None:
        """A person of another realm has read a message of somebody here. Raises ChatError."""
        message = self.store.message(self.origin_of(item, self.home))
        if message is None or message.sender.realm != self.home:
            raise ChatError("user_not_found")
        talk, reader = message.conversation, self.store.people.get(f"{name}@{realm}")
        if reader not in talk.members and (not talk.name or talk.realm == self.home):
            raise ChatError("not_member")          # of a group elsewhere we know the members of our own realm only
        self.chat.mark_read(talk, reader or self.meet(name, realm, nama), message.id)

    @staticmethod
    def origin_of(item: dict, realm: str) -> int:
        """The id that a message has in its sender's realm. Raises ValueError."""
        prefix, _, id = item["uid"].partition(":")
        number = Chat.number(id)
        if prefix != realm or not 0 < number < MAX_NUMBER:
            raise ValueError("uid")
        return number

    def body_of(self, item: dict, realm: str, sender: Person | None) -> str | File:
        """The text, or the file, of another realm's message. Raises ChatError, and Missing without the file."""
        if "file" not in item:
            item["text"].encode()                  # what cannot be encoded is no text
            self.chat.check_send(None, item["text"], 1)
            return item["text"]
        name, size, sha256 = (item["file"][key] for key in File._fields)
        if not SHA256.fullmatch(sha256):
            raise ValueError("sha256")
        if self.number(size) > self.chat.limits.file:
            raise ChatError("too_large")
        file = File(common.decode_file_name(common.encode_file_name(name)), size, sha256)
        if sha256 in self.links[realm].sealing:    # it is here when the loop has heard so
            raise Missing
        self.links[realm].unnamed.pop(sha256, None)
        if sender:
            self.chat.check_quota(sender, size)
        try:
            if (self.store.files / sha256).stat().st_size != size:
                raise ValueError("size")
        except OSError:
            raise Missing from None
        return file

    def do_piece(self, conn: Connection, _: Person | None, sha256: str, size: str, offset: str,
                 content: str = "") -> dict:
        link, whole, start = conn.link, Chat.number(size), Chat.number(offset)
        if not SHA256.fullmatch(sha256):
            raise ChatError("bad_arguments")
        if whole > self.chat.limits.file:
            raise ChatError("too_large")
        data = common.decode_base64(content)
        if sha256 in link.sealing:
            return {"offset": whole, "complete": False, "sealing": True}
        if (self.store.files / sha256).exists():
            return {"offset": whole, "complete": True, "sealing": False}
        try:
            have = self.write_part(link, sha256, whole, start, data)
        except OSError as problem:
            log.error("a file of realm %s can't be written: %s", link.name, problem)
            raise ChatError("storage") from None
        if have == whole:
            self.seal_part(link, sha256)
        return {"offset": have, "complete": False, "sealing": have == whole}

    def write_part(self, link: RealmLink, sha256: str, size: int, offset: int, data: bytes) -> int:
        """Appends a piece of a file where it fits; how many bytes are here now. Raises OSError, ChatError."""
        path = self.store.files / f"part-{link.name}-{sha256}"
        if not path.exists():
            self.make_room(link)
        with path.open("ab", buffering=0) as part:
            have = part.tell()
            if offset == have and have + len(data) <= size:
                append_to_file(part, data, have)
                have += len(data)
            return have

    def make_room(self, link: RealmLink) -> None:
        """A new file comes from a realm: of LINK_FILES that no item has named yet the oldest unfinished one goes."""
        since = self.chat.now - common.SWEEP_AGE
        link.unnamed = {sha256: when for sha256, when in link.unnamed.items() if when > since}
        parts = self.store.files.glob(f"part-{link.name}-" + 64 * "?")         # not those of a realm `NAME-b`
        parts = sorted(parts, key=lambda path: path.stat().st_mtime)
        parts = [path for path in parts if path.name.rpartition("-")[2] not in link.sealing]
        if len(parts) + len(link.sealing) + len(link.unnamed) >= common.LINK_FILES:
            if not parts:
                raise ChatError("storage")
            parts[0].unlink(missing_ok=True)

    def seal_part(self, link: RealmLink, sha256: str) -> None:
        """A file from a realm is whole: has it put on disk."""
        def done(result: Future) -> None:
            link.sealing.discard(sha256)
            if result.exception():
                log.error("a file of realm %s can't be stored: %s", link.name, result.exception())
            else:
                link.unnamed[sha256] = self.chat.now
        link.sealing.add(sha256)
        path = self.store.files / f"part-{link.name}-{sha256}"
        self.chat.workers.run(self.chat.workers.files, done, seal_file, path, self.store.files, sha256)

    def do_ask(self, conn: Connection, _: Person | None, question: str) -> dict:
        before = self.store.changes
        try:
            fields = json.loads(question)
            answers = {"who": self.answer_who, "info": self.answer_info, "groups": self.answer_groups,
                       "addgroup": self.answer_join, "joingroup": self.answer_join}
            return answers[fields["do"]](conn.link.name, fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if self.store.changes != before:       # a fault of ours
                raise
            raise ChatError("bad_arguments") from None

    def answer_who(self, realm: str, fields: dict) -> dict:
        """Which of these people exist here."""
        people = [self.store.people.get(f"{name}@{self.home}") for name in fields["users"][:common.MAX_TARGETS]]
        return {"users": {person.name: {"nama": person.nama, "negara": person.negara} for person in people if person}}

    def answer_info(self, realm: str, fields: dict) -> dict:
        """The people of this realm."""
        return self.chat.info_reply(map(Person.describe, self.store.people_after(fields["after"])))

    def answer_groups(self, realm: str, fields: dict) -> dict:
        """The groups of this realm, with their members of the realm that asks."""
        return self.chat.groups_page(fields["after"], None, lambda group: group.realm == self.home, realm)

    def answer_join(self, realm: str, fields: dict) -> dict:
        """Makes or joins a group here; the answer is the number of the item that says so. Twice is no error."""
        name, user = common.fold_name(fields["group"]), common.fold_name(fields["user"])
        nama, negara = self.full_name(fields["nama"]), self.full_name(fields["negara"])
        group = self.store.groups.get(f"{name}@{self.home}")
        if fields["do"] == "addgroup" and group and group.admin != f"{user}@{realm}":
            raise ChatError("group_exists")
        if fields["do"] == "joingroup":
            group = self.chat.group(name)
        person = self.meet(user, realm, nama, negara)
        if group is None:
            self.chat.make_group(name, person)
        elif person not in group.members:
            self.chat.check_groups(person)
            self.chat.join(group, person)
        else:
            self.tell_member(group, person)
        return {"seq": self.outbox.last_seq}

    def do_ping(self, conn: Connection, _: Person | None) -> dict:
        return {}


# ---- main --------------------------------------------------------------------------------------

DEFAULT_USERS = (
    ("messi", "Lionel Messi", "Argentina"),
    ("henderson", "Jordan Henderson", "Inggris"),
    ("lineker", "Gary Lineker", "Inggris"),
)
DEFAULT_PASSWORD = "surabaya"


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; each option may also come from the environment."""
    parser = argparse.ArgumentParser(prog="ChatServer.py", description="The chat server of one realm.")
    option = common.add_option
    option(parser, "--realm", default=common.realm_of_folder(Path(__file__).resolve().parent.name), metavar="NAME",
           help="which row of the realm table this machine is (that of the program's folder)")
    option(parser, "--bind", default="0.0.0.0", metavar="ADDRESS", help="the address to listen at (0.0.0.0)")
    option(parser, "--port", type=int, metavar="N", help="the port to listen at (the table's); 0 picks a free one")
    option(parser, "--data", type=Path, metavar="DIR", help="where the database and the files lie (FOLDER/data)")
    option(parser, "--peer", action="append", default=[], metavar="NAME=[tls:]HOST:PORT",
           help="where a realm is, instead of what the table says; may be repeated")
    option(parser, "--local", action="store_true", help="every realm is on this computer, at 127.0.0.1")
    option(parser, "--realm-key", type=Path, metavar="FILE", help="the key by which the realms know each other")
    option(parser, "--no-default-users", action="store_true", help="leave out the documented users")
    option(parser, "--max-file", type=int, default=common.MAX_FILE // common.MIB, metavar="MIB",
           help=f"the largest file, in MiB ({common.MAX_FILE // common.MIB})")
    option(parser, "--max-stored", type=int, default=common.MAX_STORED // common.MIB, metavar="MIB",
           help=f"files that one user may have stored, in MiB ({common.MAX_STORED // common.MIB}); 0: no limit")
    option(parser, "--max-rate", type=int, default=0, metavar="N", help="messages that one user may send in a second, "
           f"{common.BURST_SECONDS} seconds' worth at once (0: no limit)")
    option(parser, "--max-connections", type=int, default=common.MAX_CONNECTIONS, metavar="N",
           help=f"connections in all ({common.MAX_CONNECTIONS})")
    option(parser, "--max-per-address", type=int, default=common.MAX_PER_ADDRESS, metavar="N",
           help=f"connections from one address ({common.MAX_PER_ADDRESS}); 0: no limit")
    option(parser, "--tls-cert", type=Path, metavar="FILE", help="the server's certificate: clients then use --tls")
    option(parser, "--tls-key", type=Path, metavar="FILE", help="the certificate's private key")
    option(parser, "--tls-ca", type=Path, metavar="FILE", help="who vouches for the certificates of other realms")
    option(parser, "--log-level", default="info", choices=["debug", "info", "warning", "error"],
           help="how much to log, on standard error (info)")
    parser.add_argument("--make-realm-key", type=Path, metavar="FILE", help="write a new realm key there, and end")
    parser.add_argument("--backup", type=Path, metavar="FILE", help="copy the database there, also of a running server")
    parser.add_argument("--check", action="store_true", help="verify the database and every stored file")
    options = parser.parse_args(arguments)
    try:
        complete(options)
    except (ValueError, ChatError, OSError) as error:
        parser.error(str(error))
    return options


def complete(options: argparse.Namespace) -> None:
    """Makes of the options what the parts are built with. Raises ValueError, ChatError, OSError."""
    options.table = common.realm_table(options.local, options.peer)
    options.realm = options.realm.lower()
    if options.realm not in options.table:
        raise ValueError(f"the realm table has no {options.realm!r}: {', '.join(options.table)}")
    options.key = options.realm_key.read_bytes().strip() if options.realm_key else None
    if options.key is not None and len(options.key) < 16:
        raise ValueError(f"{options.realm_key} holds no key: 16 bytes at least")
    options.tls = options.peer_tls = None
    if options.tls_cert:
        options.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        options.tls.load_cert_chain(options.tls_cert, options.tls_key)
    if any(realm.tls for realm in options.table.values()):
        options.peer_tls = ssl.create_default_context(cafile=options.tls_ca)


def build(options: argparse.Namespace, *, clock: Callable[[], float] = time.monotonic,
          wall: Callable[[], float] = time.time) -> Server:
    """A server that listens already, made of the parts above. Raises StoreRefused, OSError, sqlite3.Error."""
    row = options.table[options.realm]
    store = Store(options.data or common.ROOT / row.folder / "data", row.name)
    if not store.people and not options.no_default_users:
        hashed = hash_password(DEFAULT_PASSWORD)
        for name, nama, negara in DEFAULT_USERS:
            store.add_person(name, row.name, nama, negara, hashed)
        store.commit()
        log.warning("made the documented users with the documented password; --no-default-users leaves them out")
    if options.key is None and len(options.table) > 1:
        log.warning("no realm key: a realm is believed by its address alone")
    most = max(raise_descriptor_limit() - common.SPARE_DESCRIPTORS, 1)
    limits = Limits(options.max_file * common.MIB, options.max_stored * common.MIB, options.max_rate,
                    min(options.max_connections, most), options.max_per_address)
    workers = Workers(lambda: server.wake())
    chat = Chat(row.name, options.table, store, workers, key=options.key, limits=limits, wall=wall)
    port = row.port if options.port is None else options.port
    server = Server(chat, options.bind, port, tls=options.tls, peer_tls=options.peer_tls, clock=clock)
    gc.freeze()                    # what was loaded stays: looking through it again and again would hold up the loop
    gc.set_threshold(25_000)       # objects: more than a turn makes, so that none of its short-lived ones is looked at
    return server


def main(arguments: list[str] | None = None) -> int:
    """Runs a server until SIGTERM or Ctrl-C; returns the exit status."""
    options = parse_options(arguments)
    logging.basicConfig(level=options.log_level.upper(), stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(message)s")
    data = options.data or common.ROOT / options.table[options.realm].folder / "data"
    if options.make_realm_key:
        return make_realm_key(options.make_realm_key)
    if options.backup:
        return backup(data, options.backup)
    if options.check:
        return check(data)
    try:
        server = build(options)
    except (StoreRefused, sqlite3.Error) as error:
        sys.exit(f"ChatServer.py: {error}")
    except OSError as error:
        port = options.port or options.table[options.realm].port
        sys.exit(f"ChatServer.py: can't listen at {options.bind}:{port}, or use {data}: {error.strerror}")
    signal.set_wakeup_fd(server.wake_end.fileno(), warn_on_full_buffer=False)
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), lambda *_: server.stop())
    print(f"realm {options.realm} listening on {options.bind}:{server.port}", flush=True)
    server.run()
    log.info("stopped")
    return 0


def raise_descriptor_limit() -> int:
    """Takes as many file descriptors as the system allows this process; says how many."""
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard if hard != resource.RLIM_INFINITY else sys.maxsize
    except (AttributeError, ValueError, OSError):
        return 512                                 # what select can do on Windows


def make_realm_key(path: Path) -> int:
    """Writes a new realm key that only its owner can read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        sys.exit(f"ChatServer.py: {path}: {error.strerror}")
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32) + "\n")
    print(f"made {path}; copy it to every realm's machine, and start the servers with --realm-key")
    return 0


def backup(data: Path, path: Path) -> int:
    """Copies the database as it is at one moment, while a server may be using it. The files lie in data/files."""
    if not (data / "chat.db").exists() or path.exists():
        sys.exit(f"ChatServer.py: there is no {data / 'chat.db'}, or there is a {path} already")
    with contextlib.closing(sqlite3.connect(data / "chat.db")) as source:
        with contextlib.closing(sqlite3.connect(path)) as target:
            source.backup(target)
    print(f"copied {data / 'chat.db'} to {path}; the files that it names lie in {data / 'files'}")
    return 0


def check(data: Path) -> int:
    """Verifies the database and the SHA-256 of every file that it names; the exit status says whether all is well."""
    problems = 0
    if not (data / "chat.db").exists():
        sys.exit(f"ChatServer.py: there is no {data / 'chat.db'}")
    with contextlib.closing(sqlite3.connect(data / "chat.db")) as db:
        try:
            problems += db.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok"
            files = db.execute("SELECT DISTINCT sha256, size FROM files").fetchall()
        except sqlite3.DatabaseError as error:
            print(f"{data / 'chat.db'}: {error}")
            return 1
    for sha256, size in files:
        path = data / "files" / sha256
        found = file_digest(path) if path.exists() and path.stat().st_size == size else None
        if found != sha256:
            problems += 1
            print(f"{path}: {'missing or damaged' if found is None else 'damaged'}")
    print(f"{data / 'chat.db'} and {len(files)} files: {'well' if not problems else f'{problems} problems'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
