"""Certificates for servers of a test: one that is right, one that has expired, and one of another authority."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

from tests.support.ports import HOST


@dataclass(frozen=True)
class Certificate:
    """What a server shows, in files that servers and `ssl` read."""

    chain: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.chain, self.key)
        return context


class Authority:
    """Who signs certificates, and the file by which clients know it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.file = folder / "ca.pem"
        self._folder = folder
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(self.file))

    def certificate(self, *, is_expired: bool = False) -> Certificate:
        end = datetime.now(UTC) + timedelta(days=-1 if is_expired else 1)
        signed = self._ca.issue_cert(HOST, not_before=end - timedelta(days=10), not_after=end)
        name = "expired" if is_expired else "right"
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        made.chain.write_bytes(b"".join(blob.bytes() for blob in signed.cert_chain_pems))
        signed.private_key_pem.write_to_path(str(made.key))
        return made
