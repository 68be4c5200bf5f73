"""Paths of the transports, below the mount."""

from typing import Any

from starlette.routing import compile_path
from starlette.types import Scope


class TransportPath:
    """A path below the mount, variables included: `"/websocket"`, `"/ws/{region}"`."""

    def __init__(self, path: str, option: str) -> None:
        if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without types
            raise TypeError(f"{option}={path!r}): it is a text that begins with a slash")
        if not path.startswith("/"):
            raise ValueError(f"{option}={path!r}): it must begin with a slash")
        self._regex, _, self._convertors = compile_path(path)

    def match(self, scope: Scope) -> dict[str, Any] | None:
        """Return the path variables of a request, or `None` if its path is another one."""
        match = self._regex.match(path_below_mount(scope))
        if match is None:
            return None
        return {name: self._convertors[name].convert(value) for name, value in match.groupdict().items()}


def path_below_mount(scope: Scope) -> str:
    """Return the path without the prefix of the mount, which Starlette's `Mount` puts into `root_path`."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] if root and path.startswith(root + "/") else path
