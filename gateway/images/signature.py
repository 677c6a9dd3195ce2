"""Verifies cosign's signatures of images with a public key. Pure, but for reading key files.

Source: cosign's specs/SIGNATURE_SPEC.md, "simple signing": what is signed is a JSON document that names the digest of
the image's manifest. sigstore's Python library verifies by certificates of its service only, not with a key.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from gateway.core.read_file import read_file

MAX_PAYLOAD_BYTES = 64 << 10
MAX_SIGNATURE_CHARS = 2048  # base64 of 8192 bits of RSA takes 1368
_MAX_KEY_BYTES = 64 << 10
_RSA_BITS = (2048, 8192)  # a longer one takes milliseconds to verify
_TYPE = "cosign container image signature"  # the same key may sign other documents, which say nothing of images

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature as it was found: the document that is signed, and the signature in base64."""

    payload: bytes
    signature: str


def read_key(path: Path) -> PublicKey:
    """A public key from a PEM file, as cosign.pub is. Blocks. Raises ValueError with what is wrong."""
    try:
        pem = read_file(path, _MAX_KEY_BYTES)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("expected a public key in PEM, such as cosign.pub") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and _RSA_BITS[0] <= key.key_size <= _RSA_BITS[1]:
        return key
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    raise ValueError("expected a key of ECDSA on P-256, Ed25519, or RSA with 2048 to 8192 bits")


def verify(digest: str, found: Signed, keys: Sequence[PublicKey]) -> str:
    """Whether one of the keys signed that the image has this digest. Returns why not, or "" where it did.

    The document is parsed only once its signature is verified, so what others put into a registry is never parsed.
    """
    if len(found.payload) > MAX_PAYLOAD_BYTES or len(found.signature) > MAX_SIGNATURE_CHARS:
        return "a signature is too long"
    try:
        signature = base64.b64decode(found.signature, validate=True)
    except (binascii.Error, ValueError):
        return "a signature is no base64"
    # Each key in turn: a signature does not say by which it is. Operators have a few, while keys are being changed.
    if not any(_holds(key, signature, found.payload) for key in keys):
        return "a signature is by none of the keys"
    # A valid signature that was copied from another image of the same maker's.
    named = _digest_of(found.payload)
    return "" if named == digest else "a signature is of another image"


def _holds(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True


def _digest_of(payload: bytes) -> str:
    """The digest that a signed document names; "" if it is no signature of an image."""
    try:
        critical = json.loads(payload)["critical"]
        return str(critical["image"]["docker-manifest-digest"]) if critical["type"] == _TYPE else ""
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
