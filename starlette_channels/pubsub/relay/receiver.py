"""Receiver: checks, orders and deduplicates messages of other processes, and detects gaps."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from msgspec.structs import astuple, replace

from starlette_channels.observability.error_log import ErrorLog
from starlette_channels.pubsub.relay.channel_names import COMMANDS, is_topic, name_of
from starlette_channels.pubsub.relay.command_log import CommandLog, HeardCommand, LostCommands
from starlette_channels.pubsub.relay.envelope import Envelope, Kind, unseal
from starlette_channels.pubsub.relay.sender_clocks import SenderClocks
from starlette_channels.pubsub.relay.sequence import Listener, News, Stamp
from starlette_channels.wire.messages import Gap, shown

logger: logging.Logger = logging.getLogger("starlette_channels.broker")

Arrival: TypeAlias = Envelope | Gap | HeardCommand | LostCommands

_MARK, _END, _COMMAND = Kind.MARK, Kind.END, Kind.COMMAND


class Receiver:
    """Decodes received bytes into arrivals: envelopes, gaps and commands."""

    def __init__(self, me: bytes, error_log: ErrorLog, clock: Callable[[], float], commands: CommandLog) -> None:
        self.channels: set[str] = set()
        """Wanted channels; see `want`."""
        self._me = me
        self._error_log = error_log
        self._clock = clock
        self._commands = commands
        self._listener = Listener()
        self._clocks = SenderClocks()
        self._born = clock()

    def take(self, batch: Iterable[bytes], *, has_room: bool = True) -> list[Arrival]:
        """Decode a batch; return one gap for each publisher and channel with losses, then the new messages in order.

        Without room, only commands are taken; the other messages are dropped, and reported as a gap later.
        """
        now = self._clock()
        dropped = 0
        self._listener.expire(now)
        arrivals: list[Arrival] = []
        gaps: dict[tuple[str, bytes], int] = {}
        for data in batch:
            try:
                envelope = unseal(data)
            except ValueError as error:
                self._error_log.note("relay_junk", logger, "Junk between the processes, %d bytes: %s", len(data), error)
                continue
            if envelope.publisher == self._me or envelope.channel not in self.channels:
                continue
            if envelope.kind is _COMMAND:
                self._take_commands(envelope, arrivals, now)
            elif not has_room:
                dropped += 1 + len(envelope.following)
            else:
                lost = self._take(envelope, arrivals, now)
                if lost:
                    key = envelope.channel, envelope.publisher
                    gaps[key] = gaps.get(key, 0) + lost
        if dropped:
            text = "The event loops are behind: %d arrivals are dropped"
            self._error_log.note("relay_overflow", logger, text, dropped, number=dropped)
        reported = [(channel, self._gap(channel, publisher, lost)) for (channel, publisher), lost in gaps.items()]
        return [*(gap for channel, gap in reported if is_topic(channel)), *arrivals]

    def _take_commands(self, envelope: Envelope, arrivals: list[Arrival], now: float) -> None:
        if envelope.channel != COMMANDS:
            self._error_log.note("relay_junk", logger, "A command between the processes is not where commands are")
            return
        sent_at = self._clocks.sent_at(envelope.publisher, envelope.sent, now)
        try:
            news = self._commands.take(envelope.body, sent_at, now)
        except ValueError as error:
            self._error_log.note("relay_junk", logger, "Junk between the processes: %s", error)
            return
        for one in news:
            if isinstance(one, LostCommands):
                self._error_log.note(
                    "commands_lost", logger, "Some commands to clients are lost: those who may be meant come back"
                )
            arrivals.append(one)

    def _take(self, envelope: Envelope, arrivals: list[Arrival], now: float) -> int:
        """Append the new messages of an envelope to the arrivals; return the number of lost ones before them."""
        channel, publisher, kind, epoch = envelope.channel, envelope.publisher, envelope.kind, envelope.epoch
        number, following = envelope.number, envelope.following
        is_mark = kind is _MARK or kind is _END
        if not is_mark and self._listener.take_next(channel, publisher, epoch, number, 1 + len(following), now):
            arrivals.append(envelope)
            return 0
        stamp = Stamp(epoch, number)  # ages matter only for the first message of a series
        sent_at = now
        if is_mark or not self._listener.has_heard(channel, publisher):
            stamp = Stamp(epoch, number, envelope.age, envelope.quiet)
            sent_at = self._clocks.sent_at(publisher, envelope.sent, now)
        if kind is _MARK:
            return self._listener.mark(channel, publisher, stamp, sent_at)
        if kind is _END:
            return self._listener.end(channel, publisher, stamp, sent_at)
        news, lost = self._listener.take(channel, publisher, stamp, sent_at)
        if news is News.FRESH:
            arrivals.append(envelope)
            if following:
                self._listener.take_next(channel, publisher, epoch, number + 1, len(following), now)
            return lost
        self._error_log.count("relay_duplicate" if news is News.DUPLICATE else "relay_late")
        if following:
            return lost + self._take(_rest(envelope), arrivals, now)
        return lost

    def _gap(self, channel: str, publisher: bytes, lost: int) -> Gap:
        gap = Gap(name_of(channel), lost, publisher.hex())
        self._error_log.count("relay_lost", lost)
        self._error_log.note("relay_gap", logger, "%d of %s on %s are lost", lost, gap.publisher, shown(gap.topic))
        return gap

    def forget(self, channels: Iterable[str]) -> None:
        """Remove channels: their messages are ignored from now on."""
        for channel in channels:
            self.channels.discard(channel)
            self._listener.forget(channel)

    def want(self, channels: Mapping[str, float]) -> None:
        """Add channels, each with the time since when it is wanted: missing messages since then count as lost.

        That is the time of the first subscriber here, not of the subscription at the engine.
        """
        for channel, since in channels.items():
            if channel not in self.channels:
                self.channels.add(channel)
                self._listener.want(channel, max(since, self._born))

    def confirm(self, channels: Iterable[str]) -> None:
        """Note that the engine has confirmed the subscriptions to channels."""
        now = self._clock()
        for channel in channels:
            self._listener.confirm(channel, now)

    def begin_anew(self, channels: Mapping[str, float]) -> None:
        """Set the wanted channels after a reconnect; losses meanwhile are detected by the next numbers."""
        self.forget(self.channels - channels.keys())
        self.want(channels)
        self._listener.touch(self._clock())


def _rest(envelope: Envelope) -> Envelope:
    """Return an envelope without its first message."""
    (kind, event, body), following = astuple(envelope.following[0]), envelope.following[1:]
    return replace(envelope, kind=kind, number=envelope.number + 1, event=event, body=body, following=following)
