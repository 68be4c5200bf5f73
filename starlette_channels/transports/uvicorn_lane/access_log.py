"""What uvicorn logs of handshakes, without what is secret in them."""

import logging

_OF_HANDSHAKES = ('%s - "WebSocket %s" ', "connection open", "connection rejected ")


class _Discreet(logging.Filter):
    """Cuts the query off an address, for there may be a token in it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record."""
        if str(record.msg).startswith(_OF_HANDSHAKES[0]) and isinstance(record.args, tuple):
            client, address, *status = record.args
            record.args = (client, str(address).partition("?")[0], *status)
        return True


class _Silent(logging.Filter):
    """Drops the lines altogether: `--no-access-log` is about all requests, but uvicorn writes these regardless."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to keep a record."""
        return record.levelno > logging.INFO or not str(record.msg).startswith(_OF_HANDSHAKES)


_DISCREET, _SILENT = _Discreet(), _Silent()


def be_discreet(logger: logging.Logger, *, access_log: bool) -> None:
    """Have a logger of uvicorn's write no secrets, and of handshakes nothing at all if there is to be no access log.

    What is done already is not done again.
    """
    logger.addFilter(_DISCREET if access_log else _SILENT)
