"""How often processes speak of their presences, and how long one may be silent."""

from msgspec import Struct

from starlette_channels.arguments import check_fields


class PresenceTiming(Struct, frozen=True, kw_only=True):
    """How soon processes learn of each other's presences, and when they give one up: `Presence(timing=...)`.

    Raises `ValueError` for times that do not go together. All are in seconds.
    """

    news_seconds: float = 1.5
    """Changes reach the other processes after this time at most, all of it in one message."""

    heartbeat_seconds: float = 10.0
    """A process that has no news speaks after this time at the latest, which costs about 200 bytes."""

    down_seconds: float = 30.0
    """When a process has been silent for so long, its presences leave; they come back as soon as it speaks."""

    forget_seconds: float = 1200.0
    """When it has been silent for so long, they are no longer kept in memory, and would have to be sent again."""

    def __post_init__(self) -> None:
        """Refuse what would make processes that are well leave and come back all the time."""
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
        """How many ticks, of `news_seconds` each, there are from one heartbeat to the next."""
        return max(1, int(self.heartbeat_seconds / self.news_seconds))
