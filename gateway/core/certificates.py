"""The certificate files of a gateway, and the TLS contexts made from them.

Files are read by hand first, as OpenSSL names neither the file nor the cause, and asks the terminal for a password.
When they change, new contexts take the place of the old ones as a whole: handshakes under way and connections keep
theirs, and no session ticket of an old one is accepted by a new one, so a client CA that was removed is not trusted.
Rejected: to load new files into the same context, which a key that does not match leaves half changed.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.core.clock import Clock
from gateway.core.errors import BadRequestError, SettingsError
from gateway.core.read_file import read_file
from gateway.core.settings import Settings

logger = logging.getLogger(__name__)

POLL_S = 5.0  # between looks at the files; certificates are renewed weeks before the old one ends
EXPIRES_SOON_S = 14 * 86400.0
_MAX_SUBJECT = 1024


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's certificate that --tls-client-ca has verified: `scope["state"]["client_certificate"]`."""

    subject: str  # RFC 4514, e.g. "CN=agent-7,O=Example"
    names: tuple[str, ...]  # of the subjectAltName: DNS:..., URI:..., email:...
    serial: str  # hexadecimal
    sha256: str  # of the DER, hexadecimal


class Certificates:
    """The contexts in force. State: they, and what the files looked like when they were made.

    `server` is for clients' connections, `peers` for those to other gateways.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None, clock: Clock) -> None:
        """Raises SettingsError with all that is wrong with the files."""
        self.verifies_clients = client_ca is not None
        self._files = (cert, key, *((client_ca,) if client_ca is not None else ()))
        self._clock = clock
        self._seen = self._stamps()
        self.server, self.peers = self._load()

    def __repr__(self) -> str:
        return f"<Certificates {', '.join(map(str, self._files))}>"

    def reload_if_changed(self) -> bool:
        """Look at the files; whether they were taken anew. What is wrong with them is logged, once. Blocks."""
        stamps = self._stamps()
        if stamps == self._seen:
            return False
        self._seen = stamps
        try:
            self.server, self.peers = self._load()
        except SettingsError as error:
            for problem in error.problems:
                logger.error("TLS continues with the previous files: %s", problem)
            return False
        logger.info("new TLS connections use the changed %s", ", ".join(map(str, self._files)))
        return True

    def _stamps(self) -> tuple[object, ...]:
        """What tells a changed file: a Secret's volume and certbot put another inode there, editors write in place."""
        return tuple(_stamp(file) for file in self._files)

    def _load(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        cert, key, *client_ca = self._files
        check_files(cert, key, client_ca[0] if client_ca else None)
        for warning in expiry_problems(cert, self._clock.now(), soon=0.0):
            logger.warning("%s", warning)
        try:
            return _server_context(cert, key, *client_ca), _peer_context(cert, key, *client_ca)
        except (OSError, ValueError) as error:  # SSLError is an OSError: a key too small, a file changed meanwhile
            raise SettingsError(
                [f"--tls-cert {cert}: cannot be used: {getattr(error, 'reason', '') or error}"]
            ) from error


def make_certificates(settings: Settings, clock: Clock) -> Certificates | None:
    """As the settings say; None: without TLS. Raises SettingsError."""
    cert, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert == key == client_ca == Path():
        return None
    problems = []
    if cert == Path():
        problems.append("--tls-cert is missing: TLS needs --tls-cert and --tls-key")
    if key == Path():
        problems.append("--tls-key is missing: TLS needs --tls-cert and --tls-key")
    if problems:
        raise SettingsError(problems)
    return Certificates(cert, key, None if client_ca == Path() else client_ca, clock)


def check_files(cert: Path, key: Path, client_ca: Path | None) -> None:
    """Raises SettingsError with a sentence for each file that cannot be used, and why."""
    problems: list[str] = []
    chain = _read_certificates("--tls-cert", cert, problems)
    public = _read_public_key(key, problems)
    if client_ca is not None:
        _read_certificates("--tls-client-ca", client_ca, problems)
    if chain and public and _public_bytes(chain[0]) != public:
        problems.append(
            f"--tls-key {key}: is not the key of the first certificate in {cert} ({chain[0].subject.rfc4514_string()});"
            " the server's own certificate comes first, then those that issued it"
        )
    if problems:
        raise SettingsError(problems)


def expiry_problems(cert: Path, now: float, *, soon: float = EXPIRES_SOON_S) -> Iterator[str]:
    """A sentence for each certificate of a chain that is not valid, or ends within `soon` seconds. `now`: epoch."""
    for each in _read_certificates("--tls-cert", cert, []):
        name = f"--tls-cert {cert}: the certificate {each.subject.rfc4514_string()[:_MAX_SUBJECT]}"
        begins, ends = each.not_valid_before_utc, each.not_valid_after_utc
        if now < begins.timestamp():
            yield f"{name} is not valid before {begins:%Y-%m-%d %H:%M} UTC: clients refuse it"
        elif now >= ends.timestamp():
            yield f"{name} expired on {ends:%Y-%m-%d %H:%M} UTC: clients refuse it"
        elif now + soon >= ends.timestamp():
            yield f"{name} expires on {ends:%Y-%m-%d %H:%M} UTC"


def ends_at(cert: Path) -> datetime:
    """When the first certificate of a chain that ends is over."""
    return min(
        (each.not_valid_after_utc for each in _read_certificates("--tls-cert", cert, [])),
        default=datetime.max.replace(tzinfo=UTC),
    )


def read_client_certificate(der: bytes) -> ClientCertificate:
    """A verified certificate, read. Raises BadRequestError: OpenSSL takes some that are not well-formed."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        try:
            alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names: tuple[str, ...] = ()
        else:
            names = (
                *(f"DNS:{name}" for name in alternatives.get_values_for_type(x509.DNSName)),
                *(f"URI:{name}" for name in alternatives.get_values_for_type(x509.UniformResourceIdentifier)),
                *(f"email:{name}" for name in alternatives.get_values_for_type(x509.RFC822Name)),
            )
        return ClientCertificate(
            subject=certificate.subject.rfc4514_string()[:_MAX_SUBJECT],
            names=names,
            serial=f"{certificate.serial_number:x}",
            sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        )
    except ValueError as error:
        raise BadRequestError(f"the client's certificate cannot be read: {error}") from error


@lru_cache(maxsize=1)
def default_peer_context() -> ssl.SSLContext:
    """For gateways without TLS of their own that others share a store with. The machine's certification authorities."""
    return ssl.create_default_context()


def _server_context(cert: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(cert, key, password=lambda: "")  # never asks the terminal
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    return context


def _peer_context(cert: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """Trusts the machine's authorities, the client CA, and our own chain, which gateways often have in common."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cert)
    context.set_alpn_protocols(["http/1.1"])
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.load_cert_chain(cert, key, password=lambda: "")
    return context


def _stamp(file: Path) -> object:
    try:
        found = os.stat(file)
    except OSError as error:
        return error.errno
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _read(flag: str, file: Path, problems: list[str]) -> bytes:
    try:
        return read_file(file)
    except OSError as error:
        problems.append(f"{flag} {file}: cannot be read: {error.strerror}")
        return b""


def _read_certificates(flag: str, file: Path, problems: list[str]) -> list[x509.Certificate]:
    text = _read(flag, file, problems)
    if not text and problems:
        return []
    try:
        return x509.load_pem_x509_certificates(text)
    except ValueError:
        problems.append(f"{flag} {file}: has no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
        return []


def _read_public_key(file: Path, problems: list[str]) -> bytes:
    """The public half of the private key, to compare; empty where there is none."""
    text = _read("--tls-key", file, problems)
    if not text:
        if not any(str(file) in problem for problem in problems):
            problems.append(f"--tls-key {file}: is empty")
        return b""
    try:
        key = load_pem_private_key(text, password=None)
    except TypeError:
        problems.append(
            f"--tls-key {file}: is encrypted, and a gateway cannot ask for its password; decrypt it with"
            " `openssl pkey` and protect the file by its mode"
        )
        return b""
    except Exception:  # cryptography's several: not PEM, no key, an algorithm that it does not know
        problems.append(f"--tls-key {file}: has no private key in PEM form (-----BEGIN PRIVATE KEY-----)")
        return b""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        return b""
