"""The check of origins: the header `Origin`, which browsers send, against the setting `check_origin`.

Source: `check_origin` in Phoenix's `socket/transport.ex`. On purpose different: `True` compares with the `Host` of the
request, since there is no configured one; schemes and hosts are compared without regard to case; only the syntax of
RFC 6454 §6.2 is accepted; and an HTTP request without an origin must not be a browser's request for a page of another
origin (Fetch Metadata's `Sec-Fetch-Site`).
"""

import functools
import re
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeAlias, cast

from starlette_channels.arguments import shown_argument
from starlette_channels.handshake.handshake import Handshake
from starlette_channels.handshake.refusal import Refused
from starlette_channels.runtime.callables import check_function, is_async
from starlette_channels.runtime.cancellation import is_crash

CheckOrigin: TypeAlias = bool | Collection[str] | Callable[[Handshake], bool]
"""True: pages of the same host; False: all pages; a list of origins; or a function."""

ADVICE = (
    "a page from elsewhere. If it is yours, Channels(check_origin=[...]) takes a list of all origins that are. "
    "If it is of the same host, a proxy in front has changed the Host header"
)

WITHOUT_ORIGIN = (
    "an image, a script or a navigation of another page; a client that polls by fetch or XMLHttpRequest sends an Origin"
)

ELSEWHERE = frozenset({"cross-site", "same-site"})
"""Values of `Sec-Fetch-Site` for requests of pages of other origins."""

DEFAULT_PORTS = {"http": 80, "https": 443}

_HOST = r"(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
_SCHEME = r"(?P<scheme>[a-z][a-z0-9+.-]*):"
_HEADER_HOST = re.compile(_HOST, re.IGNORECASE)
_ORIGIN = re.compile(rf"{_SCHEME}//{_HOST}", re.IGNORECASE)
_ALLOWED = re.compile(rf"(?:{_SCHEME})?//(?P<star>\*\.)?{_HOST}", re.IGNORECASE)


class Origin(NamedTuple):
    """The origin of a page, in lower case; without a port in the header, the default port of the scheme."""

    scheme: str
    host: str
    port: int | None


def parse_origin(header: str) -> Origin | None:
    """Parse an `Origin` header; `None` if it has no host, as for local files and sandboxed frames (`null`)."""
    match = _ORIGIN.fullmatch(header)
    if match is None:
        return None
    scheme, host, port = match["scheme"].lower(), match["host"].lower(), match["port"]
    return Origin(scheme, host, int(port) if port else DEFAULT_PORTS.get(scheme))


class Allowed(NamedTuple):
    """An entry of a list: `//host`, `//host:81`, `https://host`, `//*.host`; a part that is missing matches all."""

    scheme: str | None
    host: str
    port: int | None
    subdomains: bool

    def admits(self, origin: Origin) -> bool:
        """Return whether this entry admits an origin. `*.host` is the host itself and all its subdomains."""
        return (
            self.scheme in (None, origin.scheme)
            and (origin.host == self.host or (self.subdomains and origin.host.endswith(f".{self.host}")))
            and (self.port == origin.port if self.scheme else self.port in (None, origin.port))
        )


def parse_allowed(entry: str) -> Allowed:
    """Parse an entry of a list. Raises `ValueError` with the fix in its text."""
    match = _ALLOWED.fullmatch(entry)
    if match is None:
        raise ValueError(f"Channels(check_origin=...): {entry!r} is no origin: {_advice(entry)}")
    scheme, host, port = match["scheme"], match["host"].lower(), match["port"]
    scheme = scheme and scheme.lower()
    if scheme in ("ws", "wss"):
        raise ValueError(
            f"Channels(check_origin=...): {entry!r} is the address of a WebSocket: name the page's, with http"
        )
    return Allowed(scheme, host, int(port) if port else DEFAULT_PORTS.get(scheme or ""), match["star"] is not None)


def _advice(entry: str) -> str:
    if entry == "*":
        return "for pages from anywhere write check_origin=False"
    if not entry.isascii():
        return "write the host as browsers send it, in ASCII (xn--...)"
    if "//" not in entry:
        return f"write {'//' + entry!r} for any scheme, or {'https://' + entry!r}"
    return "write '//host', '//host:8080', 'https://host' or '//*.host', without a path"


@functools.lru_cache(256)
def is_same_host(origin: str, host: str) -> bool:
    """Return whether an origin has the host of the header `Host`; scheme and port are not compared.

    Browsers send the cookies of a host to all its ports. Behind a proxy the scheme is not known.
    """
    page, here = parse_origin(origin), _HEADER_HOST.fullmatch(host)
    return page is not None and here is not None and page.host == here["host"].lower()


class OriginCheck:
    """The check of one `Channels`. Raises `TypeError` and `ValueError` unless the setting is valid."""

    def __init__(self, setting: CheckOrigin) -> None:
        self._admits: Callable[[Handshake], bool] = _rule(setting)

    def __call__(self, conn: Handshake) -> None:
        """Check a handshake; raises `Refused` if its origin is not admitted.

        A request without the header passes: it is not a script's, and a program that can leave out the header can
        forge it. Browsers leave it out of requests for images, scripts and navigations; of these, HTTP requests of
        pages of other origins are refused whatever the setting, by the header `Sec-Fetch-Site`.
        """
        origin = conn.headers.get("origin")
        if origin is None:
            if conn.scope["type"] == "http":
                _check_fetch_site(conn)
            return
        try:
            admitted = cast("object", self._admits(conn))
            if not isinstance(admitted, bool):
                raise TypeError(f"check_origin returned {admitted!r}: it must be True or False")
        except BaseException as error:
            if not is_crash(error):
                raise
            raise Refused(500, "check_origin raised", "Internal Server Error", "connect_crashed") from error
        if not admitted:
            reason = f"origin {origin}, host {conn.headers.get('host', '')}"
            raise Refused(403, reason, code="origin_refused", advice=ADVICE)


def _check_fetch_site(conn: Handshake) -> None:
    """Refuse a browser's request without CORS for a page of another origin; no script can read its answer."""
    sites = ",".join(conn.headers.getlist("sec-fetch-site")).lower()
    site = next((site.strip() for site in sites.split(",") if site.strip() in ELSEWHERE), None)
    if site is not None:
        reason = f"no origin, and Sec-Fetch-Site {site}"
        raise Refused(403, reason, code="origin_refused", advice=WITHOUT_ORIGIN)


def _rule(setting: CheckOrigin) -> Callable[[Handshake], bool]:
    if isinstance(setting, bool):
        return _from_the_same_host if setting else _from_anywhere
    if callable(setting):
        if is_async(setting):
            raise TypeError("Channels(check_origin=...): the function must not be async; ask what is slow in `connect`")
        check_function(setting, "Channels(check_origin=...)", ("conn",), to_await=False, by_name=False)
        return setting
    try:
        if isinstance(setting, str):
            raise TypeError("its characters are no entries")
        allowed = [parse_allowed(entry) for entry in setting]
    except TypeError:
        wanted = "give a list of strings, a function, True or False"
        raise TypeError(f"Channels(check_origin={shown_argument(setting)}): {wanted}") from None

    def from_the_list(conn: Handshake) -> bool:
        origin = parse_origin(conn.headers["origin"])
        return origin is not None and any(entry.admits(origin) for entry in allowed)

    return from_the_list


def _from_the_same_host(conn: Handshake) -> bool:
    return is_same_host(conn.headers["origin"], conn.headers.get("host", ""))


def _from_anywhere(_: Handshake) -> bool:
    return True
