"""Ctrl-C ends a process, whatever its functions do with their cancellation."""

import signal
import subprocess
import sys
from textwrap import dedent

from tests.runtime.test_cancellation import GIVEN_UP

SERVER = """
    import asyncio, sys
    from starlette.applications import Starlette
    from starlette.routing import Mount
    import uvicorn
    from starlette_channels import Channels, Limits, channel
    from starlette_channels.testing import connect

    async def stubborn(*_):
        print("running", flush=True)
        while True:
            try: await asyncio.sleep(3600)
            except BaseException: pass

    @channel("room")
    async def room(socket, payload): socket.start_soon(stubborn)

    @room.on("work")
    async def work(socket, payload): await stubborn()

    channels = Channels([room], limits=Limits(shutdown_seconds=0.2))

    async def main():
        async with connect(channels) as client:
            joined = await client.join("room")
            joined.send("work")
            await asyncio.sleep(3600)

    asyncio.run(main())
"""
"""A server in the same process as its client is enough: what counts is the end of the event loop."""


def test_one_ctrl_c_ends_a_process_whose_functions_ignore_their_cancellation() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", dedent(SERVER)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        for _ in range(2):
            assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert errors.count(GIVEN_UP) == 2
    assert "__main__.stubborn" in errors
