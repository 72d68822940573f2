"""The chat server of one realm: `python3 ChatServer.py` on the realm's machine. Standard library only.

The parts, each using only the parts above it:
  model         Person, Conversation, Session, Message: what the tables hold, as objects in memory
  Store         the database: one method per question, one COMMIT per turn of the loop
  Workers       the few threads, for what would hold up the loop: password hashes, the syncing of files
  Upload        a file on its way from a request line to the disk
  Connection    one socket's bytes in and replies out, in order
  RealmLink     the way to one other realm: handshake, durable outbox, files in pieces
  Chat          one do_<word> for each row of the command table in common.py
  Server        the loop: the only part that touches sockets
  main          options and start

Two rules. Everything else runs in one thread. And a turn of the loop is: read, carry out, one COMMIT, write; so nothing
that a turn decided leaves the process before it is on disk.

To follow one request, read Server.receive, Server.serve, Chat.execute, then its do_<word>, then Server.turn.
"""
from __future__ import annotations

import argparse
import binascii
import contextlib
import errno
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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

try:
    import fcntl
    import resource
    import termios
except ImportError:                # Windows has none of them; who uses them does without
    fcntl = resource = termios = None

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common  # noqa: E402  (the line above says where it lies)
from common import COMMANDS, USER, ChatError, Json, Realm, Request, encode_json, format_event, format_reply  # noqa: E402

log = logging.getLogger("chat")

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

LATER = object()               # what a handler returns whose answer is not known in this turn

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
    address: str
    conversations: dict[str, Conversation] = field(default_factory=dict)   # by the other's address, or `group:ADDRESS`
    cursors: dict[str, int] = field(default_factory=dict)                  # realm -> id up to which `inbox` took
    connections: set[Connection] = field(default_factory=set)              # open here now
    routes: dict[str, Conversation] = field(default_factory=dict)          # by the name as a request spells it
    online_there: bool = False                                             # what the other realm says of its own user
    stored: int = 0                                                        # bytes of the files that they sent
    allowance: float = 0.0                                                 # messages that they may send at once, and
    counted: float = 0.0                                                   # when that was counted

    @property
    def online(self) -> bool:
        """Whether the person has a connection now, here or in their own realm."""
        return bool(self.connections) or self.online_there


@dataclass(slots=True, eq=False)
class Conversation:
    """What two people say to each other, or a group with its members."""

    id: int
    name: str | None               # a group's name
    realm: str                     # where a group lives
    admin: Person | None = None
    members: dict[Person, int] = field(default_factory=dict)   # -> the id after which they see messages; never changed
    #                                in place: what is published meanwhile goes to the members of that moment
    last_id: int = 0               # of its newest message
    heads: dict[Person, str] = field(default_factory=dict)     # by sender: the part of each message that stays the same

    @property
    def address(self) -> str:
        """A group's address."""
        return f"{self.name}@{self.realm}"

    def head(self, sender: Person) -> str:
        """Who speaks and to whom, as a piece of a message's JSON."""
        head = self.heads.get(sender)
        if head is None:
            fields: dict[str, object] = {"from": sender.address, "from_name": sender.nama}
            if self.name:
                fields |= {"group": self.address, "msg_from": sender.nama, "msg_to": self.name}
            else:
                other = next((person for person in self.members if person is not sender), sender)
                fields |= {"to": other.address, "msg_from": sender.nama, "msg_to": other.nama}
            head = self.heads[sender] = encode_json(fields)[1:-1]
        return head


@dataclass(slots=True, eq=False)
class Session:
    """One login. The token itself is nowhere here, only its SHA-256."""

    digest: bytes
    person: Person
    used: int                      # milliseconds since 1970, to the day
    ended: bool = False


class File(NamedTuple):
    """A stored file: its name for people, its size in bytes, and the SHA-256 under which the content lies."""

    name: str
    size: int
    sha256: str


@dataclass(slots=True)
class Message:
    """One row of the messages table; a text, or a file."""

    id: int
    conversation: Conversation
    ts: int
    sender: Person
    text: str | None
    file: File | None

    def fields(self) -> str:
        """The message as clients see it: a JSON object without its braces."""
        if self.file is None:
            body = f'"msg":{common.encode_text(self.text)}'
        else:
            body = f'"file":{encode_json({"id": self.id, **self.file._asdict()})}'
        return f'"id":{self.id},"ts":"{common.format_time(self.ts)}",{self.conversation.head(self.sender)},{body}'

    def event(self) -> bytes:
        """The frame that tells a subscriber of it."""
        return common.format_frame(f'"event":"message",{self.fields()}')


def json_list(messages: Iterable[Message]) -> Json:
    """Messages as a reply lists them."""
    return Json(f"[{','.join([f'{{{message.fields()}}}' for message in messages])}]")


# ---- Store -------------------------------------------------------------------------------------

SCHEMA_VERSION = 2
SCHEMA = """
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT NOT NULL, realm TEXT NOT NULL, nama TEXT NOT NULL,
    negara TEXT NOT NULL, password TEXT, UNIQUE(realm, name));
CREATE TABLE conversations(id INTEGER PRIMARY KEY, name TEXT, realm TEXT NOT NULL, admin INTEGER);
CREATE TABLE members(conversation INTEGER, person INTEGER, since INTEGER NOT NULL,
    PRIMARY KEY(conversation, person)) WITHOUT ROWID;
CREATE TABLE messages(id INTEGER PRIMARY KEY, conversation INTEGER NOT NULL, ts INTEGER NOT NULL,
    sender INTEGER NOT NULL, text TEXT);
CREATE TABLE places(conversation INTEGER, id INTEGER, PRIMARY KEY(conversation, id)) WITHOUT ROWID;
CREATE TABLE files(id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE TABLE cursors(person INTEGER, realm TEXT, id INTEGER NOT NULL, PRIMARY KEY(person, realm)) WITHOUT ROWID;
CREATE TABLE sessions(digest BLOB PRIMARY KEY, person INTEGER NOT NULL, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tags(person INTEGER, tag TEXT, reply TEXT NOT NULL, PRIMARY KEY(person, tag)) WITHOUT ROWID;
CREATE TABLE outbox(peer TEXT, stream INTEGER, seq INTEGER, sender INTEGER NOT NULL, item TEXT NOT NULL, tag TEXT,
    settled INTEGER NOT NULL, PRIMARY KEY(peer, stream, seq)) WITHOUT ROWID;
CREATE TABLE sent(peer TEXT, stream INTEGER, seq INTEGER NOT NULL, PRIMARY KEY(peer, stream)) WITHOUT ROWID;
CREATE TABLE received(peer TEXT, stream INTEGER, seq INTEGER NOT NULL, PRIMARY KEY(peer, stream)) WITHOUT ROWID;
CREATE TABLE epochs(peer TEXT PRIMARY KEY, epoch TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE refusals(peer TEXT, stream INTEGER, seq INTEGER, code TEXT NOT NULL,
    PRIMARY KEY(peer, stream, seq)) WITHOUT ROWID;
"""
UPGRADES = {                   # from each earlier version to the next
    1: "DROP INDEX messages_of_conversation; "
       "CREATE TABLE places(conversation INTEGER, id INTEGER, PRIMARY KEY(conversation, id)) WITHOUT ROWID; "
       "INSERT INTO places SELECT conversation, id FROM messages ORDER BY conversation, id",
}
INSERT_MESSAGE = "INSERT INTO messages(id, conversation, ts, sender, text) VALUES(?,?,?,?,?)"
INSERT_TAG = "INSERT OR REPLACE INTO tags(person, tag, reply) VALUES(?,?,?)"
INSERT_ITEM = "INSERT INTO outbox(peer, stream, seq, sender, item, tag, settled) VALUES(?,?,?,?,?,?,?)"
SELECT = "SELECT id, conversation, ts, sender, text FROM "
SELECT_MESSAGE = SELECT + "messages "
# Where the messages of a conversation are: in `places`. It is filled for PLACE_EVERY messages at once, conversation by
# conversation: kept up with each message it would cost a page per conversation at every COMMIT. The messages past the
# last one that was placed are the tail, few enough to look through.
PLACE = "INSERT INTO places SELECT conversation, id FROM messages WHERE id>? ORDER BY conversation, id"
LAST_PLACED = """SELECT id FROM messages WHERE EXISTS
    (SELECT 1 FROM places WHERE places.conversation=messages.conversation AND places.id=messages.id)
    ORDER BY id DESC LIMIT 1"""
PLACED = SELECT + "places JOIN messages USING(conversation, id) "
PLACED_AFTER = PLACED + "WHERE conversation=? AND id>? ORDER BY id"
PLACED_BEFORE = PLACED + "WHERE conversation=? AND id>? AND id<? ORDER BY id DESC LIMIT ?"
TAIL_AFTER = SELECT_MESSAGE + """CROSS JOIN members USING(conversation)
    WHERE id>? AND id>since AND person=? ORDER BY id"""
TAIL_BEFORE = SELECT_MESSAGE + "WHERE conversation=? AND id>? AND id<? ORDER BY id DESC LIMIT ?"

TALK, FILES = 0, 1             # the two streams of a link: texts, and files with what must not overtake them


class StoreRefused(Exception):
    """The database can't be used, and was left as it is; the text says which file and why."""


class Store:
    """The database, and in memory all of it but the messages.

    Rows of the hot tables are gathered and written by one `executemany` at the end of the turn (`flush`); other writes
    go through `_write`, inside a savepoint of the request. So a request that fails is undone alone (`revert`), and a
    turn whose COMMIT fails as a whole (`abort`); what is in memory is then read from the disk again, as at the start.
    """

    def __init__(self, folder: Path) -> None:
        """Opens (or makes) the database in this folder. Raises StoreRefused."""
        self.files = folder / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        for leftover in self.files.glob("upload-*"):
            leftover.unlink()
        self.path = folder / "chat.db"
        self._owner = self._claim(folder / "owner.db")
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=0, check_same_thread=False)
        version = self._check()
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA cache_size=-65536")            # KiB: the leaves that a busy realm appends to
        steps = [UPGRADES[earlier] for earlier in range(version or SCHEMA_VERSION, SCHEMA_VERSION)]
        if version == 0:
            steps = [SCHEMA, f"INSERT INTO meta VALUES('epoch', '{secrets.token_hex(8)}')"]
        if steps:
            self.db.executescript(f"BEGIN; {';'.join(steps)}; PRAGMA user_version={SCHEMA_VERSION}; COMMIT")
        self._messages: list[tuple] = []
        self._tags: dict[tuple[int, str], str] = {}
        self._items: list[tuple] = []
        self._mark = (0, 0)                        # how many messages and items there were before this request
        self._open = self._savepoint = False
        self.failed = False                        # SQLite has given up the turn: nothing can be written before `abort`
        self.last_id = self._last_seq = 0
        self._placed = 0                           # the id up to which `places` has the messages
        self.people: dict[str, Person] = {}        # by address
        self.groups: dict[str, Conversation] = {}  # by address
        self.sessions: dict[bytes, Session] = {}   # by digest
        self._person_of: dict[int, Person] = {}
        self._conversation_of: dict[int, Conversation] = {}
        self.epoch: str = self.db.execute("SELECT value FROM meta WHERE name='epoch'").fetchone()[0]
        self._load()

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
        """The schema's version, 0 of a new database. Raises StoreRefused for a damaged one, or a newer program's."""
        try:
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise StoreRefused(f"{self.path} is of a newer version of this program (schema {version})")
            found = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise StoreRefused(f"{self.path} can't be used now: {error}") from None
        except sqlite3.DatabaseError as error:
            found = str(error)
        found = found.partition("\n")[0]
        if found != "ok":
            raise StoreRefused(f"{self.path} is damaged ({found}); put a backup in its place or move it away")
        return version

    def _load(self) -> None:
        """Reads the tables that are mirrored in memory; who is there already stays the same object."""
        query = self.db.execute
        people: dict[int, Person] = {}
        conversations: dict[int, Conversation] = {}
        sessions: dict[bytes, Session] = {}
        for id, name, realm, nama, negara, password in query("SELECT * FROM people"):
            person = self._person_of.get(id) or Person(id, name, realm, nama, negara, password, f"{name}@{realm}")
            person.nama, person.negara, person.password, person.stored = nama, negara, password, 0
            for mirror in (person.conversations, person.routes, person.cursors):
                mirror.clear()
            people[id] = person
        for id, name, realm, admin in query("SELECT * FROM conversations"):
            conversation = self._conversation_of.get(id) or Conversation(id, name, realm, people.get(admin))
            newest = query("SELECT MAX(id) FROM places WHERE conversation=?", (id,)).fetchone()[0] or 0
            conversation.last_id, conversation.members = max(conversation.last_id, newest), {}
            conversation.heads.clear()
            conversations[id] = conversation
        self._placed = (query(LAST_PLACED).fetchone() or (0,))[0]
        tail = query("SELECT conversation, MAX(id) FROM messages WHERE id>? GROUP BY conversation", (self._placed,))
        for conversation_id, id in tail:
            conversations[conversation_id].last_id = max(conversations[conversation_id].last_id, id)
        for conversation_id, person_id, since in query("SELECT * FROM members"):
            conversations[conversation_id].members[people[person_id]] = since
        for conversation in conversations.values():
            for person in conversation.members:
                person.conversations[self._key(conversation, person)] = conversation
        for person_id, size in query("SELECT sender, SUM(size) FROM files JOIN messages USING(id) GROUP BY sender"):
            people[person_id].stored = size
        for person_id, realm, id in query("SELECT * FROM cursors"):
            people[person_id].cursors[realm] = id
        for digest, person_id, used in query("SELECT * FROM sessions"):
            sessions[digest] = self.sessions.get(digest) or Session(digest, people[person_id], used)
        for digest, session in self.sessions.items():
            session.ended = digest not in sessions
        self._person_of, self._conversation_of, self.sessions = people, conversations, sessions
        self.people = {person.address: person for person in people.values()}
        self.groups = {group.address: group for group in conversations.values() if group.name}
        last_id = query("SELECT MAX(id) FROM messages").fetchone()[0] or 0
        last_seq = query("SELECT MAX(seq) FROM (SELECT seq FROM sent UNION ALL SELECT seq FROM outbox)").fetchone()[0]
        self.last_id = max(self.last_id, last_id)  # no number is given twice, even where it came to nothing
        self._last_seq = max(self._last_seq, last_seq or 0)

    @staticmethod
    def _key(conversation: Conversation, person: Person) -> str:
        """Under which name a person has a conversation."""
        if conversation.name:
            return f"group:{conversation.address}"
        return next((other.address for other in conversation.members if other is not person), person.address)

    # -- the turn and its requests

    def end_request(self) -> None:
        """The request succeeded: `revert` undoes what comes from here on."""
        if self._savepoint:
            self.db.execute("RELEASE request")
            self._savepoint = False
        self._mark = (len(self._messages), len(self._items))

    def revert(self) -> bool:
        """The request failed: undoes it alone, or leaves the whole turn `failed`. Whether it had written anything."""
        del self._messages[self._mark[0]:], self._items[self._mark[1]:]
        if not self._savepoint:
            return False
        self._savepoint = False
        try:
            self.db.execute("ROLLBACK TO request")
            self.db.execute("RELEASE request")
            self._load()
        except sqlite3.Error as error:
            self.fail(error)
        return True

    def fail(self, error: sqlite3.Error) -> None:
        """The disk is full or ill: what this turn wrote is lost."""
        log.error("the database can't be written: %s", error)
        self.failed, self._open, self._savepoint = True, False, False

    def _begin(self) -> None:
        if self.failed:
            raise ChatError("storage")
        if not self._open:
            try:
                self.db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:          # another process holds the lock, or the disk is ill
                log.error("no transaction: %s", error)
                raise ChatError("storage") from None
            self._open = True

    def _write(self, sql: str, values: tuple = ()) -> sqlite3.Cursor:
        if not self._savepoint:
            self._open_savepoint()
        return self.db.execute(sql, values)

    def _open_savepoint(self) -> None:
        """Begins what `revert` rolls back; what earlier requests of the turn have gathered is written before."""
        messages, items = self._mark
        self._begin()
        self._insert(self._messages[:messages], self._items[:items])
        del self._messages[:messages], self._items[:items]
        self._mark = (0, 0)
        self.db.execute("SAVEPOINT request")
        self._savepoint = True

    def flush(self) -> None:
        """Writes the gathered rows, so that a query sees them. Raises sqlite3.Error and ChatError."""
        if (len(self._messages), len(self._items)) != self._mark and not self._savepoint:
            self._open_savepoint()
        if self._messages or self._items or self._tags:
            self._begin()
            self._insert(self._messages, self._items)
            self._messages.clear()
            self._items.clear()
            self._mark = (0, 0)

    def _insert(self, messages: list[tuple], items: list[tuple]) -> None:
        for sql, rows in ((INSERT_MESSAGE, messages), (INSERT_ITEM, items),
                          (INSERT_TAG, [(*key, reply) for key, reply in self._tags.items()])):
            if rows:
                self.db.executemany(sql, rows)
        self._tags.clear()

    def commit(self) -> None:
        """Puts the turn on disk. Raises sqlite3.Error and ChatError; then call `abort`."""
        self.flush()
        if self._open:
            if self.last_id - self._placed >= common.PLACE_EVERY:
                self.db.execute(PLACE, (self._placed,))
                self._placed = self.last_id
            self.db.execute("COMMIT")
            self._open = False

    def abort(self) -> None:
        """Undoes the whole turn. Raises sqlite3.Error where nothing works any more."""
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        self._open = self._savepoint = self.failed = False
        self._messages.clear()
        self._items.clear()
        self._tags.clear()
        self._mark = (0, 0)
        self._load()

    def close(self) -> None:
        """Gives the files back."""
        self.db.close()
        self._owner.close()

    # -- people and sessions

    def add_person(self, name: str, realm: str, nama: str, negara: str, password: str | None = None) -> Person:
        """A new row of people."""
        id = self._write("INSERT INTO people(name, realm, nama, negara, password) VALUES(?,?,?,?,?)",
                         (name, realm, nama, negara, password)).lastrowid
        person = Person(id, name, realm, nama, negara, password, f"{name}@{realm}")
        self.people[person.address] = self._person_of[id] = person
        return person

    def meet(self, name: str, realm: str, nama: str = "", negara: str = "") -> Person:
        """The person of another realm, added or brought up to date with what that realm says."""
        person = self.people.get(f"{name}@{realm}")
        if person is None:
            return self.add_person(name, realm, nama or name, negara)
        names = nama or person.nama, negara or person.negara
        if names != (person.nama, person.negara):
            self._write("UPDATE people SET nama=?, negara=? WHERE id=?", (*names, person.id))
            person.nama, person.negara = names
            for conversation in person.conversations.values():
                conversation.heads.clear()
        return person

    def set_password(self, person: Person, password: str) -> None:
        """A new password, as `hash_password` gives it."""
        self._write("UPDATE people SET password=? WHERE id=?", (password, person.id))
        person.password = password

    def add_session(self, person: Person, digest: bytes, used: int) -> Session:
        """A new login."""
        self._write("INSERT INTO sessions VALUES(?,?,?)", (digest, person.id, used))
        session = self.sessions[digest] = Session(digest, person, used)
        return session

    def touch_session(self, session: Session, used: int) -> None:
        """Notes that a session is in use; called once a day."""
        self._write("UPDATE sessions SET used=? WHERE digest=?", (used, session.digest))
        session.used = used

    def end_session(self, session: Session) -> None:
        """A session's token is good for nothing any more."""
        self._write("DELETE FROM sessions WHERE digest=?", (session.digest,))
        del self.sessions[session.digest]
        session.ended = True

    def end_idle_sessions(self, before: int) -> None:
        """Ends the sessions that were not used since; called at the start."""
        for session in [session for session in self.sessions.values() if session.used < before]:
            self.end_session(session)

    # -- conversations

    def private(self, first: Person, second: Person) -> Conversation:
        """What two people say to each other, made at the first word."""
        found = first.conversations.get(second.address)
        return found or self._add_conversation(None, first.realm, None, {first: 0, second: 0})

    def add_group(self, name: str, realm: str, admin: Person) -> Conversation:
        """A new group with its first member."""
        group = self._add_conversation(name, realm, admin, {admin: self.last_id})
        self.groups[group.address] = group
        return group

    def _add_conversation(self, name: str | None, realm: str, admin: Person | None,
                          members: dict[Person, int]) -> Conversation:
        id = self._write("INSERT INTO conversations(name, realm, admin) VALUES(?,?,?)",
                         (name, realm, admin and admin.id)).lastrowid
        conversation = self._conversation_of[id] = Conversation(id, name, realm, admin)
        for person, since in members.items():
            self._write("INSERT INTO members VALUES(?,?,?)", (id, person.id, since))
        conversation.members = members
        for person in members:
            person.conversations[self._key(conversation, person)] = conversation
        return conversation

    def add_member(self, group: Conversation, person: Person) -> None:
        """A person sees from now on what is said in the group."""
        self._write("INSERT INTO members VALUES(?,?,?)", (group.id, person.id, self.last_id))
        group.members = {**group.members, person: self.last_id}
        person.conversations[self._key(group, person)] = group

    def remove_member(self, group: Conversation, person: Person) -> None:
        """A person leaves a group."""
        self._write("DELETE FROM members WHERE conversation=? AND person=?", (group.id, person.id))
        group.members = {member: since for member, since in group.members.items() if member is not person}
        del person.conversations[self._key(group, person)]

    # -- messages

    def add_message(self, conversation: Conversation, sender: Person, ts: int, text: str | None,
                    file: File | None = None) -> Message:
        """Stores a message under the next id."""
        self._begin()
        id = self.last_id = conversation.last_id = self.last_id + 1
        self._messages.append((id, conversation.id, ts, sender.id, text))
        if file is not None:
            self._write("INSERT INTO files VALUES(?,?,?,?)", (id, *file))
            sender.stored += file.size
        return Message(id, conversation, ts, sender, text, file)

    def _message(self, row: tuple) -> Message:
        id, conversation, ts, sender, text = row
        file = None
        if text is None:
            file = File(*self.db.execute("SELECT name, size, sha256 FROM files WHERE id=?", (id,)).fetchone())
        return Message(id, self._conversation_of[conversation], ts, self._person_of[sender], text, file)

    def message(self, id: int) -> Message | None:
        """The message with this id."""
        self.flush()
        row = self.db.execute(SELECT_MESSAGE + "WHERE id=?", (id,)).fetchone()
        return row and self._message(row)

    def messages_after(self, person: Person, after: int) -> Iterator[Message]:
        """All that a person may see past this id, in id order, read from the disk as it is asked for."""
        rows, newest = [], 0
        for conversation, since in [(found, found.members[person]) for found in person.conversations.values()]:
            if conversation.last_id > max(after, since):
                rows.append(self.db.execute(PLACED_AFTER, (conversation.id, max(after, since))))
                newest = max(newest, conversation.last_id)
        tail = self.db.execute(TAIL_AFTER, (max(after, self._placed), person.id)) if newest > self._placed else ()
        return map(self._message, itertools.chain(heapq.merge(*rows), tail))

    def history(self, conversation: Conversation, person: Person, before: int, limit: int) -> list[Message]:
        """The last `limit` messages with an id below `before`, oldest first."""
        self.flush()
        since, rows = conversation.members[person], []
        if conversation.last_id > self._placed:
            rows = self.db.execute(TAIL_BEFORE, (conversation.id, max(since, self._placed), before, limit)).fetchall()
        if len(rows) < limit:
            rows += self.db.execute(PLACED_BEFORE, (conversation.id, since, before, limit - len(rows))).fetchall()
        return [self._message(row) for row in reversed(rows)]

    def inbox(self, person: Person, realms: Iterable[str], only: str | None) -> Iterator[Message]:
        """What came in for a person and was not yet taken; `only` what people of that realm sent."""
        self.flush()
        cursors = {realm: person.cursors.get(realm, 0) for realm in realms}
        wanted = [cursors.get(only, 0)] if only else cursors.values()
        for message in self.messages_after(person, min(wanted)):
            realm = message.sender.realm
            own = message.sender is person and (message.conversation.name or len(message.conversation.members) > 1)
            if not own and message.id > cursors.get(realm, 0) and only in (None, realm):
                yield message

    def take(self, person: Person, realms: Iterable[str], id: int) -> None:
        """What these realms' people sent up to this id was taken by an `inbox`."""
        for realm in realms:
            if id > person.cursors.get(realm, 0):
                self._write("INSERT OR REPLACE INTO cursors VALUES(?,?,?)", (person.id, realm, id))
                person.cursors[realm] = id

    def names_file(self, sha256: str) -> bool:
        """Whether a message, or an item that waits for another realm, has this file."""
        self.flush()
        return bool(self.db.execute(
            "SELECT 1 FROM files WHERE sha256=? UNION ALL "
            "SELECT 1 FROM outbox WHERE stream=? AND instr(item, ?) LIMIT 1", (sha256, FILES, sha256)).fetchone())

    def tagged(self, person: Person, tag: str) -> str | None:
        """The reply that an earlier send with this tag got."""
        reply = self._tags.get((person.id, tag))
        if reply is None:
            row = self.db.execute("SELECT reply FROM tags WHERE person=? AND tag=?", (person.id, tag)).fetchone()
            reply = row and row[0]
        return reply

    def remember_tag(self, person: Person, tag: str, reply: str) -> None:
        """Keeps the reply to a tagged send."""
        self._begin()
        self._tags[person.id, tag] = reply

    # -- between realms

    def queue(self, peer: str, stream: int, sender: Person, item: str, tag: str | None, settled: bool) -> int:
        """Puts an item into the outbox; `settled` where the sender's realm has nothing left to do when it is taken."""
        self._begin()
        self._last_seq += 1
        self._items.append((peer, stream, self._last_seq, sender.id, item, tag, settled))
        return self._last_seq

    def outbox(self, peer: str, stream: int, after: int, most: int) -> list[tuple[int, str]]:
        """The next items of a stream: [(seq, item)]."""
        return self.db.execute("SELECT seq, item FROM outbox WHERE peer=? AND stream=? AND seq>? ORDER BY seq LIMIT ?",
                               (peer, stream, after, most)).fetchall()

    def item(self, peer: str, stream: int, seq: int) -> tuple[Person, dict, str | None] | None:
        """One item of the outbox, if it is still there: (sender, item, tag)."""
        self.flush()
        row = self.db.execute("SELECT sender, item, tag FROM outbox WHERE peer=? AND stream=? AND seq=?",
                              (peer, stream, seq)).fetchone()
        return row and (self._person_of[row[0]], json.loads(row[1]), row[2])

    def unsettled(self) -> list[tuple[str, int, int]]:
        """The items whose senders were still waiting when the server ended: [(peer, stream, seq)]."""
        self.flush()
        return self.db.execute("SELECT peer, stream, seq FROM outbox WHERE NOT settled ORDER BY seq").fetchall()

    def settle_item(self, peer: str, stream: int, seq: int) -> None:
        """Notes that a queued item's sender waits no longer."""
        self._write("UPDATE outbox SET settled=1 WHERE peer=? AND stream=? AND seq=?", (peer, stream, seq))

    def queued(self, peer: str) -> int:
        """How many items wait for a realm."""
        return self.db.execute("SELECT COUNT(*) FROM outbox WHERE peer=?", (peer,)).fetchone()[0]

    def acknowledge(self, peer: str, stream: int, seq: int) -> None:
        """The other realm has the items up to seq: they leave the outbox."""
        self._write("DELETE FROM outbox WHERE peer=? AND stream=? AND seq<=?", (peer, stream, seq))
        self._write("INSERT OR REPLACE INTO sent VALUES(?,?,?)", (peer, stream, seq))

    def received(self, peer: str, stream: int) -> int:
        """The highest seq that we have of a realm."""
        row = self.db.execute("SELECT seq FROM received WHERE peer=? AND stream=?", (peer, stream)).fetchone()
        return row[0] if row else 0

    def set_received(self, peer: str, stream: int, seq: int, refused: dict[int, str]) -> None:
        """Notes, beside the items themselves, up to where they are here, and which of them were refused."""
        self._write("INSERT OR REPLACE INTO received VALUES(?,?,?)", (peer, stream, seq))
        for refused_seq, code in refused.items():
            self._write("INSERT OR REPLACE INTO refusals VALUES(?,?,?,?)", (peer, stream, refused_seq, code))

    def refusals(self, peer: str, stream: int, after: int) -> dict[str, str]:
        """The refused items past `after`; a realm that names `after` has heard of those before it."""
        if self.db.execute("SELECT 1 FROM refusals WHERE peer=? AND stream=? AND seq<=?",
                           (peer, stream, after)).fetchone():
            self._write("DELETE FROM refusals WHERE peer=? AND stream=? AND seq<=?", (peer, stream, after))
        return {str(seq): code for seq, code in self.db.execute(
            "SELECT seq, code FROM refusals WHERE peer=? AND stream=?", (peer, stream))}

    def meet_epoch(self, peer: str, epoch: str) -> None:
        """A realm whose database was made anew counts from the start again."""
        row = self.db.execute("SELECT epoch FROM epochs WHERE peer=?", (peer,)).fetchone()
        if row is None or row[0] != epoch:
            self._write("DELETE FROM received WHERE peer=?", (peer,))
            self._write("DELETE FROM refusals WHERE peer=?", (peer,))
            self._write("INSERT OR REPLACE INTO epochs VALUES(?,?)", (peer, epoch))


# ---- Workers -----------------------------------------------------------------------------------


class Workers:
    """A few threads for what would hold up the loop. What comes of it is handed back in the loop, by `finish`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.hashes = ThreadPoolExecutor(common.HASH_WORKERS, "hash")      # of passwords
        self.syncs = ThreadPoolExecutor(common.HASH_WORKERS, "sync")       # of files
        self._wake = wake
        self._done: deque[tuple[Callable[[Future], None], Future]] = deque()

    def run(self, pool: ThreadPoolExecutor, done: Callable[[Future], None], work: Callable,
            *arguments: object) -> None:
        """Has something done in one of the pools, and `done` called with what came of it."""
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
                log.exception("%s failed", done.__qualname__)

    def close(self) -> None:
        """Waits for what is under way, drops the rest."""
        for pool in (self.hashes, self.syncs):
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
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    if expected not in (None, name):
        path.unlink()
        raise ValueError(f"{path.name} is not what was announced")
    os.replace(path, folder / name)
    if os.name == "posix":                                     # the rename is on disk when its folder is
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return name


# ---- Upload ------------------------------------------------------------------------------------


class Upload:
    """The file at the end of a request line, decoded to a temporary file as it arrives.

    What goes wrong is kept in `error` and the rest of the line is swallowed, so that the connection stays usable.
    """

    def __init__(self, request: Request, folder: Path, most: int, error: ChatError | None = None) -> None:
        self.request = request
        self.error = error
        self.size = 0
        self.whole = False                         # the line has ended; the file is being put on disk
        self.stored = False                        # it is on disk, under its SHA-256
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

    def feed(self, data: bytes, decode: Callable[[bytes], bytes] | None = None) -> None:
        """Takes in the next base64 of the line."""
        if self.error:
            return
        try:
            content = (decode or self._decoder.feed)(data)
            if self.size + len(content) > self._most:
                raise ChatError("too_large", f"{self._most // common.MIB} MiB")
            append_to_file(self._file, content, self.size)
            self.size += len(content)
        except ChatError as error:
            self.abandon(error)
        except OSError as problem:
            log.error("an upload can't be written: %s", problem)
            self.abandon(ChatError("storage"))

    def finish(self) -> None:
        """The line has ended."""
        self.whole = True
        self.feed(b"", lambda _: self._decoder.finish())
        if self._file:
            self._file.close()

    def abandon(self, error: ChatError | None = None) -> None:
        """Removes the temporary file."""
        self.error = error or self.error or ChatError("internal_error")
        if self._file:
            self._file.close()
            self.path.unlink(missing_ok=True)
            self._file = None


# ---- Connection --------------------------------------------------------------------------------


class Slot:
    """The place of a reply that is to come, so that replies keep the order of their requests."""

    __slots__ = ("tag", "realm", "sender", "results", "expected", "frame")

    def __init__(self, tag: str | None, realm: str | None = None, sender: Person | None = None) -> None:
        self.tag = tag
        self.realm = realm                         # the realm whose word it waits for
        self.sender = sender                       # whose message it is about
        self.expected = 1                          # how many results make the reply: a send to several people
        self.results: list[tuple[str, dict[str, object]]] = []     # (to whom, fields)
        self.frame: bytes | Iterator[bytes] | None = None


class Connection:
    """One socket's state: whose it is, the lines that came in, the replies that go out."""

    __slots__ = ("sock", "host", "mask", "buffer", "upload", "held", "tag", "slots", "staged", "output", "unsent",
                 "sending", "streaming", "session", "token", "token_session", "subscribed", "behind", "cursor",
                 "taking", "link", "claim", "deadline", "shaking", "finished", "ending", "dropped")

    def __init__(self, sock: socket.socket, host: str, limit: int = common.MAX_LINE) -> None:
        self.sock = sock
        self.host = host
        self.mask = 0                              # what the selector is asked to watch
        # in
        self.buffer = common.LineBuffer(limit)
        self.upload: Upload | None = None
        self.held: tuple[Request, Upload | None] | None = None     # to be carried out when the slots are filled
        self.tag: str | None = None                # of the request that is being carried out
        # out
        self.slots: deque[Slot] | tuple = ()
        self.staged: list[tuple[str | None, bytes | Iterator[bytes]]] = []    # this turn's replies: not on disk yet
        self.output: deque[bytes | Iterator[bytes]] = deque()
        self.unsent = 0                            # bytes staged and in output; what an iterator will give not counted
        self.sending: bytes | memoryview | None = None     # what a send left over
        self.streaming = False                     # a reply is read from the disk as the socket drains
        # who
        self.session: Session | None = None
        self.token: str | None = None              # the last good token here, to spare its hash
        self.token_session: Session | None = None
        self.subscribed = False
        self.behind = False                        # a subscriber that is fed from the table
        self.cursor = 0                            # the id of the last message event
        self.taking: tuple[Person, list[str], int] | None = None     # an inbox reply that is under way
        self.link: RealmLink | None = None         # of another realm
        self.claim: Claim | None = None            # to be another realm, not yet proved
        # ends
        self.deadline = 0.0
        self.shaking = False                       # the TLS handshake is not done yet
        self.finished = False                      # the other side has said that it will send no more
        self.ending = False                        # to be closed when the output has drained
        self.dropped = False                       # closed

    def reply(self, frame: bytes | Iterator[bytes], tag: str | None = None) -> None:
        """Stages a reply behind those that are still to come."""
        if self.slots:
            slot = Slot(tag)
            slot.frame = frame
            self.slots.append(slot)
            return
        self.staged.append((tag, frame))
        if type(frame) is bytes:
            self.unsent += len(frame)
        else:
            self.streaming = True

    def later(self, realm: str | None = None, sender: Person | None = None) -> Slot:
        """A place for a reply that is to come."""
        if not self.slots:
            self.slots = deque()
        slot = Slot(self.tag, realm, sender)
        self.slots.append(slot)
        return slot

    def release(self) -> None:
        """The turn is on disk: its replies may leave."""
        self.output.extend([frame for _, frame in self.staged])
        self.staged.clear()

    def fill(self, slot: Slot, frame: bytes) -> None:
        """A reply has come; stages it, and what it held up, unless an earlier one is still missing."""
        slot.frame = frame
        waiting, self.slots = self.slots, ()
        while waiting and waiting[0].frame is not None:
            done = waiting.popleft()
            self.reply(done.frame, done.tag)
        self.slots = waiting

    def push(self, chunk: bytes, last_id: int) -> None:
        """Queues events, unless the subscriber is fed from the table."""
        if self.behind or (last_id and last_id <= self.cursor):
            return
        if self.unsent + len(chunk) > common.OUTPUT_MARK:
            self.behind = bool(last_id)            # an event that is in no table is lost to one who does not read
            return
        self.output.append(chunk)
        self.unsent += len(chunk)
        self.cursor = last_id or self.cursor

    @property
    def has_output(self) -> bool:
        """Whether there is something to send."""
        return bool(self.output or self.staged or self.sending)

    @property
    def is_outgoing(self) -> bool:
        """Whether we opened it, to another realm."""
        return self.link is not None and self.link.conn is self

    @property
    def may_serve(self) -> bool:
        """Whether its next line may be carried out: not while its replies are not taken, nor before the one held."""
        if self.held:
            return not self.slots
        return not (self.unsent > common.OUTPUT_MARK or self.streaming or self.ending or
                    (self.upload and self.upload.whole))

    @property
    def has_work(self) -> bool:
        """Whether there is a request that may be carried out now."""
        return (self.held is not None or self.buffer.has_line() or
                (self.buffer.overlong and len(self.buffer) > 0)) and self.may_serve

    @property
    def is_idle(self) -> bool:
        """Whether no request is left to carry out or to answer; half of one does not count."""
        return not (self.held or self.slots or self.buffer.has_line() or (self.upload and self.upload.whole))

    @property
    def may_read(self) -> bool:
        """Whether more requests are welcome. Two realms that both wait for the other to read would wait for ever."""
        return not self.finished and (self.is_outgoing or not (self.held or self.buffer.has_line())
                                      and self.may_serve)


# ---- RealmLink ---------------------------------------------------------------------------------

DOWN, CONNECTING, UP = "down", "connecting", "up"


class Claim(NamedTuple):
    """What a connection says to be: another realm, with both sides' fresh nonces."""

    link: RealmLink
    epoch: str
    their_nonce: str
    our_nonce: str


@dataclass(slots=True)
class Pending:
    """A sender who waits for another realm's word."""

    conn: Connection | None        # None, like the slot, where nobody waits for the answer any more
    slot: Slot | None
    person: Person
    item: dict[str, object]
    tag: str | None
    due: float = 0.0               # when the sender is told `queued`


@dataclass(slots=True)
class Transfer:
    """A file on its way to another realm."""

    sha256: str
    size: int
    file: BinaryIO
    offset: int = 0                # bytes sent
    under_way: int = 1             # replies to come; the first only says how much is there already
    astray: bool = True            # the other side has another offset than we thought: wait, then go on from there


class RealmLink:
    """The way to one other realm, over the one connection that we open to it.

    It never sleeps and opens no socket: the loop asks `wants_connection`, hands in lines and the time, and calls `pump`
    after each COMMIT, which is when items may leave. One batch of each stream is under way at a time.
    """

    def __init__(self, realm: Realm, home: str, key: bytes | None, store: Store) -> None:
        self.realm = realm
        self.host = realm.address                  # looked up now: in the loop it would hold up everybody
        if ":" not in self.host:
            with contextlib.suppress(OSError):
                self.host = socket.gethostbyname(self.host)
        self.home = home
        self.key = key
        self.store = store
        self.state = DOWN
        self.conn: Connection | None = None
        self.incoming: Connection | None = None    # the connection that the other realm opened to us
        self.next_attempt = 0.0
        self.delay = common.LINK_RETRY_FIRST
        self.heard = self.asked = 0.0              # when something came, when the last ping left
        self.round_trip: float | None = None       # seconds
        self.expected: deque[tuple[str, object]] = deque()     # the requests that are not answered yet
        self.sent = [0, 0]                         # by stream: the seq that is on disk there
        self.busy = [False, False]                 # a batch is under way
        self.fresh = [True, True]                  # there may be items in the outbox
        self.waiting: list[dict[int, Pending]] = [{}, {}]
        self.transfer: Transfer | None = None
        self.there = ""                            # the file that is there already, for the next item
        self.groups: dict[str, dict] = {}          # the other realm's groups, by name
        self.joining: set[str] = set()             # those that somebody of ours asks to be let into
        self.parts: dict[str, BinaryIO] = {}       # files that come from there
        self.sealing: set[str] = set()
        self.lane_of: dict[int, tuple] = {}        # seq in the stream of files -> who speaks to whom
        self.load_lanes()
        self.nonce = ""

    # -- the state of the connection

    def wants_connection(self, now: float) -> bool:
        """Whether it is time to try."""
        return self.state == DOWN and now >= self.next_attempt

    def next_check(self, now: float) -> float:
        """When `check` or an attempt is due."""
        if self.state == DOWN:
            return self.next_attempt
        dead = self.heard + common.LINK_DEAD_SECONDS
        return min(max(self.heard, self.asked) + common.LINK_PING_SECONDS, dead) if self.state == UP else dead

    def connecting(self, conn: Connection, now: float) -> None:
        """A connection is being opened."""
        self.state, self.conn, self.heard, self.asked = CONNECTING, conn, now, now

    def connected(self, now: float) -> None:
        """The connection is open: says who we are."""
        self.heard = now
        self.nonce = secrets.token_hex(16)
        self.ask(f"peer {self.home} {self.store.epoch} {self.nonce}", "peer")

    def lost(self, now: float) -> None:
        """The connection is gone: tries again after a while, each time a longer one."""
        self.state, self.conn, self.round_trip = DOWN, None, None
        self.next_attempt = now + self.delay * random.uniform(0.8, 1.2)
        self.delay = min(self.delay * 2, common.LINK_RETRY_MOST)
        self.busy = [False, False]
        self.expected.clear()
        self.end_transfer()
        self.there = ""

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

    # -- requests and replies

    def ask(self, line: str, kind: str, about: object = None) -> None:
        """Sends a request over the link."""
        data = line.encode() + b"\r\n"
        self.conn.output.append(data)
        self.conn.unsent += len(data)
        self.expected.append((kind, about))

    def answer_to_peer(self, reply: dict) -> None:
        """The other side has answered the greeting: both sides prove themselves. Raises ChatError."""
        parties = (self.home, self.realm.name, self.nonce, str(reply["nonce"]))
        if self.key is not None and not self.is_proof(str(reply["proof"]), "callee", *parties):
            raise ChatError("realm_refused")
        self.ask(f"peerproof {self.proof('caller', *parties)}".strip(), "peerproof")

    def is_up(self, now: float) -> None:
        """The other realm has let us in and said what it has."""
        self.state, self.delay, self.asked = UP, common.LINK_RETRY_FIRST, now
        self.fresh = [True, True]

    # -- the outbox

    @staticmethod
    def lane(item: dict) -> tuple:
        """Who speaks to whom: messages of one lane never overtake each other."""
        return (item["from"], item.get("to"), item.get("group"))

    def load_lanes(self) -> None:
        """Reads who speaks to whom in the stream of files."""
        self.lane_of = {seq: self.lane(json.loads(item))
                        for seq, item in self.store.outbox(self.realm.name, FILES, 0, -1)}
        self.lanes = set(self.lane_of.values())

    def queue(self, person: Person, item: dict, tag: str | None, settled: bool) -> tuple[int, int]:
        """Puts an item into the outbox: (stream, seq). A text goes with the files where it would overtake one."""
        lane = self.lane(item)
        stream = FILES if "file" in item or lane in self.lanes else TALK
        seq = self.store.queue(self.realm.name, stream, person, encode_json(item), tag, settled)
        self.fresh[stream] = True
        if stream == FILES:
            self.lane_of[seq] = lane
            self.lanes.add(lane)
        return stream, seq

    def first_waiting(self, stream: int) -> tuple[int, Pending] | None:
        """The sender who has waited longest, with the item's seq."""
        return next((both for both in self.waiting[stream].items() if both[1].slot), None)

    def acknowledged(self, stream: int, seq: int) -> None:
        """The other realm has the items up to this one on disk."""
        self.fresh[stream] = True
        if seq > self.sent[stream]:
            self.store.acknowledge(self.realm.name, stream, seq)
        self.sent[stream] = seq
        if stream == FILES:
            self.there = ""                        # where its item was refused, it may be there no longer
            for done in [queued for queued in self.lane_of if queued <= seq]:
                del self.lane_of[done]
            self.lanes = set(self.lane_of.values())

    def pump(self) -> None:
        """Sends what may be sent now. Only to be called when the turn is on disk."""
        if self.state != UP:
            return
        if self.fresh[TALK] and not self.busy[TALK]:
            self._deliver(TALK, self._next(TALK))
        if self.transfer:
            self._send_pieces(self.transfer)
        elif self.fresh[FILES] and not self.busy[FILES]:
            self._pump_files()

    def _pump_files(self) -> None:
        """Sends the next file, or texts that wait behind one; none before the talk that was said before it."""
        rows = self._next(FILES)
        first = json.loads(rows[0][1]) if rows else {}
        file = File(**first["file"]) if "file" in first else None
        if file and file.sha256 != self.there:
            self._start_transfer(file)
            return
        talk = self.store.outbox(self.realm.name, TALK, self.sent[TALK], 1)
        rows = [row for row in rows if not talk or row[0] < talk[0][0]]
        self._deliver(FILES, rows[:1] if file else list(
            itertools.takewhile(lambda row: "file" not in json.loads(row[1]), rows)))

    def _next(self, stream: int) -> list[tuple[int, str]]:
        rows = self.store.outbox(self.realm.name, stream, self.sent[stream], common.LINK_BATCH)
        self.fresh[stream] = bool(rows)
        return rows

    def _deliver(self, stream: int, rows: list[tuple[int, str]]) -> None:
        """Sends a batch: as many of the rows as it may weigh, at least one."""
        items, weight = [], 0
        for seq, item in rows:
            weight += len(item)
            if items and weight > common.LINK_BATCH_BYTES:
                break
            items.append(f'{{"seq":{seq},{item[1:]}')
        self.busy[stream] = bool(items)
        if items:
            self.ask(f"deliver {stream} {self.sent[stream]} [{','.join(items)}]", "deliver", stream)

    def _start_transfer(self, file: File) -> None:
        """Asks how much of a file is there already."""
        self.transfer = Transfer(file.sha256, file.size, (self.store.files / file.sha256).open("rb"))
        self.ask(f"piece {file.sha256} {file.size} 0", "piece", 0)

    def _send_pieces(self, transfer: Transfer) -> None:
        while transfer.under_way < common.LINK_PIECES and transfer.offset < transfer.size and not transfer.astray:
            transfer.file.seek(transfer.offset)
            data = transfer.file.read(common.LINK_PIECE)
            content = binascii.b2a_base64(data, newline=False).decode()
            self.ask(f"piece {transfer.sha256} {transfer.size} {transfer.offset} {content}", "piece",
                     transfer.offset + len(data))
            transfer.offset += len(data)
            transfer.under_way += 1

    def piece_written(self, reply: dict, expected: int) -> None:
        """The other realm has written a piece, or has said how much it has."""
        transfer = self.transfer
        if transfer is None:
            return
        transfer.under_way -= 1
        if reply["complete"]:
            self.file_is_there(transfer.sha256)
        else:
            transfer.astray = transfer.astray or reply["offset"] != expected
            if transfer.astray and not transfer.under_way:
                transfer.offset, transfer.astray = int(reply["offset"]), False

    def file_is_there(self, sha256: str) -> None:
        """The other realm has the whole file on disk (or will refuse it): the item that names it may go."""
        self.there = sha256
        if self.transfer and self.transfer.sha256 == sha256:
            self.end_transfer()

    def file_sealed(self, sha256: str, sealed: bool) -> None:
        """The other realm has put a file on disk, or found that it is not what was announced."""
        if sealed:
            self.file_is_there(sha256)
        elif self.transfer and self.transfer.sha256 == sha256:
            raise ChatError("realm_refused", "a file did not arrive whole")     # begins anew with the next connection

    def write_part(self, path: Path, sha256: str, size: int, offset: int, data: bytes) -> int:
        """Appends a piece of a file that comes from there, where it fits: bytes that are here now. Raises OSError."""
        if sha256 in self.sealing:
            return size
        part = self.parts.get(sha256)
        if part is None:
            part = self.parts[sha256] = path.open("ab", buffering=0)
        have = part.tell()
        if offset == have and have + len(data) <= size:
            append_to_file(part, data, have)
            have += len(data)
        if have >= size:
            part.close()
            del self.parts[sha256]
        return have

    def close_parts(self) -> None:
        """The other realm's connection is gone; what came of its files stays, to go on from there."""
        for part in self.parts.values():
            part.close()
        self.parts.clear()

    def end_transfer(self) -> None:
        """Stops sending the file."""
        if self.transfer:
            self.transfer.file.close()
            self.transfer = None


# ---- Chat --------------------------------------------------------------------------------------

SENT = "Pesan terkirim"
QUEUED = "Pesan disimpan, dikirim saat realm tujuan tersambung"
BOUNCE = "Tidak terkirim ke {target}: {reason}. ({text})"
SYSTEM = "system"              # the name under which a realm itself writes; nobody can register it


@dataclass(slots=True)
class Run:
    """Messages of one turn for the same people, or another event: one chunk that all their connections share."""

    members: Iterable[Person] | None           # None: everybody who has subscribed
    messages: list[Message]
    frame: bytes = b""                         # of an event that is no message


class Limits(NamedTuple):
    """The limits that have options; 0 is none."""

    file: int = common.MAX_FILE                # bytes of one file
    stored: int = common.MAX_STORED            # bytes of the files of one user
    rate: int = 0                              # messages of one user in a second
    connections: int = common.MAX_CONNECTIONS
    per_address: int = common.MAX_PER_ADDRESS


class Guesses:
    """The logins of one account: at most GUESSES may fail in GUESS_SECONDS, also of those that come all at once."""

    def __init__(self) -> None:
        self.failed: deque[float] = deque()
        self.running = 0
        self.waiting: deque[Callable[[ChatError | None], None]] = deque()

    def ask(self, now: float, go: Callable[[ChatError | None], None]) -> None:
        """Calls `go(None)` when the account may be tried, or `go(error)`."""
        self.waiting.append(go)
        self.next(now)

    def done(self, now: float, succeeded: bool) -> None:
        """A try has ended."""
        self.running -= 1
        if not succeeded:
            self.failed.append(now)
        self.next(now)

    def next(self, now: float) -> None:
        """Lets through, or refuses, who waits."""
        while self.failed and self.failed[0] <= now - common.GUESS_SECONDS:
            self.failed.popleft()
        while self.waiting:
            error = None
            if len(self.failed) >= common.GUESSES:
                seconds = int(self.failed[0] + common.GUESS_SECONDS - now) + 1
                error = ChatError("rate_limited", retry_after=seconds)
            elif len(self.failed) + self.running >= common.GUESSES:
                return
            else:
                self.running += 1
            self.waiting.popleft()(error)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to remember."""
        return not (self.failed or self.running or self.waiting)


class Chat:
    """What the commands do. A handler returns the fields of its reply, LATER, or raises ChatError.

    `do_<word>(conn, person, *arguments)`: `person` is who asks (None where no token is needed), and the arguments are
    those of the command's row without the token. Handlers stand in the order of the table.
    """

    def __init__(self, realm: str, table: dict[str, Realm], store: Store, workers: Workers, *, key: bytes | None = None,
                 limits: Limits | None = None, wall: Callable[[], float] = time.time) -> None:
        self.realm = realm
        self.table = table
        self.store = store
        self.workers = workers
        self.limits = limits or Limits()
        self.wall = wall                           # seconds since 1970, for display only
        self.now = 0.0                             # of the turn: seconds of a clock that never goes back
        self.now_ms = 0                            # of the turn: milliseconds since 1970
        self.links = {name: RealmLink(row, realm, key, store) for name, row in table.items() if name != realm}
        self.touched: set[Connection] = set()      # connections with something to write after the COMMIT
        self.drained: set[Connection] = set()      # connections whose `inbox` reply has been sent off whole
        self.subscribers: set[Connection] = set()
        self.guesses: dict[str, Guesses] = {}      # by account, existing or not
        self.next_sweep = 0.0                      # when `guesses` is next looked through for what can be forgotten
        self.hashes = 0                            # logins that wait for a hash
        self.uploads: set[Upload] = set()          # whole, and not carried out yet
        self.unwanted: set[str] = set()            # stored files that perhaps no message has
        self.waiting_tags: dict[tuple[Person, str], list[tuple[RealmLink, int, int]]] = {}
        self.runs: list[Run] = []                  # events of this turn
        self.ended: list[Connection] = []          # that this turn has logged out
        self.news: list[bytes] = []                # what the other realms are told of our people and groups
        self._handlers = {word: getattr(self, f"do_{word}") for word in COMMANDS}
        self.tick(0.0)
        self.guarded(self.settle_left)
        store.commit()
        self.runs.clear()

    def settle_left(self) -> None:
        """Ends what was left when the server ended: idle sessions, and the waiting for another realm."""
        self.store.end_idle_sessions(self.now_ms - common.SESSION_DAYS * 86_400_000)
        self.wait_for_unsettled()
        for link in self.links.values():
            self.stop_all(link)

    def tick(self, now: float) -> None:
        """A turn begins: takes the time, and tells `queued` to who has waited long enough for another realm."""
        self.now, self.now_ms = now, int(self.wall() * 1000)
        while self.drained:
            conn = self.drained.pop()
            if conn.taking:
                self.take_inbox(conn)
        if now >= self.next_sweep:
            self.next_sweep = now + common.GUESS_SECONDS
            for account, guesses in list(self.guesses.items()):
                guesses.next(now)
                if guesses.idle:
                    del self.guesses[account]
        for link, stream in itertools.product(self.links.values(), (TALK, FILES)):
            while (first := link.first_waiting(stream)) and first[1].due <= now:
                first[1].due = now + 1.0           # where nothing can be written, it is tried again
                self.stop_waiting(link, stream, first[0])

    # -- from a line to its reply

    def execute(self, conn: Connection, line: bytes) -> Upload | None:
        """The path of a request: parse it, see whether it may be asked, carry it out, stage its reply.

        A request that brings a file is not carried out yet: its Upload is returned, with all of the content.
        """
        conn.tag = None
        if conn.taking:                            # that the client asks on says that it got the reply to its `inbox`
            self.guarded(self.take_inbox, conn)
        try:
            if len(line) > conn.buffer.limit:
                return self.begin_upload(conn, line)
            conn.tag, line = common.split_tag(line)
            request = common.parse_request(conn.tag, line)
            if request.command.takes_file:
                content = request.arguments.pop()
                return self.upload_for(conn, request, content.encode())
        except ChatError as error:
            conn.reply(format_reply(error.reply(), conn.tag), conn.tag)
            return None
        if conn.slots and not self.may_overtake(conn, request):
            conn.held = (request, None)
        else:
            self.carry_out(conn, request)
        return None

    def carry_out(self, conn: Connection, request: Request, upload: Upload | None = None) -> None:
        """Carries out a parsed request and stages its reply."""
        conn.tag = request.tag
        reply = self.guarded(self._carry_out, conn, request, upload)
        if upload:
            self.upload_over(upload, reply is LATER or (isinstance(reply, dict) and "file" in reply))
        if isinstance(reply, dict):
            conn.reply(format_reply(reply, request.tag), request.tag)
        elif reply is not LATER:
            conn.reply(reply, request.tag)         # a frame that is ready: a file's pieces, or an earlier reply

    def _carry_out(self, conn: Connection, request: Request, upload: Upload | None) -> object:
        command = request.command
        if upload and upload.error:
            raise upload.error
        person, arguments = self.admit(conn, request)
        tagged = request.tag is not None and command.is_send
        if tagged:
            earlier = self.earlier_reply(person, request.tag)
            if earlier:
                return earlier
        if command.is_send:
            if self.limits.rate:
                self.check_rate(person)
            if upload:
                self.check_stored(person, upload.size)
                arguments[-1] = File(common.decode_file_name(arguments[-1]), upload.size, upload.path.name)
            else:
                self.check_text(arguments[-1])
        reply = self._handlers[command.word](conn, person, *arguments)
        if tagged and reply is not LATER:
            self.store.remember_tag(person, request.tag, format_reply(reply, request.tag).decode())
        return reply

    def guarded(self, action: Callable, *arguments: object) -> object:
        """Does something as one request: what it wrote is undone alone if it fails. An error becomes its reply."""
        store = self.store
        try:
            result = action(*arguments)
            store.end_request()
            return result
        except ChatError as error:
            failure = error
        except sqlite3.Error as error:
            store.fail(error)
            return ChatError("storage").reply()
        except Exception:
            log.exception("%s failed", action.__name__)
            failure = ChatError("internal_error")
        if store.revert():
            self.recover()
        return failure.reply()

    def recover(self) -> None:
        """The store was read again after a failure: what hangs on it here is brought in line."""
        logged_in = [conn for person in self.store.people.values() for conn in person.connections]
        for conn in {*self.touched, *logged_in}:   # a person who was undone has touched ones only
            if conn.session and conn.session.ended:
                self.detach(conn)
        on_disk = set(self.store.unsettled())
        for link in self.links.values():
            link.load_lanes()
            for stream, waiting in enumerate(link.waiting):
                for seq in [seq for seq in waiting if (link.realm.name, stream, seq) not in on_disk]:
                    pending = waiting.pop(seq)
                    self.answer(pending.conn, pending.slot, ChatError("storage").reply(), pending.item.get("to", ""))
        self.wait_for_unsettled()

    def wait_for_unsettled(self) -> None:
        """Keeps in mind the items whose senders nobody has answered, and nobody can any more."""
        for peer, stream, seq in self.store.unsettled():
            if peer in self.links and seq not in self.links[peer].waiting[stream]:
                person, item, tag = self.store.item(peer, stream, seq)
                self.links[peer].waiting[stream][seq] = Pending(None, None, person, item, tag)
        for link in self.links.values():           # in their order, as `taken` expects them
            link.waiting = [dict(sorted(waiting.items())) for waiting in link.waiting]

    def begin_upload(self, conn: Connection, start: bytes) -> Upload:
        """A line past the limit: the Upload of the file at its end, else one that swallows it. Never raises."""
        request = Request(None, COMMANDS["send"], [])
        try:
            tag, line = common.split_tag(start)
            conn.tag = tag
            request.tag = tag
            word, _, rest = line.partition(b" ")
            command = COMMANDS.get(word.decode(errors="replace").lower())
            if command is None or not command.takes_file:
                raise ChatError("too_long")
            arguments = common.split_arguments(rest.decode(), len(command.names), True)
            if len(arguments) < command.required:
                raise ChatError("bad_arguments", command.usage)
            return self.upload_for(conn, Request(tag, command, arguments[:-1]), arguments[-1].encode())
        except UnicodeDecodeError:
            return Upload(request, self.store.files, 0, ChatError("bad_encoding"))
        except ChatError as error:
            return Upload(request, self.store.files, 0, error)

    def upload_for(self, conn: Connection, request: Request, start: bytes) -> Upload:
        """The Upload of a request's file, with the start of its content. Raises ChatError where it is not allowed."""
        self.admit(conn, request)
        upload = Upload(request, self.store.files, self.limits.file)
        upload.feed(start)
        return upload

    def drop_upload(self, conn: Connection) -> None:
        """The connection is gone: so is the file that came over it."""
        if conn.upload and not conn.upload.whole:
            conn.upload.abandon()
        if conn.held and conn.held[1]:
            self.upload_over(conn.held[1], wanted=False)
            conn.held = None

    def upload_over(self, upload: Upload, wanted: bool) -> None:
        """The request of an upload was carried out, or never will be: `wanted` if a message has its file."""
        self.uploads.discard(upload)
        self.guarded(self.discard_files, *([upload.path.name] if upload.stored and not wanted else ()))

    def discard_files(self, *unwanted: str) -> None:
        """Removes stored files that no message has. What is still to be carried out might have the same."""
        self.unwanted.update(unwanted)
        while self.unwanted and not self.uploads:
            sha256 = next(iter(self.unwanted))
            if not self.store.names_file(sha256):
                (self.store.files / sha256).unlink(missing_ok=True)
            self.unwanted.remove(sha256)

    def seal_upload(self, conn: Connection, upload: Upload) -> None:
        """An upload is whole: has it put on disk, then carries out its request."""
        def done(result: Future) -> None:
            try:
                upload.path = self.store.files / result.result()
                upload.stored = True
            except OSError as problem:
                log.error("a file can't be stored: %s", problem)
                upload.abandon(ChatError("storage"))
            conn.upload = None
            conn.held = (upload.request, upload)
            if conn.dropped:
                self.drop_upload(conn)
            else:
                self.touched.add(conn)
        if upload.error:
            conn.upload, conn.held = None, (upload.request, upload)
        else:
            self.uploads.add(upload)
            self.workers.run(self.workers.syncs, done, seal_file, upload.path, self.store.files)

    def admit(self, conn: Connection, request: Request) -> tuple[Person | None, list[str]]:
        """Who asks, and the arguments without the token. Raises ChatError where the command is not theirs to send."""
        command, arguments = request.command, request.arguments
        if command.caller == USER or (command.names[0:1] == ["T"] and arguments):
            session = self.session_of(conn, arguments[0])
            if conn.session is None:
                self.attach(conn, session)
            return session.person, arguments[1:]
        if command.caller == common.REALM and (conn.link is None or conn.link.incoming is not conn):
            raise ChatError("unknown_command")
        if command.caller == common.STRANGER and (conn.session or conn.link):
            raise ChatError("unknown_command")
        return conn.session and conn.session.person, arguments[:]

    def session_of(self, conn: Connection, token: str) -> Session:
        """The session of a token. Raises ChatError."""
        if token == conn.token and not conn.token_session.ended:
            return conn.token_session
        session = self.store.sessions.get(hashlib.sha256(token.encode()).digest())
        idle = self.now_ms - session.used if session else 0
        if session is None or (idle > common.SESSION_DAYS * 86_400_000 and not session.person.connections):
            raise ChatError("session_not_found")
        if idle > 86_400_000:
            self.store.touch_session(session, self.now_ms)
        conn.token, conn.token_session = token, session
        return session

    def may_overtake(self, conn: Connection, request: Request) -> bool:
        """Whether a request may be carried out while earlier ones wait for another realm's word.

        Texts to that same realm may: they take the same way in the same order, so a pipelining sender is not held to
        one message a round trip. Everything else waits, and finds what was asked before it done.
        """
        last, word, arguments = conn.slots[-1], request.command.word, request.arguments
        if last.realm is None or len(conn.slots) >= common.PIPELINED_SENDS:
            return False
        if word in ("send", "sendgroup"):
            return arguments[1].lower().endswith("@" + last.realm)
        return word == "sendprivaterealm" and arguments[1].lower() == last.realm

    def earlier_reply(self, person: Person, tag: str) -> bytes | None:
        """The reply to an earlier send with the same tag. One that still waits for another realm is ended by it."""
        for link, stream, seq in self.waiting_tags.pop((person, tag), ()):
            if seq in link.waiting[stream]:
                self.stop_waiting(link, stream, seq)
        reply = self.store.tagged(person, tag)
        return reply.encode() if reply else None

    # -- sessions and events

    def attach(self, conn: Connection, session: Session) -> None:
        """The connection is that session's from here on."""
        if conn.session is session:
            return
        self.detach(conn)
        person = session.person
        was_online = person.online
        conn.session = session
        person.connections.add(conn)
        if not was_online:
            self.tell_presence(person)

    def detach(self, conn: Connection) -> None:
        """The connection is nobody's any more."""
        if conn.session is None:
            return
        person, conn.session, conn.subscribed = conn.session.person, None, False
        self.subscribers.discard(conn)
        person.connections.discard(conn)
        if not person.online:
            self.tell_presence(person)

    def tell_presence(self, person: Person) -> None:
        """A person came or went."""
        audience: Iterable[Person] | None = None
        if len(self.subscribers) > common.AUDIENCE:
            audience = {member for conversation in person.conversations.values() for member in conversation.members}
        self.announce("presence", audience, user=person.address, online=person.online)
        if person.realm == self.realm:
            self.news.append(format_event("person", **self.describe(person)))

    def announce(self, kind: str, members: Iterable[Person] | None, **fields: object) -> None:
        """Publishes an event that is no message."""
        self.runs.append(Run(members, [], format_event(kind, **fields)))

    def publish(self, message: Message) -> None:
        """Publishes a message to its conversation's members of this moment."""
        members = message.conversation.members
        if self.runs and self.runs[-1].members is members and self.runs[-1].messages:
            self.runs[-1].messages.append(message)
        else:
            self.runs.append(Run(members, [message]))

    def release(self) -> None:
        """The turn is on disk: what it decided may leave. The other realms' news go before any reply."""
        for conn in [link.incoming for link in self.links.values() if link.incoming and self.news]:
            conn.output.extend(self.news)
            conn.unsent += sum(map(len, self.news))
            self.touched.add(conn)
        for conn in self.touched:
            if conn.staged:
                conn.release()
        for run in self.runs:
            connections: Iterable[Connection] = self.subscribers
            if run.members is not None:
                connections = [conn for person in run.members for conn in person.connections if conn.subscribed]
            if connections:
                chunk = run.frame or b"".join([message.event() for message in run.messages])
                last_id = run.messages[-1].id if run.messages else 0
                for conn in connections:
                    conn.push(chunk, last_id)
                self.touched.update(connections)
        self.runs.clear()
        self.news.clear()
        self.ended.clear()

    def feed(self, conn: Connection) -> None:
        """Gives a subscriber who fell behind the next messages from the table."""
        frames, weight = [], 0
        for message in self.store.messages_after(conn.session.person, conn.cursor):
            if weight > common.OUTPUT_MARK:
                break
            frames.append(message.event())
            weight += len(frames[-1])
            conn.cursor = message.id
        if frames:
            conn.output.append(b"".join(frames))
        conn.unsent += weight
        conn.behind = weight > common.OUTPUT_MARK

    # -- auth, register, groups

    def do_auth(self, conn: Connection, _: Person | None, user: str, password: str) -> object:
        account = f"{user.lower()[:common.MAX_NAME + 1]}@{self.realm}"     # a longer name is nobody's
        person = self.store.people.get(account)
        self.verify(conn, account, person and person.password, password, lambda _: self.log_in(conn, person))
        return LATER

    def verify(self, conn: Connection, account: str, stored: str | None, password: str,
               succeed: Callable[[str], dict[str, object]], new: str | None = None) -> None:
        """Has a password checked, as often as the account may be tried, and then calls `succeed` for the reply.

        It gets the hash of the `new` password, if there is one. An account that does not exist costs the same.
        """
        slot = self.hash_slot(conn)
        guesses = self.guesses.setdefault(account, Guesses())

        def go(error: ChatError | None) -> None:
            if error:
                self.end_hash(conn, slot, error.reply())
            else:
                self.workers.run(self.workers.hashes, done, verify_password, password, stored or NO_PASSWORD, new)

        def done(result: Future) -> None:
            hashed = result.result() if stored else None
            guesses.done(self.now, hashed is not None)
            if hashed is None:
                log.warning("failed login of %s from %s", account if stored else "an unknown user", conn.host)
                self.end_hash(conn, slot, ChatError("bad_credentials").reply())
            else:
                self.end_hash(conn, slot, self.guarded(succeed, hashed))
        guesses.ask(self.now, go)

    def hash_slot(self, conn: Connection) -> Slot:
        """A place for the reply to a login. Raises ChatError `busy` while too many wait for a hash."""
        if self.hashes >= common.HASH_QUEUE:
            raise ChatError("busy")
        self.hashes += 1
        return conn.later()

    def end_hash(self, conn: Connection, slot: Slot, reply: dict[str, object]) -> None:
        """The reply to a login is known."""
        self.hashes -= 1
        self.answer(conn, slot, reply)

    def log_in(self, conn: Connection, person: Person) -> dict[str, object]:
        """A new session for a person who has proved to be it."""
        token = secrets.token_hex(24)              # 192 random bits
        session = self.store.add_session(person, hashlib.sha256(token.encode()).digest(), self.now_ms)
        if not conn.dropped:
            self.attach(conn, session)
        log.info("%s logged in from %s", person.address, conn.host)
        return {"tokenid": token, "user": person.address}

    def do_register(self, conn: Connection, _: Person | None, user: str, password: str, nama: str,
                    negara: str) -> object:
        name = common.fold_name(user)
        nama, negara = (text.replace("_", " ").strip() or text for text in (nama, negara))
        if max(len(nama.encode()), len(negara.encode())) > common.MAX_FULL_NAME:
            raise ChatError("too_long")
        if self.is_taken(name):
            raise ChatError("user_exists")
        slot = self.hash_slot(conn)

        def add(hashed: str) -> dict[str, object]:
            if self.is_taken(name):                # by somebody who asked meanwhile
                raise ChatError("user_exists")
            return self.log_in(conn, self.store.add_person(name, self.realm, nama, negara, hashed))

        def done(result: Future) -> None:
            self.end_hash(conn, slot, self.guarded(add, result.result()))
        self.workers.run(self.workers.hashes, done, hash_password, password)
        return LATER

    def is_taken(self, name: str) -> bool:
        """Whether nobody can register under this name any more."""
        return name == SYSTEM or f"{name}@{self.realm}" in self.store.people

    def do_addgroup(self, conn: Connection, person: Person, group: str) -> object:
        name, realm = self.address(group)
        if realm != self.realm:
            self.links[realm].joining.add(name)
            return self.forward(conn, person, realm, {"do": "addgroup", "group": name})
        self.add_group(name, person)
        return {"message": f"Group {name} dibuat"}

    def add_group(self, name: str, admin: Person) -> None:
        """A new group of this realm."""
        if f"{name}@{self.realm}" in self.store.groups:
            raise ChatError("group_exists")
        self.tell_group(self.store.add_group(name, self.realm, admin), admin, "created")

    def do_joingroup(self, conn: Connection, person: Person, group: str) -> object:
        name, realm = self.address(group)
        if realm != self.realm:
            joined = self.store.groups.get(f"{name}@{realm}")
            if joined and person in joined.members:
                raise ChatError("already_member")
            self.links[realm].joining.add(name)
            return self.forward(conn, person, realm, {"do": "joingroup", "group": name})
        self.join_group(self.group(name), person)
        return {"message": f"Bergabung dengan group {name}"}

    def join_group(self, group: Conversation, person: Person) -> None:
        """A new member of a group of this realm."""
        if person in group.members:
            raise ChatError("already_member")
        self.store.add_member(group, person)
        self.tell_group(group, person, "joined")

    def leave_group(self, group: Conversation, person: Person) -> None:
        """A member leaves a group of this realm."""
        self.check_member(group, person)
        self.store.remove_member(group, person)
        self.tell_group(group, person, "left")

    def tell_group(self, group: Conversation, person: Person, change: str) -> None:
        """Our people, and the other realms, hear of a group's change."""
        fields = {"group": group.address, "user": person.address, "change": change}
        audience = None if len(self.subscribers) <= common.AUDIENCE else [*group.members, person]
        self.announce("group", audience, **fields)
        self.news.append(format_event("group", **fields, description=self.describe_group(group)))

    def group(self, name: str) -> Conversation:
        """A group of this realm. Raises ChatError."""
        group = self.store.groups.get(f"{name}@{self.realm}")
        if group is None:
            raise ChatError("group_not_found")
        return group

    @staticmethod
    def check_member(group: Conversation, person: Person) -> None:
        """Raises ChatError where the person is not in the group."""
        if person not in group.members:
            raise ChatError("not_member")

    def address(self, text: str) -> tuple[str, str]:
        """A name with or without its realm -> (name, realm), a realm of the table. Raises ChatError."""
        name, realm = common.parse_address(text, self.realm)
        if realm not in self.table:
            raise ChatError("realm_not_found")
        return name, realm

    # -- sending

    def do_send(self, conn: Connection, person: Person, user: str, text: str) -> object:
        conversation = person.routes.get(user)
        if conversation is None:
            return self.send_to(conn, person, user, {"text": text})
        return self.post(person, conversation, {"text": text})

    def do_sendfile(self, conn: Connection, person: Person, user: str, file: File) -> object:
        return self.send_to(conn, person, user, {"file": file})

    def do_sendgroup(self, conn: Connection, person: Person, group: str, text: str) -> object:
        return self.send_to_group(conn, person, group, {"text": text})

    def do_sendgroupfile(self, conn: Connection, person: Person, group: str, file: File) -> object:
        return self.send_to_group(conn, person, group, {"file": file})

    def send_to(self, conn: Connection, person: Person, user: str, body: dict, slot: Slot | None = None) -> object:
        """Sends to a person of any realm. `body` is `{"text": …}` or `{"file": File}`."""
        name, realm = self.address(user)
        if realm != self.realm:
            return self.forward(conn, person, realm, {"do": "send", "to": name}, body, slot)
        other = self.store.people.get(f"{name}@{realm}")
        if other is None or other.password is None:
            raise ChatError("user_not_found")
        conversation = self.store.private(person, other)
        if user in (other.name, other.address):
            person.routes[user] = conversation
        return self.post(person, conversation, body)

    def send_to_group(self, conn: Connection, person: Person, target: str, body: dict) -> object:
        """Sends to a group of any realm."""
        name, realm = self.address(target)
        group = self.store.groups.get(f"{name}@{realm}")
        if realm != self.realm:
            link = self.links[realm]
            if group is None and link.state == UP and name not in link.groups:
                raise ChatError("group_not_found")
            if group is None or person not in group.members:
                raise ChatError("not_member")
            return self.forward(conn, person, realm, {"do": "post", "group": name}, body)
        group = self.group(name)
        self.check_member(group, person)
        return self.post(person, group, body)

    def post(self, sender: Person, conversation: Conversation, body: dict, ts: int | None = None) -> dict[str, object]:
        """Stores a message here and publishes it; one for a group of ours goes to its members' realms too."""
        text, file = body.get("text"), body.get("file")
        message = self.store.add_message(conversation, sender, ts or self.now_ms, text, file)
        self.publish(message)
        if conversation.name and conversation.realm == self.realm:
            for realm in ({member.realm for member in conversation.members} & self.links.keys()) - {sender.realm}:
                item = {"do": "copy", "group": conversation.name, "from": sender.address, "name": sender.nama,
                        "ts": message.ts, **self.item_body(body)}
                self.links[realm].queue(sender, item, None, True)
        reply: dict[str, object] = {"message": SENT, "id": message.id}
        if file is not None:
            reply["file"] = {"id": message.id, **file._asdict()}
        return reply

    def check_rate(self, person: Person) -> None:
        """Raises ChatError where a person sends faster than --max-rate; BURST_SECONDS of it may come at once."""
        rate = self.limits.rate
        burst = rate * common.BURST_SECONDS
        gained = (self.now - person.counted) * rate if person.counted else burst
        person.allowance = min(burst, person.allowance + gained)
        person.counted = self.now
        if person.allowance < 1:
            raise ChatError("rate_limited", retry_after=1)
        person.allowance -= 1

    def check_stored(self, person: Person, size: int) -> None:
        """Raises ChatError where a person would have more stored than --max-stored."""
        if self.limits.stored and person.stored + size > self.limits.stored:
            raise ChatError("quota_exceeded", f"{self.limits.stored // common.MIB} MiB")

    @staticmethod
    def check_text(text: str) -> None:
        """Raises ChatError where a text is longer than a message may be."""
        if len(text) > common.MAX_TEXT // 4 and len(text.encode()) > common.MAX_TEXT:
            raise ChatError("too_long")

    @staticmethod
    def item_body(body: dict) -> dict:
        """A message's body as an item of the outbox carries it."""
        return {"file": body["file"]._asdict()} if "file" in body else body

    # -- passwd, inbox, logout, info

    def do_passwd(self, conn: Connection, person: Person, old: str, new: str) -> object:
        session = conn.token_session

        def change(hashed: str) -> dict[str, object]:
            self.store.set_password(person, hashed)
            for other in [other for other in self.store.sessions.values() if other.person is person]:
                if other is not session:
                    self.end_session(other)
            log.info("%s has a new password", person.address)
            return {"message": "Password diganti"}
        self.verify(conn, person.address, person.password, old, change, new)
        return LATER

    def do_inbox(self, conn: Connection, person: Person, realm: str | None = None) -> object:
        realms = list(self.table)
        page = list(itertools.islice(self.store.inbox(person, realms, realm), common.INBOX_PAGE))
        more = len(page) == common.INBOX_PAGE
        taken = page[-1].id if more else self.store.last_id
        conn.taking = (person, [realm] if realm else realms, taken)
        if realm:
            messages = json_list(page)
        else:
            by_sender: dict[str, list[Message]] = {}
            for message in page:
                by_sender.setdefault(message.sender.address, []).append(message)
            lists = [f'"{sender}":{json_list(by_sender[sender])}' for sender in by_sender]
            messages = Json(f"{{{','.join(lists)}}}")
        return {"messages": messages, "more": more}

    def take_inbox(self, conn: Connection) -> None:
        """The reply to an `inbox` has arrived: what it held is not new any more."""
        (person, realms, id), conn.taking = conn.taking, None
        self.store.take(person, realms, id)

    def do_logout(self, conn: Connection, person: Person) -> object:
        self.end_session(conn.token_session)
        return {"message": "Logout berhasil"}

    def end_session(self, session: Session) -> None:
        """A session's token ends at once, on every connection."""
        self.store.end_session(session)
        for conn in [conn for conn in session.person.connections if conn.session is session]:
            self.detach(conn)
            self.ended.append(conn)

    def do_info(self, conn: Connection, person: Person | None, realm: str | None = None) -> object:
        if person is None:
            raise ChatError("session_not_found")
        _, realm = self.address(f"x@{realm}" if realm else "x")
        link = self.links.get(realm)
        if link is None or link.state != UP:
            return self.info_of(realm)
        link.ask("ping", "info", (conn, conn.later()))         # what that realm had to tell comes before its answer
        return LATER

    def info_of(self, realm: str) -> dict[str, object]:
        """The reply to `info`, as far as we know."""
        users = [self.describe(other) for other in self.store.people.values()
                 if other.realm == realm and other.name != SYSTEM]
        users.sort(key=lambda user: user["user"])
        return {"message": ", ".join(user["user"] for user in users if user["online"]), "users": users}

    @staticmethod
    def describe(person: Person) -> dict[str, object]:
        """What everybody may know of a person."""
        return {"user": person.name, "nama": person.nama, "negara": person.negara, "realm": person.realm,
                "online": person.online}

    # -- getfile, history, groups, realms, subscribe, help

    def do_getfile(self, conn: Connection, person: Person, file_id: str) -> object:
        message = self.store.message(self.number(file_id))
        if message is None or message.file is None or message.id <= message.conversation.members.get(
                person, sys.maxsize):
            raise ChatError("file_not_found")
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
        with content:
            yield head[:-6]                        # without `"}` and the frame's end
            yield from common.encode_file(content)
            yield head[-6:]

    @staticmethod
    def number(text: str) -> int:
        """A whole number that a request names. Raises ChatError."""
        if not (text.isascii() and text.isdecimal() and len(text) < 19):
            raise ChatError("bad_arguments", text[:20])
        return int(text)

    def do_history(self, conn: Connection, person: Person, target: str, before: str = "", limit: str = "") -> object:
        most = min(self.number(limit), common.HISTORY_MAX) if limit else common.HISTORY_PAGE
        newest = self.number(before) if before else sys.maxsize
        conversation = self.conversation(person, target)
        page = self.store.history(conversation, person, newest, most + 1) if conversation else []
        more = len(page) > most
        return {"messages": json_list(page[1:] if more else page), "more": more}

    def conversation(self, person: Person, target: str) -> Conversation | None:
        """A person's conversation with a user or (`group:NAME`, or where no user is called so) a group."""
        name, realm = self.address(target.removeprefix("group:"))
        address = f"{name}@{realm}"
        found = person.conversations.get(address)
        if not target.startswith("group:") and (found or address in self.store.people):
            return found
        group = person.conversations.get(f"group:{address}")
        if group is None:
            known = address in self.store.groups or (realm in self.links and name in self.links[realm].groups)
            raise ChatError("not_member" if known else "group_not_found" if target.startswith("group:")
                            else "user_not_found")
        return group

    def do_groups(self, conn: Connection, person: Person) -> object:
        groups = {address: self.describe_group(group) for address, group in self.store.groups.items()
                  if group.realm == self.realm or person in group.members}
        for realm, link in self.links.items():
            groups |= {f"{name}@{realm}": group for name, group in link.groups.items()}
        own = person.conversations
        return {"groups": [{"group": address, "admin": group["admin"], "members": group["members"],
                            "member": f"group:{address}" in own} for address, group in groups.items()]}

    @staticmethod
    def describe_group(group: Conversation) -> dict[str, object]:
        """What everybody may know of a group."""
        return {"name": group.name, "admin": group.admin.address if group.admin else None,
                "members": [member.address for member in group.members]}

    def do_leavegroup(self, conn: Connection, person: Person, group: str) -> object:
        name, realm = self.address(group)
        if realm != self.realm:
            if f"group:{name}@{realm}" not in person.conversations:
                raise ChatError("not_member" if name in self.links[realm].groups else "group_not_found")
            return self.forward(conn, person, realm, {"do": "leavegroup", "group": name})
        self.leave_group(self.group(name), person)
        return {"message": f"Keluar dari group {name}"}

    def do_realms(self, conn: Connection, person: Person) -> object:
        realms: dict[str, dict] = {}
        for name, row in self.table.items():
            link = self.links.get(name)
            trip = link and link.round_trip
            realms[name] = {"address": row.address, "port": row.port,
                            "link": "local" if link is None else UP if link.state == UP else DOWN,
                            "queued": self.store.queued(name) if link else 0,
                            "rtt_ms": None if trip is None else round(trip * 1000, 2)}
        return {"realms": realms}

    def do_subscribe(self, conn: Connection, person: Person, after: str = "") -> object:
        self.attach(conn, conn.token_session)
        conn.cursor = min(self.number(after), self.store.last_id) if after else self.store.last_id
        conn.subscribed = conn.behind = True       # the table feeds it from the cursor on, after this reply
        self.subscribers.add(conn)
        return {"last_id": self.store.last_id}

    def do_help(self, conn: Connection, _: Person | None, word: str = "") -> object:
        return {"message": common.help_text(word)}

    # -- the documented commands between realms

    def do_sendprivaterealm(self, conn: Connection, person: Person, realm: str, user: str, text: str) -> object:
        return self.send_to(conn, person, f"{user}@{realm}", {"text": text})

    def do_sendfilerealm(self, conn: Connection, person: Person, realm: str, user: str, file: File) -> object:
        return self.send_to(conn, person, f"{user}@{realm}", {"file": file})

    def do_sendgrouprealm(self, conn: Connection, person: Person, realm: str, targets: str, text: str) -> object:
        return self.send_to_all(conn, person, realm, targets, {"text": text})

    def do_sendgroupfilerealm(self, conn: Connection, person: Person, realm: str, targets: str, file: File) -> object:
        return self.send_to_all(conn, person, realm, targets, {"file": file})

    def send_to_all(self, conn: Connection, person: Person, realm: str, targets: str, body: dict) -> object:
        """Sends to `group:NAME`, or to each of `u1,u2`; one slot takes all the results."""
        group, is_group, name = targets.partition("group:")
        if is_group and not group:
            return self.send_to_group(conn, person, f"{name}@{realm}", body)
        users = [user for user in dict.fromkeys(targets.split(",")) if user]
        _, realm = self.address(f"x@{realm}")
        if not users:
            raise ChatError("bad_arguments", "u1,u2")
        if len(users) > common.MAX_TARGETS:
            raise ChatError("too_long")
        for _ in users[1:] if self.limits.rate else ():        # the first was counted with the request
            self.check_rate(person)
        slot = conn.later(realm, person)
        slot.expected = len(users)
        for user in users:
            try:
                result = self.send_to(conn, person, f"{user}@{realm}", body, slot)
            except ChatError as error:
                result = error.reply()
            if result is not LATER:
                self.answer(conn, slot, result, user)
        if "file" in body and len(slot.results) == slot.expected:
            self.discard_files(body["file"].sha256)             # which keeps it where one of them got it
        return LATER

    def do_getrealminbox(self, conn: Connection, person: Person, realm: str) -> object:
        _, realm = self.address(f"x@{realm}")
        return self.do_inbox(conn, person, realm)

    def do_addrealm(self, conn: Connection, _: Person | None, name: str, address: str, port: str) -> object:
        rows = (self.table.get(name.lower()), common.REALMS.get(name.lower()))     # as it is, and as it is documented
        if not any(row and (row.address, str(row.port)) == (address, port) for row in rows):
            raise ChatError("unknown_realm")
        return {"message": f"Realm {name.lower()} ada dalam tabel realm"}

    # -- other realms: what we ask of them

    def forward(self, conn: Connection, person: Person, realm: str, item: dict, body: dict | None = None,
                slot: Slot | None = None) -> object:
        """Puts an item for another realm into the outbox; the sender waits for its word while the link is up."""
        item |= {"from": person.name, "name": person.nama, "ts": self.now_ms, **self.item_body(body or {})}
        link = self.links[realm]
        if link.state != UP:
            reply = self.settle(realm, person, item, queued=True)
            link.queue(person, item, conn.tag, True)
            return reply
        stream, seq = link.queue(person, item, conn.tag, False)
        slot = slot or conn.later(realm, person)
        link.waiting[stream][seq] = Pending(conn, slot, person, item, conn.tag, self.now + common.REALM_REPLY_SECONDS)
        if conn.tag:
            self.waiting_tags.setdefault((person, conn.tag), []).append((link, stream, seq))
        return LATER

    def answer(self, conn: Connection | None, slot: Slot | None, reply: dict[str, object], to: str = "") -> None:
        """One of the results that a slot waits for; with the last one its reply is made."""
        if slot is None:
            return
        slot.results.append((to, reply))
        if len(slot.results) < slot.expected:
            return
        reply = self.combine(slot.results) if slot.expected > 1 else reply
        frame = format_reply(reply, slot.tag)
        if slot.tag and slot.sender:
            self.waiting_tags.pop((slot.sender, slot.tag), None)
            if "id" in reply and not self.store.failed:
                self.store.remember_tag(slot.sender, slot.tag, frame.decode())
        if not conn.dropped:
            conn.fill(slot, frame)
            self.touched.add(conn)

    @staticmethod
    def combine(results: list[tuple[str, dict[str, object]]]) -> dict[str, object]:
        """The reply to a send to several people: OK, or an ERROR that names those whom it did not reach."""
        ids = [reply["id"] for _, reply in results if "id" in reply]
        refused = [(to, reply) for to, reply in results if reply.get("status") == "ERROR"]
        reply: dict[str, object] = {"message": SENT}
        if refused:
            names = ", ".join(to for to, _ in refused)
            reply = ChatError(str(refused[0][1]["code"]), names, users=[to for to, _ in refused]).reply()
        if any(reply.get("queued") for _, reply in results):
            reply["queued"] = True
        return {**reply, "id": ids[-1], "ids": ids} if ids else reply

    def settle(self, realm: str, person: Person, item: dict, queued: bool) -> dict[str, object]:
        """What the other realm took, or will take when it is back, is done here too: the fields of the reply."""
        do, name = item["do"], item.get("group", "")
        group = self.store.groups.get(f"{name}@{realm}")
        body = {"file": File(**item["file"])} if "file" in item else {"text": item.get("text", "")}
        if do == "send":
            reply = self.post(person, self.store.private(person, self.store.meet(item["to"], realm)), body, item["ts"])
        elif do == "post":
            if group is None:
                raise ChatError("group_not_found")
            reply = self.post(person, group, body, item["ts"])
        elif do == "leavegroup":
            if group and person in group.members:
                self.store.remove_member(group, person)
            reply = {"message": f"Keluar dari group {name}@{realm}"}
        else:
            self.links[realm].joining.discard(name)
            if group is None:
                self.store.add_group(name, realm, person)
            elif person not in group.members:
                self.store.add_member(group, person)
            reply = {"message": f"Anggota group {name}@{realm}"}
        return reply | {"message": QUEUED, "queued": True} if queued else reply

    def settle_pending(self, link: RealmLink, stream: int, seq: int, queued: bool) -> None:
        """Ends the waiting of a sender whose item was taken, or has to be `queued`."""
        pending = link.waiting[stream].pop(seq)
        try:
            reply = self.settle(link.realm.name, pending.person, pending.item, queued)
        except ChatError as error:                 # a group that the sender has left meanwhile
            reply = error.reply()
        if pending.slot:
            self.answer(pending.conn, pending.slot, reply, pending.item.get("to", ""))
        elif pending.tag and "id" in reply:
            self.store.remember_tag(pending.person, pending.tag, format_reply(reply, pending.tag).decode())

    def stop_waiting(self, link: RealmLink, stream: int, seq: int) -> None:
        """Another realm's word is not waited for any longer; its item stays in the outbox."""
        self.store.settle_item(link.realm.name, stream, seq)
        self.settle_pending(link, stream, seq, queued=True)

    def stop_all(self, link: RealmLink) -> None:
        """Nobody waits for this realm's word any longer."""
        for stream, waiting in enumerate(link.waiting):
            for seq in list(waiting):
                self.stop_waiting(link, stream, seq)

    def taken(self, link: RealmLink, stream: int, have: int, refused: dict[str, str]) -> None:
        """The other realm has the items up to `have` on disk, but refused some of them."""
        refusals = [(int(seq), ChatError(code if code in common.ERRORS else "internal_error"))
                    for seq, code in refused.items()]
        items = {seq: self.store.item(link.realm.name, stream, seq) for seq, _ in refusals}
        link.acknowledged(stream, have)
        for seq, error in refusals:
            pending = link.waiting[stream].pop(seq, None)
            link.joining.discard(pending.item.get("group", "") if pending else "")
            if pending and pending.slot:
                self.answer(pending.conn, pending.slot, error.reply(), pending.item.get("to", ""))
            elif items[seq]:
                person, item, _ = items[seq]
                self.bounce(link.realm.name, person, item, error)
            if pending and "file" in pending.item:
                self.discard_files(pending.item["file"]["sha256"])
        for seq in list(itertools.takewhile(lambda seq: seq <= have, link.waiting[stream])):
            self.settle_pending(link, stream, seq, queued=False)

    def bounce(self, realm: str, person: Person, item: dict, error: ChatError) -> None:
        """Tells a sender, who has long heard `queued`, that it came to nothing."""
        do, name = item["do"], item.get("group", "")
        if do == "copy":
            log.warning("realm %s refused a message of group %s: %s", realm, name, error.code)
            return
        group = self.store.groups.get(f"{name}@{realm}")
        if do in ("addgroup", "joingroup") and error.code != "already_member" and group and person in group.members:
            self.store.remove_member(group, person)
        text = item.get("text") or item.get("file", {}).get("name") or do
        system = self.store.meet(SYSTEM, realm, f"Realm {realm}")
        self.post(system, self.store.private(person, system), {"text": BOUNCE.format(
            target=f"{item.get('to') or name}@{realm}", reason=error.message, text=text[:200])})

    def hear(self, link: RealmLink, line: bytes) -> None:
        """A line that came over a link: an event, or the reply to what we asked. Raises ChatError to end the link."""
        link.heard = self.now
        if line.strip():                           # else it is the second half of a frame's end
            failure = self.guarded(self.hear_frame, link, line)
            if failure:
                raise ChatError(failure["code"], failure["message"])

    def hear_frame(self, link: RealmLink, line: bytes) -> None:
        """An event, or a reply. Raises ChatError, also where it is neither."""
        try:
            frame = json.loads(line)
            if "event" in frame:
                self.hear_event(link, frame)
            else:
                self.hear_reply(link, frame)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            log.debug("a frame of realm %s", link.realm.name, exc_info=True)   # theirs is bad, or ours is a fault
            raise ChatError("realm_refused", f"malformed frame: {type(error).__name__}") from None

    def hear_reply(self, link: RealmLink, reply: dict) -> None:
        """The reply to the oldest request that is not answered yet."""
        kind, about = link.expected.popleft()
        if reply["status"] != "OK":
            if kind == "piece" and reply.get("code") == "too_large":
                link.file_is_there(link.transfer.sha256)           # it will be refused with its item
                return
            raise ChatError("realm_refused", f"{kind}: {reply.get('code')}")
        if kind == "peer":
            link.answer_to_peer(reply)
        elif kind == "peerproof":
            link.is_up(self.now)
            for stream in (TALK, FILES):
                self.taken(link, stream, int(reply["have"][stream]), reply["refused"][stream])
            log.info("link to %s is up", link.realm.name)
            self.announce("realm", None, realm=link.realm.name, link=UP)
        elif kind == "deliver":
            link.busy[about] = False
            self.taken(link, about, int(reply["have"]), reply["refused"])
        elif kind == "piece":
            link.piece_written(reply, about)
        elif kind == "ping":
            link.round_trip = self.now - about
        elif kind == "info":
            self.answer(*about, self.info_of(link.realm.name))

    def hear_event(self, link: RealmLink, event: dict) -> None:
        """What another realm tells of its people, its groups, and the files that it was sent."""
        realm = link.realm.name
        if event["event"] == "person":
            person = self.store.meet(common.fold_name(event["user"]), realm, self.full_name(event["nama"]),
                                     self.full_name(event["negara"]))
            if person.online_there != bool(event["online"]):
                person.online_there = bool(event["online"])
                if link.state == UP:
                    self.tell_presence(person)
        elif event["event"] == "group":
            group = event["description"]
            link.groups[common.fold_name(group["name"])] = {
                "admin": group["admin"], "members": [str(member) for member in group["members"]]}
            if event["change"]:
                self.announce("group", None, group=event["group"], user=event["user"], change=event["change"])
        elif event["event"] == "file":
            link.file_sealed(str(event["sha256"]), bool(event["sealed"]))

    @staticmethod
    def full_name(text: str) -> str:
        """A name that another realm tells, cut to what we would store ourselves."""
        return text.encode()[:common.MAX_FULL_NAME].decode(errors="ignore")

    def link_lost(self, link: RealmLink) -> None:
        """The connection to another realm is gone: its senders wait no longer."""
        was_up = link.state == UP
        for kind, about in link.expected:
            if kind == "info":
                self.answer(*about, self.info_of(link.realm.name))
        link.lost(self.now)
        self.guarded(self.stop_all, link)
        if was_up:
            log.warning("link to %s is down", link.realm.name)
            self.announce("realm", None, realm=link.realm.name, link=DOWN)
            for person in self.store.people.values():
                if person.realm == link.realm.name:
                    person.online_there = False

    # -- other realms: what they ask of us

    def do_peer(self, conn: Connection, _: Person | None, name: str, epoch: str, nonce: str) -> object:
        link = self.links.get(name)
        if (link is None or not 16 <= len(nonce) <= 128 or len(epoch) > 64 or
                (link.key is None and conn.host != link.host)):
            raise self.refused(conn, name)
        conn.claim = Claim(link, epoch, nonce, secrets.token_hex(16))
        return {"nonce": conn.claim.our_nonce,
                "proof": link.proof("callee", name, self.realm, nonce, conn.claim.our_nonce)}

    def refused(self, conn: Connection, name: str) -> ChatError:
        """Somebody who is not the realm that it says to be."""
        log.warning("refused a connection from %s that says to be realm %r", conn.host, name[:common.MAX_NAME])
        conn.ending = True
        return ChatError("realm_refused")

    def do_peerproof(self, conn: Connection, _: Person | None, proof: str = "") -> object:
        claim, conn.claim = conn.claim, None
        if claim is None:
            raise self.refused(conn, "")
        link, name = claim.link, claim.link.realm.name
        if link.key is not None and not link.is_proof(proof, "caller", name, self.realm, claim.their_nonce,
                                                      claim.our_nonce):
            raise self.refused(conn, name)
        if link.incoming:
            link.incoming.ending = True            # it has come again: the older connection is dead
            self.touched.add(link.incoming)
        link.incoming, conn.link = conn, link
        conn.buffer.limit = common.LINK_LINE
        self.store.meet_epoch(name, claim.epoch)
        link.next_attempt, link.delay = self.now, common.LINK_RETRY_FIRST      # it is there: try at once
        directory = [format_event("person", **self.describe(person)) for person in self.store.people.values()
                     if person.realm == self.realm]
        directory += [format_event("group", change="", description=self.describe_group(group))
                      for group in self.store.groups.values() if group.realm == self.realm]
        conn.reply(b"".join(directory))            # before the reply, so that who is up knows it
        streams = (TALK, FILES)
        return {"have": [self.store.received(name, stream) for stream in streams],
                "refused": [self.store.refusals(name, stream, 0) for stream in streams]}

    def do_deliver(self, conn: Connection, _: Person | None, stream: str, after: str, items: str) -> object:
        link, which, before = conn.link, self.number(stream), self.number(after)
        name = link.realm.name
        try:
            batch = json.loads(items)
            sequence = [item["seq"] for item in batch] if type(batch) is list else [0]
        except (ValueError, TypeError, KeyError, RecursionError):
            sequence = [0]
        if which not in (TALK, FILES) or not all(type(seq) is int and 0 < seq < 2**62 for seq in sequence):
            conn.ending = True
            log.warning("realm %s sent a batch that is none", name)
            raise ChatError("bad_arguments")
        have = self.store.received(name, which)
        refused: dict[int, str] = {}
        if before <= have:                         # else there is a gap: we say what we have, and it goes on from there
            for item in batch:
                if item["seq"] > have:
                    have = item["seq"]
                    code = self.receive(link, item)
                    if code:
                        refused[have] = code
            self.store.set_received(name, which, have, refused)
        return {"have": have, "refused": self.store.refusals(name, which, before)}

    def receive(self, link: RealmLink, item: dict) -> str | None:
        """Carries out one item of another realm; returns the code of the refusal, if any."""
        try:
            self.carry_out_item(link.realm.name, item)
        except ChatError as error:
            if error.code in ("storage", "file_not_found"):        # not the item's fault: the link tries again later
                raise
            log.info("refused an item of realm %s: %s", link.realm.name, error.code)
            file = item.get("file")
            if isinstance(file, dict) and SHA256.fullmatch(str(file.get("sha256"))):
                self.discard_files(file["sha256"])
            return error.code
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("realm %s sent an item that is none: %s", link.realm.name, type(error).__name__)
            return "bad_arguments"
        return None

    def carry_out_item(self, realm: str, item: dict) -> None:
        """What a person of another realm does here. Raises ChatError, and others where the item is malformed."""
        do, nama, ts = item["do"], self.full_name(item["name"]), item["ts"]
        ts = ts if type(ts) is int and 0 < ts < 253_402_300_800_000 else self.now_ms       # the year 10000
        name, sender_realm = common.parse_address(item["from"], realm)
        sender = self.store.people.get(f"{name}@{sender_realm}")
        body = self.body_of_item(item, sender) if do in ("send", "post", "copy") else {}
        if do == "copy":                           # a message in a group that lives there, whoever said it
            if sender_realm == self.realm or sender_realm not in self.table:
                raise ChatError("realm_refused")   # nobody else speaks for our people
            group_name = common.fold_name(item["group"])
            if group_name in self.links[realm].joining:
                self.let_in(self.links[realm], group_name)
            group = self.store.groups.get(f"{group_name}@{realm}")
            if group is None:
                raise ChatError("group_not_found")
            self.post(sender or self.store.meet(name, sender_realm, nama), group, body, ts)
            return
        if sender_realm != realm:
            raise ChatError("realm_refused")
        if do == "send":
            other = self.store.people.get(f"{common.fold_name(item['to'])}@{self.realm}")
            if other is None or other.password is None:
                raise ChatError("user_not_found")
            sender = self.store.meet(name, realm, nama)
            self.post(sender, self.store.private(sender, other), body, ts)
            return
        group_name = common.fold_name(item["group"])
        if do == "addgroup":
            self.add_group(group_name, sender or self.store.meet(name, realm, nama))
        elif do == "joingroup":
            if sender not in self.group(group_name).members:       # else its realm has lost its data: let it in again
                self.join_group(self.group(group_name), sender or self.store.meet(name, realm, nama))
        elif do == "leavegroup":
            self.leave_group(self.group(group_name), sender)
        elif do == "post":
            self.check_member(self.group(group_name), sender)
            self.post(sender, self.group(group_name), body, ts)
        else:
            raise ChatError("unknown_command")

    def let_in(self, link: RealmLink, group: str) -> None:
        """A group's message may have overtaken the word that lets somebody of ours in: that one is to see it."""
        link.joining.discard(group)
        for stream, waiting in enumerate(link.waiting):
            for seq, pending in list(waiting.items()):
                if pending.item["do"] in ("addgroup", "joingroup") and pending.item["group"] == group:
                    self.settle_pending(link, stream, seq, queued=False)

    def body_of_item(self, item: dict, sender: Person | None) -> dict:
        """The text, or the file, of another realm's message. Raises ChatError."""
        if "file" not in item:
            item["text"].encode()                  # what cannot be encoded is no text
            self.check_text(item["text"])
            return {"text": item["text"]}
        name, size, sha256 = (item["file"][key] for key in File._fields)
        if type(size) is not int or size < 0 or not SHA256.fullmatch(sha256):
            raise ValueError
        if size > self.limits.file:
            raise ChatError("too_large")
        path = self.store.files / sha256
        if not path.exists() or path.stat().st_size != size:
            raise ChatError("file_not_found")
        if sender:
            self.check_stored(sender, size)
        return {"file": File(common.decode_file_name(common.encode_file_name(name)), size, sha256)}

    def do_piece(self, conn: Connection, _: Person | None, sha256: str, size: str, offset: str,
                 content: str = "") -> object:
        link, whole, start = conn.link, self.number(size), self.number(offset)
        if not SHA256.fullmatch(sha256):
            raise ChatError("bad_arguments")
        if whole > self.limits.file:
            raise ChatError("too_large")
        if (self.store.files / sha256).exists():
            return {"offset": whole, "complete": True}
        path = self.store.files / f"part-{link.realm.name}-{sha256}"
        try:
            have = link.write_part(path, sha256, whole, start, binascii.a2b_base64(content))
        except binascii.Error:
            raise ChatError("bad_base64") from None
        except OSError as problem:
            log.error("a file of realm %s can't be written: %s", link.realm.name, problem)
            raise ChatError("storage") from None
        if have == whole and sha256 not in link.sealing:
            link.sealing.add(sha256)

            def done(result: Future) -> None:
                link.sealing.discard(sha256)
                if result.exception():
                    log.error("a file of realm %s can't be stored: %s", link.realm.name, result.exception())
                if not conn.dropped:
                    conn.reply(format_event("file", sha256=sha256, sealed=not result.exception()))
                    self.touched.add(conn)
            self.workers.run(self.workers.syncs, done, seal_file, path, self.store.files, sha256)
        return {"offset": have, "complete": False}

    def do_ping(self, conn: Connection, _: Person | None) -> object:
        return {}


SHA256 = re.compile("[0-9a-f]{64}")

# ---- Server ------------------------------------------------------------------------------------


class Server:
    """The loop, and all sockets."""

    def __init__(self, chat: Chat, bind: str, port: int, waker: socket.socket, *, tls: ssl.SSLContext | None = None,
                 peer_tls: ssl.SSLContext | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Listens at once. Through `waker` threads and signals end the selector's wait; `tls` is for who connects
        here, `peer_tls` for the realms whose rows say so."""
        self.chat = chat
        self.clock = clock
        self.tls = tls
        self.peer_tls = peer_tls
        self.selector = selectors.DefaultSelector()
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        self.listener = socket.create_server((bind, port), family=family, backlog=socket.SOMAXCONN)
        self.listener.setblocking(False)
        self.port: int = self.listener.getsockname()[1]
        self.waker = waker
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.waker, selectors.EVENT_READ, self.woken)
        self.connections: set[Connection] = set()
        self.addresses: Counter[str] = Counter()   # connections from each address
        self.guests: dict[Connection, float] = {}  # not logged in yet -> when to look at them, the earliest first
        self.runnable: dict[Connection, None] = {} # with lines left from an earlier turn, in their order
        self.unfinished: set[Connection] = set()   # to be written to again though the selector says nothing
        self.doomed: dict[Connection, bool] = {}   # to be closed in the next turn; whether by a reset
        self.endings: set[Connection] = set()      # closed as soon as the kernel has sent what it holds
        self.accept_again = 0.0                    # when accepting failed: the time to try again
        self.stopping = False

    def run(self) -> None:
        """Turns until `stopping`, then lets what is under way come to its end."""
        while not self.stopping:
            self.turn()
        if not self.accept_again:
            self.selector.unregister(self.listener)
        self.accept_again = 0.0
        self.listener.close()
        deadline = self.clock() + common.DRAIN_SECONDS
        for conn in self.connections:
            conn.ending = True                     # no further request
            self.chat.touched.add(conn)
        while self.connections and self.clock() < deadline:
            self.turn()
        for conn in list(self.connections):
            self.close(conn, reset=True)

    def turn(self) -> None:
        """One turn of the loop: read, carry out, commit, write."""
        chat = self.chat
        self.look(self.patience())
        now = self.clock()
        chat.guarded(chat.tick, now)
        self.check_times(now)
        self.serve_all(now)
        self.look(0.0)                             # what has come meanwhile shares the COMMIT
        chat.workers.finish()                      # behind the last look, which may have taken in their call
        self.serve_all(now)
        for conn in list(self.doomed):
            self.close(conn, self.doomed.pop(conn))
        self.commit()
        touched, chat.touched, self.unfinished = self.unfinished | chat.touched, set(), set()
        for conn in touched:
            if not conn.dropped:
                self.write(conn)

    def look(self, patience: float) -> None:
        """Waits for what the sockets have, so many seconds at most, and takes it in."""
        for key, mask in self.selector.select(patience):
            if isinstance(key.data, Connection):
                if key.data.shaking:
                    self.shake_hands(key.data)
                    continue
                if mask & selectors.EVENT_READ:
                    self.receive(key.data)
                if mask & selectors.EVENT_WRITE:
                    self.unfinished.add(key.data)
            else:
                key.data()

    def patience(self) -> float:
        """Seconds that the selector may wait."""
        if self.runnable or self.doomed or self.unfinished or self.chat.touched:
            return 0.0
        now = self.clock()
        times = [now + 1.0] if self.guests else [now + 60.0]
        for link in self.chat.links.values():
            times.append(link.next_check(now))
            times += [first[1].due for first in map(link.first_waiting, (TALK, FILES)) if first]
        if self.endings:
            times.append(now + 0.01)
        if self.accept_again:
            times.append(self.accept_again)
        return max(0.0, min(times) - now)

    def commit(self) -> None:
        """Puts the turn on disk, so that what it decided may leave; or tells all who took part that it failed."""
        chat, store = self.chat, self.chat.store
        try:
            if store.failed:
                raise ChatError("storage")
            store.commit()
        except (sqlite3.Error, ChatError) as error:
            self.turn_failed(error)
            return
        chat.release()
        for link in [link for link in chat.links.values() if link.conn]:
            try:
                link.pump()
            except (OSError, sqlite3.Error) as error:
                log.error("link to %s: %s", link.realm.name, error)
                self.doomed[link.conn] = False
            if link.conn.has_output:
                chat.touched.add(link.conn)

    def turn_failed(self, error: Exception) -> None:
        """The turn could not be put on disk: it is undone, and all who took part are told."""
        log.error("a turn can't be put on disk: %s", error)
        chat = self.chat
        try:
            chat.store.abort()
            chat.recover()
        except sqlite3.Error as problem:
            log.critical("the database can't be read any more: %s", problem)
            self.stopping = True
        chat.runs.clear()
        chat.news.clear()
        while chat.ended:                          # their sessions go on; they missed nothing if they come again
            self.doomed[chat.ended.pop()] = False
        for conn in chat.touched:
            conn.taking = None
            conn.streaming = conn.streaming and not conn.staged
            conn.staged = [(tag, format_reply(ChatError("storage").reply(), tag)) for tag, _ in conn.staged]
            conn.release()
        for link in chat.links.values():           # what the links had heard is forgotten: they ask again
            for conn in (link.conn, link.incoming):
                if conn:
                    self.doomed[conn] = False

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
        if self.tls:
            sock = self.tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        conn = Connection(sock, host)
        conn.shaking = self.tls is not None
        conn.deadline = self.clock() + common.LOGIN_SECONDS
        limits = self.chat.limits
        if len(self.connections) >= limits.connections or self.addresses[host] >= limits.per_address > 0:
            conn.reply(format_reply(ChatError("busy").reply()))
            conn.ending = True
            self.chat.touched.add(conn)
        self.connections.add(conn)
        self.addresses[host] += 1
        self.guests[conn] = conn.deadline
        self.watch(conn, selectors.EVENT_READ)

    def shake_hands(self, conn: Connection) -> None:
        """Goes on with the TLS handshake; the deadline of a guest, or of a link, is its time limit."""
        wanted = selectors.EVENT_READ
        try:
            conn.sock.do_handshake()
            conn.shaking = False
            if conn.is_outgoing:
                conn.link.connected(self.clock())
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLWantWriteError:
            wanted = selectors.EVENT_WRITE
        except OSError as error:
            log.info("no TLS with %s: %s", conn.host, error)
            self.doomed[conn] = False
        self.watch(conn, wanted)
        self.chat.touched.add(conn)

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
        if mask != conn.mask:
            if not conn.mask:
                self.selector.register(conn.sock, mask, conn)
            elif not mask:
                self.selector.unregister(conn.sock)
            else:
                self.selector.modify(conn.sock, mask, conn)
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
        try:
            data = conn.sock.recv(common.RECEIVE_SIZE)
        except WOULD_BLOCK:
            return
        except OSError:
            self.doomed[conn] = False
            return
        if data:
            conn.buffer.feed(data)
        else:
            conn.finished = True
        self.runnable[conn] = None

    # -- carry out

    def serve_all(self, now: float) -> None:
        """Carries out lines of every connection that has some, each in its turn, until the turn has lasted enough."""
        enough = now + common.TURN_SECONDS
        for conn in list(self.runnable):
            del self.runnable[conn]
            self.chat.touched.add(conn)            # also when it has work left: `write` puts it back into `runnable`
            if not conn.dropped:
                self.serve(conn, now)
            if self.clock() > enough:
                return

    def serve(self, conn: Connection, now: float) -> None:
        """Carries out the lines of one connection, at most LINES_PER_TURN."""
        outgoing = conn.is_outgoing
        for _ in range(common.LINES_PER_TURN):
            if not conn.may_serve:
                return
            if conn.held:
                (request, upload), conn.held = conn.held, None
                self.chat.carry_out(conn, request, upload)
                continue
            line = conn.buffer.next_line()
            if line is None:
                if not conn.buffer.overlong or not self.serve_overlong(conn):
                    return
            elif outgoing:
                self.hear(conn, line)
            else:
                conn.deadline = now + common.LOGIN_SECONDS
                upload = self.chat.execute(conn, line)
                if upload:
                    self.end_upload(conn, upload)

    def serve_overlong(self, conn: Connection) -> bool:
        """Takes what there is of a line past the limit into its upload; whether the line has ended."""
        data, ended = conn.buffer.take_overlong()
        if conn.link:
            log.warning("realm %s sent a line that does not end", conn.link.realm.name)
            self.doomed[conn] = True
            return False
        if conn.upload is None:
            conn.upload = self.chat.begin_upload(conn, data)
        else:
            conn.upload.feed(data)
        if ended:
            self.end_upload(conn, conn.upload)
        return ended

    def end_upload(self, conn: Connection, upload: Upload) -> None:
        """A line with a file has ended."""
        conn.upload = upload
        upload.finish()
        self.chat.seal_upload(conn, upload)

    def hear(self, conn: Connection, line: bytes) -> None:
        """A line from a realm that we have called."""
        try:
            self.chat.hear(conn.link, line)
        except ChatError as error:
            log.warning("link to %s: %s", conn.link.realm.name, error.message)
            self.doomed[conn] = False

    # -- write

    def write(self, conn: Connection) -> None:
        """Sends what a connection is owed, and asks the selector for what it has to wait for."""
        if conn.shaking:
            return
        try:
            blocked = not self.send(conn)
        except (OSError, sqlite3.Error) as error:
            log.debug("connection from %s: %s", conn.host, error)
            self.doomed[conn] = False
            return
        if not blocked and (conn.has_output or (conn.behind and conn.subscribed)):
            self.unfinished.add(conn)              # it has had its share of this turn
        if conn.finished and conn.is_idle:
            conn.ending = True
        if conn.ending and not conn.has_output and not conn.slots:
            self.end(conn)
        elif conn.has_work:
            self.runnable[conn] = None
        wanted = selectors.EVENT_WRITE if blocked else 0
        if (conn.mask & selectors.EVENT_READ and not conn.finished) or conn.may_read:
            wanted |= selectors.EVENT_READ         # what is not wanted is dropped when it comes: see `receive`
        self.watch(conn, wanted)

    def send(self, conn: Connection) -> bool:
        """Sends up to OUTPUT_MARK bytes; False where the socket takes no more now."""
        sent = 0
        while (conn.output or conn.sending or conn.behind) and sent < common.OUTPUT_MARK:
            chunk = conn.sending or self.next_chunk(conn)
            if not chunk:
                break
            conn.sending = chunk
            try:
                count = conn.sock.send(chunk)
            except WOULD_BLOCK:
                return False
            sent += count
            if count < len(chunk):
                conn.sending = memoryview(chunk)[count:]
                return False
            conn.sending = None
        if conn.taking and not conn.has_output:
            self.chat.touched.add(conn)            # the reply is off: the next turn takes the inbox
            self.chat.drained.add(conn)
        return True

    def next_chunk(self, conn: Connection) -> bytes | None:
        """The next bytes for a socket, in one piece. They count as sent from here on."""
        output, chunks = conn.output, []
        if not output and conn.behind and conn.subscribed:
            self.chat.feed(conn)
        while output and type(output[0]) is bytes:
            chunks.append(output.popleft())
        if chunks:
            conn.unsent = 0
            return b"".join(chunks)
        if not output:
            return None
        chunk = next(output[0], None)
        if chunk is None:
            output.popleft()
            conn.streaming = False
            return self.next_chunk(conn)
        return chunk

    # -- ends

    def end(self, conn: Connection) -> None:
        """All is said. A client that never subscribed may be one of the old ones, who spin for ever on an orderly
        close: it gets a reset, once the kernel has handed over the last reply."""
        if conn.finished or conn.subscribed or conn.link:
            self.doomed[conn] = False
        elif conn not in self.endings:
            conn.deadline = self.clock() + common.DRAIN_SECONDS
            self.endings.add(conn)

    def check_times(self, now: float) -> None:
        """What is due: links, guests, endings, accepting again."""
        for link in self.chat.links.values():
            if link.wants_connection(now) and not self.stopping:
                self.connect(link, now)
            elif link.conn and not link.check(now):
                log.warning("realm %s is silent", link.realm.name)
                self.doomed[link.conn] = False
        while self.guests and next(iter(self.guests.values())) <= now:
            conn = next(iter(self.guests))
            del self.guests[conn]
            if conn.session or conn.link:
                continue                           # not a guest any more
            if conn.deadline > now or conn.slots:  # a request came meanwhile, or is being answered
                self.guests[conn] = max(conn.deadline, now + 1.0)
            else:
                self.doomed[conn] = True
        for conn in [conn for conn in self.endings if now > conn.deadline or not unsent_bytes(conn.sock)]:
            self.endings.discard(conn)
            self.doomed[conn] = True
        if self.accept_again and now >= self.accept_again:
            self.accept_again = 0.0
            self.selector.register(self.listener, selectors.EVENT_READ, self.accept)

    def connect(self, link: RealmLink, now: float) -> None:
        """Opens a connection to another realm; `connected` goes on when it is open."""
        family = socket.AF_INET6 if ":" in link.host else socket.AF_INET
        conn = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            conn = Connection(sock, link.host, common.LINK_LINE)
            sock.setblocking(False)
            self.tune(sock)
            code = sock.connect_ex((link.host, link.realm.port))
            if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK, getattr(errno, "WSAEWOULDBLOCK", 0)):
                raise OSError(code, "connect")
        except OSError:
            if conn:
                conn.sock.close()
            link.lost(now)
            return
        conn.link = link
        link.connecting(conn, now)
        self.connections.add(conn)
        self.selector.register(conn.sock, selectors.EVENT_WRITE, lambda: self.connected(conn))
        conn.mask = selectors.EVENT_WRITE

    def connected(self, conn: Connection) -> None:
        """A connection to another realm is open, or has failed."""
        if conn.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.doomed[conn] = False
            return
        self.selector.unregister(conn.sock)
        conn.mask = 0
        if conn.link.realm.tls:
            try:
                conn.sock = self.peer_tls.wrap_socket(conn.sock, server_hostname=conn.link.realm.address,
                                                      do_handshake_on_connect=False)
            except OSError:
                self.doomed[conn] = False
                return
            conn.shaking = True
            self.shake_hands(conn)
        else:
            self.watch(conn, selectors.EVENT_READ)
            conn.link.connected(self.clock())

    def close(self, conn: Connection, reset: bool) -> None:
        """Closes a connection, and ends what hung on it."""
        if conn.dropped:
            return
        conn.dropped = True
        self.watch(conn, 0)
        if reset:
            with contextlib.suppress(OSError):
                conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.sock.close()
        self.connections.discard(conn)
        if not conn.is_outgoing:
            self.addresses[conn.host] -= 1
            if not self.addresses[conn.host]:
                del self.addresses[conn.host]
        self.guests.pop(conn, None)
        self.runnable.pop(conn, None)
        self.endings.discard(conn)
        self.chat.detach(conn)
        self.chat.drop_upload(conn)
        if conn.link and conn.is_outgoing:
            self.chat.link_lost(conn.link)
        elif conn.link and conn.link.incoming is conn:
            conn.link.incoming = None
            conn.link.close_parts()


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes that the kernel has not handed over yet; 1 on a system that does not tell."""
    try:
        return struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))[0]
    except (AttributeError, OSError):
        return 1


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
        options.table = common.realm_table(options.local, options.peer)
        options.key = options.realm_key.read_bytes().strip() if options.realm_key else None
        options.tls = options.peer_tls = None
        if options.tls_cert:
            options.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            options.tls.load_cert_chain(options.tls_cert, options.tls_key)
        if any(realm.tls for realm in options.table.values()):
            options.peer_tls = ssl.create_default_context(cafile=options.tls_ca)
    except (ValueError, ChatError, OSError) as error:
        parser.error(str(error))
    if options.key is not None and len(options.key) < 16:
        parser.error(f"{options.realm_key} holds no key: 16 bytes at least")
    options.realm = options.realm.lower()
    if options.realm not in options.table:
        parser.error(f"the realm table has no {options.realm!r}: {', '.join(options.table)}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs a server until SIGTERM or Ctrl-C; returns the exit status."""
    options = parse_options(arguments)
    logging.basicConfig(level=options.log_level.upper(), stream=sys.stderr,
                        format="%(asctime)s %(levelname)s %(message)s")
    row = options.table[options.realm]
    data = options.data or common.ROOT / row.folder / "data"
    if options.make_realm_key:
        return make_realm_key(options.make_realm_key)
    if options.backup:
        return backup(data, options.backup)
    if options.check:
        return check(data)
    wake_here, wake_there = socket.socketpair()
    for sock in (wake_here, wake_there):
        sock.setblocking(False)

    def wake() -> None:
        with contextlib.suppress(OSError):         # full: it will wake all the same
            wake_there.send(b"\0")
    workers = Workers(wake)
    try:
        store = Store(data)
    except (StoreRefused, OSError, sqlite3.Error) as error:
        sys.exit(f"ChatServer.py: {error}")
    if not store.people and not options.no_default_users:
        for name, nama, negara in DEFAULT_USERS:
            store.add_person(name, row.name, nama, negara, hash_password(DEFAULT_PASSWORD))
        log.warning("made the documented users with the documented password; --no-default-users leaves them out")
    store.end_request()
    store.commit()
    if options.key is None:
        log.warning("no realm key: a realm is believed by its address alone")
    most = max(raise_descriptor_limit() - common.SPARE_DESCRIPTORS, 1)
    limits = Limits(options.max_file * common.MIB, options.max_stored * common.MIB, options.max_rate,
                    min(options.max_connections, most), options.max_per_address)
    chat = Chat(row.name, options.table, store, workers, key=options.key, limits=limits)
    try:
        server = Server(chat, options.bind, row.port if options.port is None else options.port, wake_here,
                        tls=options.tls, peer_tls=options.peer_tls)
    except OSError as error:
        sys.exit(f"ChatServer.py: can't listen at {options.bind}:{options.port or row.port}: {error.strerror}")

    def stop(*_: object) -> None:
        server.stopping = True
    signal.set_wakeup_fd(wake_there.fileno(), warn_on_full_buffer=False)
    for name in ("SIGTERM", "SIGINT"):
        signal.signal(getattr(signal, name), stop)
    print(f"realm {row.name} listening on {options.bind}:{server.port}", flush=True)
    server.run()
    workers.close()
    store.close()
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
            target.execute("UPDATE meta SET value=? WHERE name='epoch'", (secrets.token_hex(8),))
            target.commit()                        # who goes on from it counts its items to other realms anew
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
