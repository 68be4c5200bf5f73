"""What a server may say when it closes a WebSocket: a code, and a short reason.

Source: RFC 6455, §5.5.1 and §7.4, and the codes that are registered with IANA.
"""

REASON_BYTES = 123
"""What a close frame has room for, in UTF-8."""

CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014)
"""The registered codes that a server may send; 3000 to 4999 are for applications."""


def check_close(code: int, reason: str, *, code_name: str, reason_name: str) -> None:
    """Raise `ValueError` for what no close frame can say; the names are those of the caller's arguments."""
    if not isinstance(code, int) or (code not in CODES and not 3000 <= code <= 4999):  # pyright: ignore[reportUnnecessaryIsInstance] - users may pass anything
        known = ", ".join(map(str, CODES))
        raise ValueError(f"{code_name}={code!r}): a server may send {known}, and 3000 to 4999")
    if len(reason.encode()) > REASON_BYTES:
        raise ValueError(f"{reason_name}=...): it takes more than {REASON_BYTES} bytes in UTF-8")
