"""A channel that has ended leaves nothing to the garbage collector."""

import gc
from typing import Any

import anyio.lowlevel
import pytest

from starlette_channels import Channels, Socket, channel
from starlette_channels.channels.joined import JoinedChannel
from starlette_channels.testing import connect

pytestmark = pytest.mark.anyio


def living() -> set[int]:
    """The ids of all channels of clients that are in memory."""
    return {id(one) for one in gc.get_objects() if type(one) is JoinedChannel}


@pytest.mark.parametrize("join_ref", ["1", None, 7, ["1"]])
async def test_whatever_its_join_ref_is_a_channel_is_gone_when_it_has_ended(join_ref: Any) -> None:
    @channel("room:*")
    async def room(socket: Socket, payload: Any) -> None:
        pass

    gc.collect()
    gc.disable()
    before = living()  # other tests may hold some
    try:
        async with connect(Channels([room])) as client:
            client.send(join_ref, "1", "room:a", "phx_join", {})
            await client.reply("1")
            client.send(join_ref, "2", "room:a", "phx_leave", {})
            await client.reply("2")
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        assert living() <= before
    finally:
        gc.enable()
