"""How the members of one connection come to an end together."""

from collections.abc import Sequence

import anyio

from starlette_channels.channels.definition import EndReason
from starlette_channels.channels.joined import Member
from starlette_channels.channels.link import Link
from starlette_channels.runtime.turn_budget import in_turns

FETCH_SECONDS = 1.0
"""How long a client may take to come for the last messages: one that polls does so again at once."""


async def settle(link: Link, members: Sequence[Member], seconds: float) -> None:
    """Wait until members have handled what came before, and all replies are given that were promised.

    The members have so many seconds; those that take longer are cancelled.
    """
    with anyio.move_on_after(seconds) as patience:
        for member in members:
            await member.settled()
        while link.promises:
            for promise in tuple(link.promises):
                await promise.settled()
    for member in members if patience.cancelled_caught else ():
        if member.is_busy:
            member.abort("draining")


async def fetched(unfetched: anyio.Event | None) -> None:
    """Wait until a client that comes for its messages has done so, for a moment."""
    if unfetched is not None:
        with anyio.move_on_after(FETCH_SECONDS):
            await unfetched.wait()


async def end(members: Sequence[Member], reason: EndReason, seconds: float) -> None:
    """Let members end. Handlers have so many seconds to finish, and then as long again for `terminate`.

    Ends are dealt with in turns, as messages are.
    """
    await in_turns(members, lambda member: member.close(reason))
    if all(member.is_over for member in members):
        return
    with anyio.move_on_after(seconds):
        for member in members:
            await member.ended()
    for member in members:
        member.abort(reason)
    for member in members:
        await member.ended()


async def expel(member: Member, seconds: float) -> None:
    """See that a member ends that has been kicked; a running handler has so many seconds to finish."""
    with anyio.move_on_after(seconds):
        await member.ended()
    member.abort("kicked")
