"""The certification authority with which TLS is ended here: made once for a state folder, or once for all gateways of a
cluster, and known to sandboxes alone.

Its key is a file of the gateway's user (0600) that only the egress service reads. A certificate of a host is made when
a sandbox first asks for that host, lives in memory, and is good for a week. Source: RFC 5280.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from gateway.egress.addresses import Host

KEY_FILE, CERTIFICATE_FILE = "authority.key", "authority.pem"
_VALID = timedelta(days=5 * 365)
_RENEWED_BEFORE = timedelta(days=365)  # a gateway that runs for longer than this is updated in between
_LEAF_VALID, _LEAF_USED = timedelta(days=7), timedelta(days=1)
_SKEW = timedelta(hours=1)
_MAX_LEAVES = 256  # of hosts, about 50 KiB each
_CURVE = ec.SECP256R1


def ensure_authority(folder: Path, now: float) -> bytes:
    """The certificate (PEM) of the authority in `folder`, which is made if there is none, or it ends soon.

    `now` in epoch seconds. Blocks. Raises OSError.
    """
    try:
        found = Authority(folder)
        if lasts(found.pem, now):
            return found.pem
    except (OSError, ValueError):
        pass  # none, or a half of one
    pem, key = make_authority(now)
    write_authority(folder, pem, key)
    return pem


def make_authority(now: float) -> tuple[bytes, bytes]:
    """The certificate and the key of a new one, PEM. `now` in epoch seconds."""
    key = ec.generate_private_key(_CURVE())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Wakegate egress of {os.urandom(4).hex()}")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, name, key, key, datetime.fromtimestamp(now, UTC), _VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def lasts(pem: bytes, now: float) -> bool:
    """Whether a certificate is good for another year, in epoch seconds from `now`. Raises ValueError for none."""
    until = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    return until - datetime.fromtimestamp(now, UTC) > _RENEWED_BEFORE


def check_authority(pem: bytes, key: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Read a certificate and its key, PEM. Raises ValueError if they are not that."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        private = load_pem_private_key(key, password=None)
    except TypeError as error:  # it is encrypted
        raise ValueError(str(error)) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != certificate.public_key():
        raise ValueError("the key is not that of the certificate")
    return certificate, private


def write_authority(folder: Path, pem: bytes, key: bytes) -> None:
    """Put one into a folder, in place of another. Blocks. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    # The key is written last: one that is cut off in between is found to be a half, and is made anew.
    (folder / KEY_FILE).unlink(missing_ok=True)
    _write_private(folder / CERTIFICATE_FILE, pem)
    _write_private(folder / KEY_FILE, key)


def _write_private(path: Path, content: bytes) -> None:
    # By the process's number: workers of one gateway write the same authority into the same folder.
    new = f"{path}.{os.getpid()}"
    made = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(made, "wb") as file:
        file.write(content)
    os.replace(new, path)


class Authority:
    """Makes certificates of hosts. Raises OSError, ValueError if there is no authority in the folder."""

    def __init__(self, folder: Path) -> None:
        self.pem = (folder / CERTIFICATE_FILE).read_bytes()
        self.certificate, self._key = check_authority(self.pem, (folder / KEY_FILE).read_bytes())
        self._leaf_key = ec.generate_private_key(_CURVE())  # of all hosts: it is as private as the authority's
        self._contexts: OrderedDict[Host, tuple[datetime, ssl.SSLContext]] = OrderedDict()

    def context(self, host: Host, now: float) -> ssl.SSLContext:
        """With which TLS for a host is ended. HTTP/1.1 is all that is offered."""
        at = datetime.fromtimestamp(now, UTC)
        found = self._contexts.get(host)
        if found is None or at - found[0] > _LEAF_USED:
            found = self._contexts[host] = (at, self._make(host, at))
        self._contexts.move_to_end(host)
        while len(self._contexts) > _MAX_LEAVES:
            self._contexts.popitem(last=False)
        return found[1]

    def _make(self, host: Host, at: datetime) -> ssl.SSLContext:
        certificate = self.issue(host, at)
        pem = self._leaf_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        # ssl takes a chain from a file only: one in memory, which no other process can open and no disk ever has.
        memory = os.memfd_create("leaf", os.MFD_CLOEXEC)
        with open(memory, "wb") as file:
            file.write(pem + certificate.public_bytes(Encoding.PEM))
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        return context

    def issue(self, host: Host, at: datetime) -> x509.Certificate:
        """A certificate for a host, good from `at` on."""
        named = x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host)
        # No common name: a DNS name may be longer than the 64 characters that one has. The alternative name is then
        # critical (RFC 5280, section 4.2.1.6).
        usage = x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        return (
            _builder(x509.Name([]), self.certificate.subject, self._leaf_key, self._key, at, _LEAF_VALID)
            .add_extension(x509.SubjectAlternativeName([named]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    at: datetime,
    valid: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _SKEW)
        .not_valid_after(at + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
