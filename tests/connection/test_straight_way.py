"""A small event of a joined channel goes a straight way; the general way decides and answers the same."""

import json
from typing import Any

import anyio
import anyio.lowlevel
from hypothesis import given, settings
from hypothesis import strategies as st

from starlette_channels import V2, Channels, EventError, Limits, Payload, Reply, Socket, channel
from starlette_channels.testing import connect
from tests.support.effort import some

TURNS = 25
"""Turns of the event loop: more than a message takes here, and cheaper than asking whether all tasks wait."""


class GeneralV2(V2):
    """Version 2 as an application's serializer: its messages take the general way, and its frames are text."""


def channels(serializer: V2, limits: Limits) -> Channels[Any]:
    """Channels whose handlers do what handlers do: reply, refuse, crash, push, broadcast, stop, or nothing."""

    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        pass

    @room.on("echo")
    async def echo(socket: Socket, payload: dict[str, Any]) -> Payload:
        return payload

    @room.on("act")
    async def act(socket: Socket, payload: list[int]) -> Reply | None:
        match sum(payload):
            case 0:
                return Reply("ok", payload)
            case 1:
                raise EventError("refused")
            case 2:
                raise RuntimeError
            case 3:
                socket.push("pushed", {"ü": None})
            case 4:
                socket.broadcast("said", {"text": "\u2028"})
            case 5:
                socket.stop()
            case _:
                await anyio.lowlevel.checkpoint()
        return None

    return Channels([room], serializers=[serializer], limits=limits)


REFS: st.SearchStrategy[Any] = st.sampled_from(["1", "1", "1", "2", "", None, 1, True, 1.0, ["1"], {"a": 1}])
TOPICS: st.SearchStrategy[Any] = st.sampled_from(
    ["room:a", "room:a", "room:a", "room:b", "phoenix", "", None, 7, ["room:a"], {}]
)
EVENTS: st.SearchStrategy[Any] = st.sampled_from(
    ["echo", "echo", "act", "act", "act", "none", "phx_join", "phx_leave", "phx_close", "heartbeat", None, 1, ["echo"]]
)
PAYLOADS: st.SearchStrategy[Any] = st.sampled_from(
    [{}, {"a": "é"}, {"a": {"b": [1]}}, None, 1, [], [1], [2], [3], [4], [5], [6], "text", [[]]]
)
MESSAGES = st.tuples(REFS, REFS, TOPICS, EVENTS, PAYLOADS)
BROKEN = st.sampled_from(["", "[", "{}", "[1,2,3]", '["1","2","room:a","echo"]', '["1","2","room:a","echo",{}'])
FRAMES = st.lists(st.one_of(MESSAGES.map(json.dumps), MESSAGES.map(json.dumps), BROKEN), min_size=1, max_size=12)


async def answers(serializer: V2, limits: Limits, sent: list[str]) -> tuple[Any, ...]:
    """Send frames one after the other, and return all that has come back, and what was counted."""
    served = channels(serializer, limits)
    async with connect(served) as client:
        for frame in ['["1","1","room:a","phx_join",{}]', '[null,"1","room:b","phx_join",{}]', *sent]:
            client.send_frame(frame)
            for _ in range(TURNS):
                await anyio.lowlevel.checkpoint()
        return [*client._unread], client._closed, served.statistics().counts  # pyright: ignore[reportPrivateUsage]


@settings(max_examples=some(of=500), deadline=None)
@given(FRAMES)
def test_both_ways_answer_the_same(sent: list[str]) -> None:
    async def both() -> None:
        limits = Limits(refusal_seconds=0)
        assert await answers(V2(), limits, sent) == await answers(GeneralV2(), limits, sent)

    anyio.run(both)
