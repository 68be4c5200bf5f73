"""The trips of a message through the package: calls, files, and moves between files, without a network.

`scripts/trips` prints them. Only functions of the package count, where Python calls them: a generator that is resumed
counts, a method of C does not. A move is a call into another file than that of the call before it. Figures of one
version of Python are exact; another version may inline a comprehension.
"""

import asyncio
import json
import sys
from argparse import ArgumentParser
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType

from msgspec import Struct

import starlette_channels
from benchmarks.lanes import Crowd

ROOT = Path(starlette_channels.__file__).parent


class Trip(Struct):
    """The calls of one trip: the file and the function of each, in order."""

    calls: list[tuple[str, str]] = []

    @property
    def files(self) -> int:
        """How many files take part."""
        return len({file for file, _ in self.calls})

    @property
    def moves(self) -> int:
        """How often a call goes into another file than the one before."""
        files = ["", *(file for file, _ in self.calls)]
        return sum(before != after for before, after in pairwise(files))

    def __str__(self) -> str:
        return f"{len(self.calls)} calls, {self.files} files, {self.moves} moves"


@contextmanager
def counted() -> Generator[Trip]:
    """Count the calls of functions of the package."""
    trip, root = Trip(), f"{ROOT}/"

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(root):
            trip.calls.append((frame.f_code.co_filename.removeprefix(root), frame.f_code.co_qualname))

    sys.setprofile(count)
    try:
        yield trip
    finally:
        sys.setprofile(None)


async def trips() -> dict[str, Trip]:
    """Make each trip once, after one that nobody counts."""
    crowd = Crowd()
    one, other = crowd.client(), crowd.client()
    for client in (one, other):
        await client.send("1", "1", "room:a", "phx_join", {})
        await client.send("2", "2", "hall:a", "phx_join", {})
    await one.send("1", "3", "room:a", "say", {"n": 1})
    found: dict[str, Trip] = {}
    with counted() as found["frame, handler, broadcast and reply"]:
        await one.send("1", "4", "room:a", "say", {"n": 2})
    with counted() as found["join"]:
        await one.send("5", "5", "room:b", "phx_join", {})
    with counted() as found["join, presence.track and push_state"]:
        await one.send("6", "6", "hall:b", "phx_join", {})
    assert other.received("said")
    assert one.received("presence_state")
    return found


def main() -> None:
    """Print the counts."""
    parser = ArgumentParser(prog="scripts/trips", description=__doc__)
    parser.add_argument("--calls", action="store_true", help="list the calls, too")
    parser.add_argument("--json", action="store_true", help="print calls and moves as JSON")
    options = parser.parse_args()
    found = asyncio.run(trips())
    if options.json:
        print(json.dumps({name: [len(trip.calls), trip.moves] for name, trip in found.items()}))
        return
    for name, trip in found.items():
        print(f"{name}: {trip}")
        for file, function in trip.calls if options.calls else ():
            print(f"    {file}: {function}")


if __name__ == "__main__":
    main()
