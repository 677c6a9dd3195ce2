"""A certificate authority of a cluster, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM
_PLAIN = serialization.NoEncryption()
_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class Authority:
    """Keys and certificates of one cluster, in a folder: `ca.crt`, and `NAME.crt` and `NAME.key` of what it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        top = (
            self._builder(self._name, self._key)
            .add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False)
            .sign(self._key, hashes.SHA256())
        )  # fmt: skip
        self.certificate = folder / "ca.crt"
        self.certificate.write_bytes(top.public_bytes(_PEM))

    def sign(self, name: str, common_name: str, *, group: str = "", hosts: Sequence[str] = ()) -> None:
        """A server's (at `hosts`: names and addresses) or a client's, of that group."""
        key = ec.generate_private_key(ec.SECP256R1())
        parts = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if group:
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        builder = (
            self._builder(x509.Name(parts), key).add_extension(x509.ExtendedKeyUsage(_USES), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )  # fmt: skip
        if hosts:
            builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), False)
        signed = builder.sign(self._key, hashes.SHA256())
        (self._folder / f"{name}.crt").write_bytes(signed.public_bytes(_PEM))
        self._write_key(name, key)

    def make_account_key(self) -> None:
        """The key for tokens of service accounts: RSA, which every verifier knows."""
        self._write_key("accounts", rsa.generate_private_key(65537, 2048))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5)).not_valid_after(now + datetime.timedelta(days=1))
        )  # fmt: skip

    def _write_key(self, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        pem = key.private_bytes(_PEM, serialization.PrivateFormat.TraditionalOpenSSL, _PLAIN)
        (self._folder / f"{name}.key").write_bytes(pem)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
