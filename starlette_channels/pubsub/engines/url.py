"""Address of a broker: the engine, its server, and options."""

import importlib
from collections.abc import Iterable, Mapping
from typing import Annotated, NamedTuple, Protocol, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from msgspec import Meta, Struct

from starlette_channels.pubsub.engines.base import MakeEngine

MEMORY = "memory://"
MAX_PORT = 65_535

ENGINES: Mapping[str, str] = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "redis+sentinel": "redis_sentinel",
    "redis+cluster": "redis_cluster",
    "rediss+cluster": "redis_cluster",
    "nats": "nats",
    "tls": "nats",
    "zenoh": "zenoh",
    "zenoh+tls": "zenoh",
}
"""Module of each scheme; the extra is the part of its name before `_`."""


class Options(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of all engines in the query of an address: `redis://localhost/0?prefix=chat&buffer_seconds=30`."""

    prefix: Annotated[str, Meta(min_length=1, pattern=r"^[A-Za-z0-9_-]+$")] = "channels"
    """Prefix of the channel names of this application, for an engine that it shares with others."""

    buffer_seconds: Annotated[float, Meta(ge=0)] = 10.0
    """Seconds for which broadcasts are queued while the engine is away; older ones are dropped and reported as lost."""

    queue: Annotated[int, Meta(ge=1)] = 10_000
    """Maximal number of queued broadcasts; beyond it the oldest are dropped, and reported as lost."""

    queue_bytes: Annotated[int, Meta(ge=1)] = 64_000_000
    """Maximal size of the queued broadcasts in bytes, and of received messages that wait for an event loop."""


NAMES: frozenset[str] = frozenset(field.name for field in msgspec.structs.fields(Options))


class EngineModule(Protocol):
    """Interface of the module of an engine."""

    def engine_maker(self, url: str, options: Options) -> MakeEngine:
        """Return a factory of engines, without connecting. Raises `ValueError` for an invalid address."""
        ...


class Address(NamedTuple):
    """A parsed address."""

    options: Options
    make: MakeEngine


def read_address(url: str) -> Address | None:
    """Parse an address; `None` for `memory://`, which needs no relay.

    Raises `ValueError` for an invalid address, with the reason but without the password, and `ImportError` with the
    command that installs the missing library.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - from the environment, it may be None
        raise TypeError(f'broker {url!r}: give an address, as in "redis://localhost"; is the variable for it set?')
    if url == MEMORY:
        return None
    scheme, separator, _ = url.partition("://")
    if scheme == "memory":
        raise ValueError(f"broker {without_secrets(url)!r}: write memory://, it takes nothing behind it")
    if not separator or scheme not in ENGINES:
        known = ", ".join(f"{name}://" for name in ("memory", *ENGINES))
        raise ValueError(f"broker {without_secrets(url)!r}: it must begin with one of {known}")
    _check_ports(url)
    rest, options = _split(url)
    make: MakeEngine = _module(ENGINES[scheme]).engine_maker(rest, options)
    return Address(options, make)


def _check_ports(url: str) -> None:
    """Raise `ValueError` unless all ports are numbers up to 65535."""
    for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
        _, colon, port = host.rpartition("]")[2].rpartition(":")
        if colon and port and not (port.isascii() and port.isdecimal() and int(port) <= MAX_PORT):
            raise ValueError(
                f"broker {without_secrets(url)!r}: what follows the last colon is no port, which is a number up to"
                f" {MAX_PORT}; in a password, a / or # must be quoted, as urllib.parse.quote(password, '') does"
            )


def without_secrets(url: str) -> str:
    """Return an address without user, password and query, for logs."""
    head, at, tail = url.partition("?")[0].rpartition("@")
    scheme, separator, _ = head.partition("://")
    return f"{scheme}{separator}***@{tail}" if at else tail


def _split(url: str) -> tuple[str, Options]:
    """Split off the options of all engines; return the rest of the address and them."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: value for name, value in pairs if name in NAMES}
    theirs = [(name, value) for name, value in pairs if name not in NAMES]
    try:
        options = msgspec.convert(ours, Options, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"broker {without_secrets(url)!r}: {error}") from None
    return parts._replace(query=urlencode(theirs)).geturl(), options


def _module(name: str) -> EngineModule:
    try:
        return cast("EngineModule", importlib.import_module(f"starlette_channels.pubsub.engines.{name}"))
    except ModuleNotFoundError as error:
        extra = name.partition("_")[0]
        raise ImportError(f"{extra}:// needs {error.name}: pip install 'starlette-channels[{extra}]'") from None


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ValueError` for options that are unknown to the engine, naming the known ones."""
    unknown = set(names) - set(known)
    if unknown:
        raise ValueError(
            f"a broker's address has an option that is unknown: {', '.join(sorted(unknown))};"
            f" it may have {', '.join(sorted(NAMES | set(known)))}"
        )
