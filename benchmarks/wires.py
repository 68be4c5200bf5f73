"""Wire formats of the servers: address, join, and the frames of a publication and an echo.

The load generator fills in `{ts}` and `{pad}` for each frame, and `{i}` and `{room}` for each connection; `{topic}` is
filled in before, by the load.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How to speak to a server; `options` are the load generator's, for what else it must know of the wire."""

    path: str
    join: str
    publish: str
    echo: str
    echo_marker: str = '"ts":'
    options: tuple[str, ...] = ()


PHOENIX = Wire(
    path="/socket/websocket?vsn=2.0.0",
    join='["1","1","{topic}","phx_join",{}]',
    publish='["1","2","{topic}","new_msg",{"ts":{ts},"body":"{pad}"}]',
    echo='["1","2","{topic}","echo",{"ts":{ts},"body":"{pad}"}]',
)

FLOOR = replace(PHOENIX, echo_marker='"response":{"ts":')
"""The floor has one topic: who waits for echoes gets the broadcasts as well, and must not take them for echoes."""

SOCKETIO = Wire(
    path="/socket.io/?EIO=4&transport=websocket&room={topic}",
    join="40",
    publish='42["new_msg",{"room":"{topic}","ts":{ts},"body":"{pad}"}]',
    echo='421["echo",{"ts":{ts},"body":"{pad}"}]',
    options=("--expect-match", '40{"sid"', "--autoreply", "2", "3"),  # 2 and 3 are its ping and pong
)
