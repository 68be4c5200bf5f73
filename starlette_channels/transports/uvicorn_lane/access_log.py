"""The access log of handshakes: uvicorn's lines without the query, because it may contain a token."""

import logging
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote

_HANDSHAKE_LINES = ('%s - "WebSocket %s" ', "connection open", "connection rejected ")


class _QueryFilter(logging.Filter):
    """Removes the query from the address of a handshake, because it may contain a token."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record."""
        if str(record.msg).startswith(_HANDSHAKE_LINES[0]) and isinstance(record.args, tuple):
            client, address, *status = record.args
            record.args = (client, str(address).partition("?")[0], *status)
        return True


class _HandshakeFilter(logging.Filter):
    """Drops the log lines of handshakes: uvicorn writes them even with `--no-access-log`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to keep the record."""
        return record.levelno > logging.INFO or not str(record.msg).startswith(_HANDSHAKE_LINES)


_QUERY_FILTER, _HANDSHAKE_FILTER = _QueryFilter(), _HandshakeFilter()


def install_log_filter(logger: logging.Logger, *, access_log: bool) -> None:
    """Filter uvicorn's own lines: without queries, and without handshakes if there is no access log. Idempotent."""
    logger.addFilter(_QUERY_FILTER if access_log else _HANDSHAKE_FILTER)


def log_handshake(logger: logging.Logger, scope: MutableMapping[str, Any], outcome: str, connection: str) -> None:
    """Log a handshake as uvicorn and `websockets` do: the outcome, and the state of the connection."""
    client: tuple[str, int] | None = scope.get("client")
    address = f"{client[0]}:{client[1]}" if client else ""
    logger.info(f'%s - "WebSocket %s" {outcome}', address, quote(scope["path"]))
    logger.info(connection)
