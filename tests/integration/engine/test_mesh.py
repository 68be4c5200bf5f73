"""`zenoh://`: the processes of one machine find each other, without a server and without anybody else."""

import json
import os
import select
import signal
import tempfile
from collections.abc import Generator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from starlette_channels.pubsub.broker import Broker
from starlette_channels.pubsub.engines.zenoh_discovery import Claim, mesh_folder
from tests.integration.engine.test_relay_faults import becomes_ready, listener
from tests.support.relaying import PATIENCE, Ear, all_is_accounted_for, broadcast, brokers

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """Where users have their sockets: pytest's own folders have names that are too long for them."""
    with tempfile.TemporaryDirectory(prefix="mesh-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


def number_of_claims(folder: Path) -> int:
    return len(list(folder.glob("*.claim")))


async def test_processes_find_each_other_whoever_comes_first_and_whoever_goes(home: Path) -> None:
    async with brokers("zenoh://", 3) as (one, two, three):
        ears = [Ear(broker, "t") for broker in (one, two, three)]
        await ears[1].hears(one)
        await ears[2].hears(two)
        await ears[0].hears(three)
        await one.close()
        await broadcast(two, range(100))
        await all_is_accounted_for(ears[2], 100)
        assert ears[2].lost == 0
        one.broadcast("t", "e", {})  # it is back
        await ears[1].hears(one)
        await ears[0].hears(two)


async def test_many_that_start_at_once_all_meet(home: Path) -> None:
    async with brokers("zenoh://", 6) as those:
        ears = [Ear(broker, "t") for broker in those]
        for ear in ears:
            for broker in those:
                if ear.broker is not broker:
                    await ear.hears(broker)


async def test_a_process_that_is_killed_leaves_nothing_that_others_wait_for(home: Path) -> None:
    async with brokers("zenoh://", 1) as (one,):
        with listener("zenoh://", 1_000_000) as process:
            await becomes_ready(process, one)
            process.kill()
            process.wait()
        folder = mesh_folder(None)
        assert number_of_claims(folder) == 2
        async with brokers("zenoh://", 1) as (two,):
            ear = Ear(two, "t")
            with anyio.fail_after(2):
                await ear.hears(one)
            assert number_of_claims(folder) == 2
            await broadcast(one, range(100))
            await all_is_accounted_for(ear, 100)


async def test_a_process_that_hangs_is_cut_off_holds_up_nobody_and_hears_of_its_loss(home: Path) -> None:
    async with brokers("zenoh://") as (one, two):
        ear = Ear(two, "t")
        with listener("zenoh://", 8_000) as process:
            await ear.hears(one)
            await becomes_ready(process, one)
            process.send_signal(signal.SIGSTOP)
            await broadcast(one, range(6_000), 10_000)
            await all_is_accounted_for(ear, 6_000)
            assert ear.lost == 0
            process.send_signal(signal.SIGCONT)
            await broadcast(one, range(6_000, 8_000))
            assert process.stdout is not None
            told = json.loads(await anyio.to_thread.run_sync(process.stdout.readline))
        assert told["numbers"] == sorted(set(told["numbers"]))
        assert len(told["numbers"]) + told["lost"] == 8_000
        assert told["lost"] > 0


async def test_a_process_that_comes_while_another_hangs_hears_it_once_that_goes_on(home: Path) -> None:
    async with brokers("zenoh://") as (one, two):
        with listener("zenoh://", 1) as process:
            await becomes_ready(process, one)
            process.send_signal(signal.SIGSTOP)
            ear = Ear(two, "t")
            await ear.hears(one)  # it does not wait for the one that hangs
            assert two.is_connected
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            with anyio.fail_after(PATIENCE):
                while not select.select([process.stdout], [], [], 0)[0]:
                    two.broadcast("t", "e", {"n": 0})
                    await anyio.sleep(0.05)


async def test_another_application_is_another_mesh(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with brokers("zenoh://", 1) as (one,), brokers("zenoh://?prefix=other", 1) as (named,):
        (home / "elsewhere").mkdir()
        monkeypatch.chdir(home / "elsewhere")
        async with brokers("zenoh://", 1) as (elsewhere,), brokers("zenoh://?prefix=other", 1) as (same_name,):
            ears = [Ear(broker, "t") for broker in (one, named, elsewhere, same_name)]
            await ears[1].hears(same_name)
            for number, broker in enumerate((one, named, elsewhere, same_name)):
                broker.broadcast("t", "e", {"n": number})
            await ears[1].until(lambda: 3 in ears[1].numbers)
            await ears[3].until(lambda: 1 in ears[3].numbers)
        assert [sorted(ear.numbers) for ear in ears] == [[0], [1, 3], [2], [1, 3]]


def test_a_folder_that_others_can_enter_is_refused(home: Path) -> None:
    folder = mesh_folder("chat")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(PermissionError, match="must be a folder that belongs to this user, and closed to all others"):
        Broker("zenoh://?prefix=chat")
    folder.rmdir()
    (home / "trap").mkdir(mode=0o700)
    folder.symlink_to(home / "trap")
    with pytest.raises(PermissionError, match="must be a folder"):
        Broker("zenoh://?prefix=chat")


@pytest.fixture
def folder(home: Path) -> Path:
    return mesh_folder("chat")


@pytest.fixture
def claims(folder: Path) -> Generator[list[Claim]]:
    those = [Claim(folder), Claim(folder)]
    yield those
    for claim in those:
        claim.close()


def test_a_claim_is_there_for_the_others_until_it_is_given_up(claims: list[Claim], folder: Path) -> None:
    one, two = claims
    assert one.others() == {two.id: two.socket}
    assert two.others() == {one.id: one.socket}
    two.close()
    assert one.others() == {}
    assert list(folder.iterdir()) == [folder / f"{one.id}.claim"]


def test_the_claim_of_a_dead_process_is_cleared_away(claims: list[Claim], folder: Path) -> None:
    pid = os.fork()
    if pid == 0:
        claim = Claim(folder)
        claim.socket.touch()
        os._exit(0)
    os.waitpid(pid, 0)
    assert len(list(folder.iterdir())) == 4
    one, two = claims
    assert one.others() == {two.id: two.socket}
    assert len(list(folder.iterdir())) == 2
