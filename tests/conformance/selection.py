"""Which of the recorded scenarios are played against which server, and why the others are not."""

from pathlib import Path
from typing import Any

from tests.conformance.run import load
from tests.servers import GRANIAN, HYPERCORN, HYPERCORN_TRIO, UVICORN, UVICORN_WSPROTO, Kind

SCENARIOS: dict[str, dict[str, Any]] = {
    scenario["name"]: scenario for scenario in load([Path(__file__).parent / "scenarios"]).values()
}

# Not played at all: what the library does not have yet.
LATER_CATEGORIES = {
    "check_origin": "there is no origin check yet",
    "long-poll": "there is no long-polling yet",
    "presence": "there is no presence yet",
}
LATER = {
    "join-leave/join-no-match": "needs presence",
    "malformed/kills-all-channels": "needs presence",
    "subprotocol/auth-and-configured": "needs the auth token",
    "subprotocol/auth-token": "needs the auth token",
    "subprotocol/auth-token-alone": "needs the auth token",
    "subprotocol/auth-token-junk": "needs the auth token",
}

# Played by nobody as recorded: divergences.md allows it, and test_divergences.py shows what happens instead.
DIFFERENT = {
    "handshake/no-upgrade": "a plain GET never reaches `connect`",
    "handshake/other-methods": "405 instead of 400",
    "handshake/other-methods-more": "405 instead of 400",
    "handshake/path-slashes": "Starlette's router decides",
    "idle-timeout/ping-counts": "an ASGI server answers pings by itself, and the app does not see them",
    "malformed/binary-not-utf8-echo": "a frame whose names are not UTF-8 is malformed: 1011",
    "malformed/control-frames": "the server's websocket library decides",
    "malformed/not-utf8": "the server's websocket library decides",
    "malformed/reserved-opcode": "the server's websocket library decides",
    "malformed/too-big-default": "the server's websocket library decides",
    "v2-json/duplicate-keys": "the last of equal keys wins",
}

SERVERS = (UVICORN, UVICORN_WSPROTO, HYPERCORN, HYPERCORN_TRIO, GRANIAN)


def chosen(kind: Kind) -> list[str]:
    """The names of the scenarios that this server must pass as they were recorded."""
    return [
        name
        for name, scenario in SCENARIOS.items()
        if scenario["category"] not in LATER_CATEGORIES and name not in LATER and name not in DIFFERENT
    ]
