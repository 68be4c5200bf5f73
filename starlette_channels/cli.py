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
"""Where `run` differs from uvicorn, as arguments of `uvicorn.run`: `uvicorn.run("app:app", **SETTINGS)`.

The reasons are in the help of `run`. Everything else is uvicorn's own default, uvloop where it is installed included.
"""

RUN_HELP = """\
Serve an application with uvicorn and the settings that suit channels.

APP is an import string, MODULE:ATTRIBUTE. It may be any ASGI application. All options are those of the installed
uvicorn, so are its environment variables (UVICORN_PORT, ...); what you give wins over our defaults. These differ from
uvicorn's:

\b
--ws                      channels take the fast lane: an idle client costs
                          no task, a broadcast one write for each client
--http                    requests are parsed in slices, so that nobody waits
                          for those of a client that sends many, or a body
                          in tiny chunks
--ws-per-message-deflate  off, as on the fast lane anyhow: compression costs
                          memory for each client, and time for each message
                          to each client
--backlog                 more room for clients that all come back at once
                          after a restart; Linux allows 4096 as it comes
"""


@click.group()
@click.version_option(package_name="starlette-channels")
def main() -> None:
    """Phoenix Channels for Starlette and FastAPI."""


def serve(**options: Any) -> None:
    """Run uvicorn's own command with these options of it."""
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


TIMEOUT = click.option("--timeout", default=5.0, show_default=True, help="How many seconds the broker has.")


@main.command()
@click.argument("url")
@click.argument("topic")
@click.argument("event")
@click.argument("payload", default="{}")
@TIMEOUT
def publish(url: str, topic: str, event: str, payload: str, timeout: float) -> None:
    """Broadcast an event to the clients of a running application.

    URL is the address that the application's broker has. PAYLOAD is JSON, and an object.

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
@click.option("--code", default=1001, show_default=True, help="The code that clients see.")
@click.option("--reason", default="disconnected", show_default=True, help="The reason that they see.")
@TIMEOUT
def disconnect(url: str, socket_id: str, code: int, reason: str, timeout: float) -> None:
    """Close all connections of a running application whose socket_id this is.

    URL is the address that the application's broker has. It waits until a server process has acknowledged it, which
    repeats it to those that cannot be reached now.

    \b
    starlette-channels disconnect redis://localhost user:7 --code 4001 --reason "logged out"
    """
    with _publisher(url, timeout) as publisher, _usage_errors():
        publisher.disconnect(socket_id, code=code, reason=reason)


@main.command()
@click.argument("url")
@click.argument("socket_id")
@click.argument("topic")
@click.option("--reason", help="What the event `kicked` says to the client; without it there is no such event.")
@TIMEOUT
def kick(url: str, socket_id: str, topic: str, reason: str | None, timeout: float) -> None:
    """End the channel of a topic on all connections of a running application whose socket_id this is.

    URL is the address that the application's broker has. It waits as `disconnect` does.

    \b
    starlette-channels kick redis://localhost user:7 room:lobby --reason flooding
    """
    with _publisher(url, timeout) as publisher, _usage_errors():
        publisher.kick(socket_id, topic, reason=reason)


@contextlib.contextmanager
def _publisher(url: str, timeout: float) -> Generator[Publisher]:
    """Make a publisher, and say what is wrong with it as commands do."""
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
    """Passes what no handler of the application's own gets to see."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide when something is logged: the application is imported after logging has been set up."""
        return not logging.getLogger().handlers


def _log_as_uvicorn_does(level: str | None) -> None:
    """Show our log lines among uvicorn's; with `--log-config`, what that file says holds alone."""
    LOGGING_CONFIG["filters"] = {"unhandled": {"()": Unhandled}}
    LOGGING_CONFIG["handlers"]["channels"] = {**LOGGING_CONFIG["handlers"]["default"], "filters": ["unhandled"]}
    LOGGING_CONFIG["loggers"]["starlette_channels"] = {"handlers": ["channels"], "level": (level or "info").upper()}
