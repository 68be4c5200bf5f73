"""Message history in SQLite: in memory, or in a file that all workers share and that survives a restart."""

import secrets
import sqlite3
import threading
from datetime import UTC, datetime

from msgspec import Struct, field

LENGTH = 50
"""Number of messages kept for each room, which a joining client gets."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS said (
    number INTEGER PRIMARY KEY, room TEXT NOT NULL, id TEXT NOT NULL, author TEXT, body TEXT NOT NULL, at TEXT NOT NULL,
    UNIQUE (room, id)
)
"""


def new_id() -> str:
    """Return a random id, unique across restarts."""
    return secrets.token_hex(8)


class Message(Struct, frozen=True):
    """A stored message; an announcement has no author."""

    author: str | None
    body: str
    id: str = field(default_factory=new_id)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))


class History:
    """The latest messages of each room. All methods block for the disk, and may be called from any thread."""

    def __init__(self, file: str = ":memory:") -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        if file != ":memory:":
            self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute(SCHEMA)

    def latest(self, room: str) -> list[Message]:
        """Return the latest messages of a room, oldest first."""
        query = "SELECT author, body, id, at FROM said WHERE room = ? ORDER BY number DESC LIMIT ?"
        with self._lock:
            rows = self._database.execute(query, (room, LENGTH)).fetchall()
        return [Message(author, body, id, datetime.fromisoformat(at)) for author, body, id, at in reversed(rows)]

    def add(self, room: str, message: Message) -> Message:
        """Store and return a message; if its id exists, return the stored one."""
        values = (room, message.id, message.author, message.body, message.at.isoformat())
        with self._lock:
            added = self._database.execute(
                "INSERT OR IGNORE INTO said (room, id, author, body, at) VALUES (?, ?, ?, ?, ?)", values
            )
            self._database.execute(
                "DELETE FROM said WHERE room = ?1 AND number <= "
                "(SELECT number FROM said WHERE room = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                (room, LENGTH),
            )
        if added.rowcount:
            return message
        return next((kept for kept in self.latest(room) if kept.id == message.id), message)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def clear(self) -> None:
        """Delete all messages."""
        with self._lock:
            self._database.execute("DELETE FROM said")
