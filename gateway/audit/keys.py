"""The key that signs the heads of the trail: the gateway's own, in its state folder, never sent anywhere."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from gateway.core.errors import SettingsError
from gateway.core.read_file import read_file

_FILE = "key.pem"


def key_folder(state_dir: Path) -> Path:
    """Where the key is, and the copies of signed heads."""
    return state_dir / "audit"


def make_key(state_dir: Path) -> Ed25519PrivateKey:
    """The key; made the first time. Raises SettingsError. Blocks."""
    folder = key_folder(state_dir)
    path = folder / _FILE
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            _create(folder, path)
    except OSError as error:
        raise SettingsError([f"{path}: the audit key cannot be made: {error.strerror}"]) from error
    return read_key(state_dir)


def read_key(state_dir: Path) -> Ed25519PrivateKey:
    """The key that a gateway has made. Raises SettingsError. Blocks."""
    path = key_folder(state_dir) / _FILE
    try:
        key = load_pem_private_key(read_file(path), password=None)
    except FileNotFoundError as error:
        raise SettingsError(
            [f"{path}: there is no audit key; the first start with --audit-log makes one in --state-dir"]
        ) from error
    except OSError as error:
        raise SettingsError([f"{path}: the audit key cannot be read: {error.strerror}"]) from error
    except (ValueError, TypeError) as error:
        raise SettingsError([f"{path}: is not a private key in PEM form; put the key back from a backup"]) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError([f"{path}: is not an Ed25519 key"])
    return key


def _create(folder: Path, path: Path) -> None:
    """Whole or not at all, also when two start at once. Raises FileExistsError where there is one."""
    if path.exists():
        raise FileExistsError
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fresh = folder / f"key.{os.getpid()}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, pem)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(fresh, path)  # and not rename, which would replace the key of a gateway that was faster
    finally:
        fresh.unlink()


def public_pem(key: Ed25519PublicKey) -> str:
    """As `wakegate audit key` prints it, and `openssl pkey -pubin` reads it."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def public_hex(key: Ed25519PublicKey) -> str:
    """The 32 bytes, as `open` lines have them."""
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """From a PEM file. Raises SettingsError."""
    try:
        key = load_pem_public_key(read_file(path))
    except OSError as error:
        raise SettingsError([f"--public-key {path}: cannot be read: {error.strerror}"]) from error
    except ValueError as error:
        raise SettingsError([f"--public-key {path}: is not a public key in PEM form"]) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError([f"--public-key {path}: is not an Ed25519 key"])
    return key
