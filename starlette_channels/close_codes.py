"""Close codes and close reasons that a server may send on a WebSocket.

Source: RFC 6455, §5.5.1 and §7.4, and the codes that are registered with IANA.
"""

REASON_BYTES = 123
"""Maximum length of a close reason, in UTF-8."""

CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014)
"""The registered codes that a server may send; 3000 to 4999 are for applications."""


def check_close(code: int, reason: str, *, code_name: str, reason_name: str) -> None:
    """Raise `ValueError` for an invalid close code or reason. The names are the caller's, for the message."""
    if not isinstance(code, int) or (code not in CODES and not 3000 <= code <= 4999):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
        known = ", ".join(map(str, CODES))
        raise ValueError(f"{code_name}={code!r}): a server may send {known}, and 3000 to 4999")
    if len(reason.encode()) > REASON_BYTES:
        raise ValueError(f"{reason_name}=...): it must have at most {REASON_BYTES} bytes in UTF-8")
