"""Which of the recorded scenarios are played against which server, and why the others are not."""

import json
from pathlib import Path
from typing import Any

from tests.support.servers import FAST_LANE, GRANIAN, HYPERCORN, HYPERCORN_TRIO, UVICORN, UVICORN_WSPROTO, Kind

FOLDER = Path(__file__).parent / "scenarios"
SCENARIOS: dict[str, dict[str, Any]] = {
    scenario["name"]: scenario for scenario in map(json.loads, map(Path.read_text, sorted(FOLDER.glob("*.json"))))
}

# Played against no server as recorded: divergences.md allows it, and test_divergences.py shows what happens instead.
DIFFERENT = {
    "handshake/no-upgrade": "a plain GET never reaches `connect`",
    "handshake/other-methods": "405 instead of 400",
    "handshake/other-methods-more": "405 instead of 400",
    "handshake/path-slashes": "Starlette's router decides",
    "long-poll/batch-bad-base64": "400 instead of 500",
    "long-poll/malformed": "400 at once, and the session lives",
    "long-poll/malformed-batch": "400 at once, and the session lives",
    "long-poll/slow-join": "a join holds nothing up, and its reply comes with a later poll",
    "malformed/binary-not-utf8-echo": "a frame whose names are not UTF-8 is malformed: 1011",
    "subprotocol/auth-token-junk": "403 instead of 500",
    "v2-json/duplicate-keys": "the last of equal keys wins",
}

# Played over the fast lane only: through ASGI, pings do not reach the app, because the server answers them by itself.
FAST_LANE_ONLY = {"idle-timeout/ping-counts"}

# Broken frames never reach the app: what the client sees is the doing of the server's websocket library. Uvicorn's
# newer implementation and the fast lane answer as recorded; the others merely end the connection.
SERVER_DECIDES = {
    "malformed/control-frames",
    "malformed/not-utf8",
    "malformed/reserved-opcode",
    "malformed/too-big-default",
}

SERVERS = (FAST_LANE, UVICORN, UVICORN_WSPROTO, HYPERCORN, HYPERCORN_TRIO, GRANIAN)


def chosen(kind: Kind) -> list[str]:
    """The names of the scenarios that this server must pass as they were recorded."""
    left_out = {*DIFFERENT}
    left_out |= set() if kind is FAST_LANE else FAST_LANE_ONLY
    left_out |= set() if kind in (FAST_LANE, UVICORN) else SERVER_DECIDES
    return [name for name in SCENARIOS if name not in left_out]
