"""A program that does TLS for a server that does not: `python -m tests.support.tls_door PORT SERVER_PORT CHAIN KEY`."""

import asyncio
import contextlib
import sys
from pathlib import Path

from tests.support.certificates import Certificate
from tests.support.ports import HOST


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Hand on what comes, and then that nothing more does."""
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            target.write(data)
            await target.drain()
    target.close()


async def serve(port: int, server_port: int, certificate: Certificate) -> None:
    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(HOST, server_port)
        await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))

    server = await asyncio.start_server(pass_on, HOST, port, ssl=certificate.context())
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), Certificate(Path(sys.argv[3]), Path(sys.argv[4]))))
