"""Three servers, their engine, and what befalls them: afterwards everybody knows what is true, and what was lost."""

import contextlib
from collections.abc import Generator

import pytest

from tests.cluster.cluster import Cluster, cluster, mesh
from tests.cluster.watchers import BrowserThread
from tests.support.chromium import find
from tests.support.engines import ENGINES

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def browser() -> Generator[BrowserThread | None]:
    executable = find()
    if executable is None:
        yield None  # then only clients under node look on
        return
    with contextlib.closing(BrowserThread(executable)) as browser:
        yield browser


MESH = "zenoh-mesh"
with_an_engine = pytest.mark.parametrize("running", list(ENGINES), indirect=True)


@pytest.fixture(scope="module", params=[*ENGINES, MESH])
def running(request: pytest.FixtureRequest, browser: BrowserThread | None) -> Generator[Cluster]:
    with mesh(browser) if request.param == MESH else cluster(request.param, browser) as running:
        yield running


async def test_a_node_that_is_killed_is_missed_everywhere_until_it_is_back(running: Cluster) -> None:
    one, two, three = running.nodes
    async with running.guests() as guests:
        async with running.talking(guests):
            three.server.kill()
            await running.agree(guests[:2], [one, two])
        three.server.start()
        await running.agree(guests[:2])
        await guests[2].join()
        await running.agree(guests)
        await running.hear_each_other(guests)
        await running.all_is_accounted_for(guests[:2])


async def test_a_node_that_stops_says_goodbye(running: Cluster) -> None:
    one, two, three = running.nodes
    before = [(await node.counts()).get("presence_node_down", 0) for node in (one, two)]
    async with running.guests() as guests:
        async with running.talking(guests):
            life, _ = await three.speak()
            assert await three.stop()
            await running.agree(guests[:2], [one, two])
        await running.have_an_account(guests[:2], life, guests[2].accounted_for(life))
        assert [(await node.counts()).get("presence_node_down", 0) for node in (one, two)] == before
        three.server.start()
        await running.agree(guests[:2])
        await running.hear_each_other(guests[:2])
        await running.all_is_accounted_for(guests[:2])


async def test_a_node_that_hangs_is_missed_and_back_when_it_goes_on(running: Cluster) -> None:
    one, two, three = running.nodes
    async with running.guests() as guests:
        async with running.talking(guests):
            with three.hanging():
                await running.agree(guests[:2], [one, two])
            await running.agree(guests)
        await running.all_is_accounted_for(guests)
        assert (await three.counts()).get("presence_node_down", 0) == 0, "who has slept blames nobody"


@with_an_engine
async def test_an_engine_that_dies_takes_nobody_away_for_good_and_nothing_without_a_word(running: Cluster) -> None:
    async with running.guests() as guests:
        async with running.talking(guests):
            running.engine.kill()
            for node, guest in zip(running.nodes, guests, strict=True):
                await running.agree([guest], [node])
            running.engine.start()
            await running.agree(guests)
        await running.all_is_accounted_for(guests)


@with_an_engine
@pytest.mark.parametrize("how", ["cut", "hanging", "deaf"])
async def test_the_sides_of_a_partition_know_their_own_and_agree_when_it_is_over(running: Cluster, how: str) -> None:
    one, two, three = running.nodes
    async with running.guests() as guests:
        async with running.talking(guests):
            with {"cut": three.network.cut, "hanging": three.network.hanging, "deaf": three.network.deaf}[how]():
                await running.agree(guests[:2], [one, two])
                await running.agree(guests[2:], [three])
            await running.agree(guests)
        await running.all_is_accounted_for(guests)
