"""What a channel says to its client: pushes, broadcasts and replies, and when they go out."""

import logging
import sys
from functools import partial
from typing import Any

from starlette_channels.channels.actor import Actor, Stage
from starlette_channels.channels.backpressure import LatestByKey, Place
from starlette_channels.channels.definition import Channel
from starlette_channels.channels.link import Link, PromisedReply
from starlette_channels.channels.socket import InternalSocket, LaterReply
from starlette_channels.observability.error_log import Lazily
from starlette_channels.observability.log_context import Scene
from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.hub import Publication
from starlette_channels.wire.event_names import ORDINARY_EVENTS, check_event
from starlette_channels.wire.messages import EMPTY, Body, Frame, Message, Payload, Ref, encode_answer, encode_payload
from starlette_channels.wire.payloads import decode_anything

if sys.version_info >= (3, 12):
    from typing import override
else:
    from typing_extensions import override

logger: logging.Logger = logging.getLogger("starlette_channels.channel")

SILENT = frozenset({"duplicate_join", "closed", "draining", "shutdown"})
"""The ends after which a channel tells its client nothing more."""


class Speaker(Actor, InternalSocket[Any]):
    """One client on one topic, as far as it speaks."""

    __slots__ = ("_channel", "_held", "_joined", "_link", "_push_ref", "join_ref", "topic")

    def __init__(self, link: Link, channel: Channel[Any], message: Message) -> None:
        super().__init__(link)
        self.topic: str = message.topic
        self.join_ref: Ref = message.join_ref
        # A join without join_ref is known to the client by its ref, but to the connection by the null it carried.
        self._push_ref: Ref = message.ref if message.join_ref is None else message.join_ref
        self._link = link
        self._channel = channel
        self._joined: bool | None = None
        self._held: list[tuple[Frame, Place | None]] | None = None

    @property
    @override
    def broker(self) -> Broker:
        return self._link.broker

    @property
    @override
    def scene(self) -> Scene:
        return Scene(self.topic, self._link.socket_id, self._link.number)

    def _log(self, level: int | None, what: str, message: Message) -> None:
        """Log what has become of a message, with its payload, if that is wanted."""
        if level is not None and logger.isEnabledFor(level):
            shown = self._link.parameters.show(message.payload)
            logger.log(level, "%r: %s, %s, parameters %s", self, what, self._who, shown)

    @property
    def _who(self) -> str:
        """Who the client is, for logs: the number of its connection, and its `socket_id` if it has one."""
        link = self._link
        return f"connection {link.number}" + (f" of {link.socket_id!r}" if link.socket_id is not None else "")

    def _note_refusal(self, code: str, message: Message) -> None:
        """Count a refused join, and log it, with its payload, if that is wanted."""
        error_log, level = self._link.error_log, self._channel.log_join
        if level is None:
            error_log.counts[code] += 1
            return
        parameters = Lazily(partial(self._link.parameters.show, message.payload))
        text, who = "%r: refused, %s, %s, parameters %s", Lazily(lambda: self._who)
        error_log.note(code, logger, text, self, code, who, parameters, level=level)

    @override
    def push(self, event: str, payload: Payload) -> None:
        if event not in ORDINARY_EVENTS:
            self._check_push(event)
        body = encode_payload(payload)
        frame = self._link.serializer.push(self._push_ref, None, self.topic, event, body)
        self._link.hub.run(self._send, frame, self._place(event, body))

    def _check_push(self, event: str) -> None:
        """Raise `ValueError` for a reserved event, unless it is the one that an intercept handler passes on."""
        letter = self._letter
        if type(letter) is not Publication or letter.event != event:
            check_event(event)

    @override
    def push_internal(self, event: str, body: Body) -> None:
        frame = self._link.serializer.push(self._push_ref, None, self.topic, event, body)
        self._link.hub.run(self._send, frame, self._place(event, body))

    @override
    def broadcast(self, event: str, payload: Payload) -> None:
        self._link.broker.publish(self.topic, event, payload)

    @override
    def broadcast_from(self, event: str, payload: Payload) -> None:
        self._link.broker.publish(self.topic, event, payload, sender=self)

    @override
    def reply_later(self) -> LaterReply:
        message = self._letter if self._joined and type(self._letter) is Message else None
        return PromisedReply(self._link, self._push_ref, message)

    def _send(self, frame: Frame, place: Place | None = None) -> None:
        if self._joined is None:
            self._held = self._held or []
            self._held.append((frame, place))
        elif self._stage is Stage.ENDED or self.fate in SILENT or not self._joined:
            self._link.counts["pushed_after_end"] += 1
        else:
            self._link.write(frame, place)

    def _place(self, event: str, body: Body) -> Place | None:
        """What a client that is behind with reading may miss of what this channel sends, and for the sake of what."""
        policy = self._channel.when_slow
        if not self._channel.may_drop or self._link.short_cut(may_drop=True) is not None:
            return None
        if not isinstance(policy, LatestByKey):
            return Place(self, None)
        key = policy.key_of(event, decode_anything(body))
        return None if key is None else Place(self, (event, key))

    def _reply(self, message: Message, answer: object) -> None:
        status, body = encode_answer(answer)
        self._send(self._link.serializer.reply(self._push_ref, message.ref, self.topic, status, body))

    def _event_frame(self, event: str, payload: object = None) -> Frame:
        body = EMPTY if payload is None else encode_payload(payload)
        return self._link.serializer.push(self.join_ref, self.join_ref, self.topic, event, body)
