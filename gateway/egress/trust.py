"""The certificates that tools in a sandbox trust: those of this machine, of the operator, and of the egress service."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi

# Where systems keep all authorities in one file: Debian and Alpine, Red Hat, SUSE, others.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip


def trust_bundle(own: bytes, more: Path | None) -> bytes:
    """All of it as PEM; `own` comes last. Blocks. Raises OSError."""
    # One file with all: most tools read a single one, and with ours alone they could reach no host whose TLS passes.
    parts = [_of_this_machine(), *([] if more is None else [more.read_bytes()]), own]
    return b"\n".join(part.rstrip() for part in parts) + b"\n"


def _of_this_machine() -> bytes:
    """What the service itself verifies by; without such a file, the authorities that Mozilla trusts."""
    found = ssl.get_default_verify_paths().cafile
    for path in (*([found] if found else []), *_BUNDLES, certifi.where()):
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""
