"""Timing of presence between processes: how soon changes travel, and how long a process may be silent."""

from msgspec import Struct

from starlette_channels.arguments import check_fields


class PresenceTiming(Struct, frozen=True, kw_only=True):
    """When processes tell each other of their presences, and when they give one up: `Presence(timing=...)`.

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
    """The silence after which they are dropped from memory as well. If the process comes back, it sends them again."""

    def __post_init__(self) -> None:
        """Refuse times with which a process in good health would leave and come back all the time."""
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
