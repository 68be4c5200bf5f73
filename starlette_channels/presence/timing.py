"""Timing of presence between processes: how soon changes travel, and how long a process may be silent."""

from msgspec import Struct

from starlette_channels.arguments import check_fields


class PresenceTiming(Struct, frozen=True, kw_only=True):
    """Times of the messages between processes, and of the removal of silent processes: `Presence(timing=...)`.

    All times are in seconds. Raises `ValueError` unless `0 < news_seconds <= heartbeat_seconds`,
    `down_seconds >= 2 * heartbeat_seconds + news_seconds` and `forget_seconds >= down_seconds`.
    """

    news_seconds: float = 1.5
    """The longest time until changes leave for the other processes, all of it in one message."""

    heartbeat_seconds: float = 10.0
    """The longest time between two messages of a process. One without changes has about 200 bytes."""

    down_seconds: float = 30.0
    """The silence after which the presences of a process leave. They come back with its next message."""

    forget_seconds: float = 1200.0
    """The silence after which they are also removed from memory. If the process comes back, it sends them again."""

    def __post_init__(self) -> None:
        """Refuse times that would make a healthy process leave and rejoin repeatedly."""
        check_fields(self, above_zero=("news_seconds",))
        if self.heartbeat_seconds < self.news_seconds:
            raise ValueError("PresenceTiming: heartbeat_seconds must be no less than news_seconds")
        if self.down_seconds < 2 * self.heartbeat_seconds + self.news_seconds:
            raise ValueError(
                "PresenceTiming: down_seconds must be at least 2 * heartbeat_seconds + news_seconds; "
                "else one heartbeat that is lost would take everybody away"
            )
        if self.forget_seconds < self.down_seconds:
            raise ValueError("PresenceTiming: forget_seconds must be no less than down_seconds")

    @property
    def heartbeat_ticks(self) -> int:
        """The number of ticks, one every `news_seconds`, from one heartbeat to the next."""
        return max(1, int(self.heartbeat_seconds / self.news_seconds))
