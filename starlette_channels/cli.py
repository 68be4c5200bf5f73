"""The command line: `python -m starlette_channels run app:app`, or `starlette-channels run app:app`."""

import contextlib
import logging
from collections.abc import Generator
from typing import Any

import click
import msgspec
from uvicorn import main as uvicorn_command
from uvicorn.config import LOGGING_CONFIG

from starlette_channels.exceptions import PublishError, SerializerError
from starlette_channels.pubsub.publisher import Publisher
from starlette_channels.wire.event_names import check_event

SETTINGS: dict[str, Any] = {
    "ws": "starlette_channels.transports.uvicorn:FastLane",
    "http": "starlette_channels.transports.uvicorn:SlicedHTTP",
    "ws_per_message_deflate": False,
    "backlog": 4096,
}
"""Settings of `run` that differ from uvicorn's defaults, as arguments of `uvicorn.run("app:app", **SETTINGS)`.

`python -m starlette_channels run --help` has the reasons. All other settings are uvicorn's defaults; they include
uvloop if it is installed.
"""

RUN_HELP = """\
Serve an application with uvicorn, with defaults that suit channels.

APP is an import string, MODULE:ATTRIBUTE, of any ASGI application. Options and environment variables (UVICORN_PORT,
...) are those of uvicorn. These options have other defaults:

\b
--ws                      the fast lane: an idle client needs no task, and a
                          broadcast costs one write for each client
--http                    requests are parsed in slices, so that a client
                          with many requests, or with a body in tiny chunks,
                          does not delay the others
--ws-per-message-deflate  off (the fast lane has none): compression costs
                          memory for each client, and time for each message
                          to each client
--backlog                 4096 connections may wait to be accepted, because
                          all clients reconnect at once after a restart
"""


@click.group()
@click.version_option(package_name="starlette-channels")
def main() -> None:
    """Phoenix Channels for Starlette and FastAPI."""


def serve(**options: Any) -> None:
    """Run uvicorn's command with these options."""
    _log_as_uvicorn_does(options["log_level"])
    assert uvicorn_command.callback is not None
    uvicorn_command.callback(**options)


main.add_command(
    click.Command(
        "run",
        callback=serve,
        params=uvicorn_command.params,
        context_settings={**uvicorn_command.context_settings, "default_map": SETTINGS, "show_default": True},
        help=RUN_HELP,
        short_help="Serve an application with uvicorn.",
    )
)


TIMEOUT = click.option("--timeout", default=5.0, show_default=True, help="Seconds to wait for the broker.")


@main.command()
@click.argument("url")
@click.argument("topic")
@click.argument("event")
@click.argument("payload", default="{}")
@TIMEOUT
def publish(url: str, topic: str, event: str, payload: str, timeout: float) -> None:
    """Broadcast an event to the clients of a running application.

    URL is the address of the application's broker. PAYLOAD is a JSON object.

    \b
    starlette-channels publish redis://localhost room:lobby new_msg '{"body": "hi"}'
    """
    try:
        msgspec.json.decode(payload)
    except msgspec.DecodeError as error:
        raise click.BadParameter(str(error), param_hint="PAYLOAD") from None
    try:
        check_event(event)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="EVENT") from None
    with _publisher(url, timeout) as publisher:
        publisher.broadcast(topic, event, msgspec.Raw(payload.encode()))


@main.command()
@click.argument("url")
@click.argument("socket_id")
@click.option("--code", default=1001, show_default=True, help="Close code for the clients.")
@click.option("--reason", default="disconnected", show_default=True, help="Close reason for the clients.")
@TIMEOUT
def disconnect(url: str, socket_id: str, code: int, reason: str, timeout: float) -> None:
    """Close all connections of a SOCKET_ID in a running application.

    URL is the address of the application's broker. Returns when a server process has acknowledged the command; that
    process repeats it to those that cannot be reached now.

    \b
    starlette-channels disconnect redis://localhost user:7 --code 4001 --reason "logged out"
    """
    with _publisher(url, timeout) as publisher, _usage_errors():
        publisher.disconnect(socket_id, code=code, reason=reason)


@main.command()
@click.argument("url")
@click.argument("socket_id")
@click.argument("topic")
@click.option("--reason", help="Reason in the event `kicked`; without one, that event is not sent.")
@TIMEOUT
def kick(url: str, socket_id: str, topic: str, reason: str | None, timeout: float) -> None:
    """Remove the clients of a SOCKET_ID from a TOPIC in a running application.

    URL is the address of the application's broker. Returns when a server process has acknowledged the command, as
    `disconnect` does.

    \b
    starlette-channels kick redis://localhost user:7 room:lobby --reason flooding
    """
    with _publisher(url, timeout) as publisher, _usage_errors():
        publisher.kick(socket_id, topic, reason=reason)


@contextlib.contextmanager
def _publisher(url: str, timeout: float) -> Generator[Publisher]:
    """Open a publisher; turn its errors into those of the command line."""
    try:
        publisher = Publisher(url, timeout=timeout)
    except (ValueError, ImportError, OSError) as error:
        raise click.BadParameter(str(error), param_hint="URL") from None
    try:
        with publisher:
            yield publisher
    except SerializerError as error:
        raise click.BadParameter(str(error), param_hint="PAYLOAD") from None
    except PublishError as error:
        raise click.ClickException(str(error)) from None


@contextlib.contextmanager
def _usage_errors() -> Generator[None]:
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


class Unhandled(logging.Filter):
    """Passes records only while the application has no logging handlers of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Look at the root logger for each record: the application is imported after logging is configured."""
        return not logging.getLogger().handlers


def _log_as_uvicorn_does(level: str | None) -> None:
    """Show this package's log lines among uvicorn's; a file given with `--log-config` replaces this."""
    LOGGING_CONFIG["filters"] = {"unhandled": {"()": Unhandled}}
    LOGGING_CONFIG["handlers"]["channels"] = {**LOGGING_CONFIG["handlers"]["default"], "filters": ["unhandled"]}
    LOGGING_CONFIG["loggers"]["starlette_channels"] = {"handlers": ["channels"], "level": (level or "info").upper()}
