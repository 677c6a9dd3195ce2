"""Encryption at rest: a SnapshotStore that wraps another one, with AES-256-GCM in chunks.

The STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015), with the layout of Google Tink's AES-GCM-HKDF streaming AEAD:

    head    "wakegate-seal-1\\n" | name of the key (1 byte length) | its fingerprint (16) | salt (32)
    chunk   AES-256-GCM(64 KiB of the stream, less in the last) with its tag (16)

Each snapshot has its own key, HKDF-SHA256(operator's key, salt, head), so nonces may count from zero:
7 zero bytes | number of the chunk (4) | 1 for the last chunk, else 0. A chunk that was moved, omitted, repeated or
taken from another snapshot has the wrong nonce or key; a stream truncated between two chunks lacks the last one.
2**32 chunks are 256 TiB. A chunk is yielded only after its tag was verified.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.core.errors import SnapshotCorruptError, SnapshotKeyError
from gateway.core.interfaces import SnapshotStore
from gateway.core.model import SessionId, SnapshotRef, StoredSnapshot
from gateway.snapshots.keys import SnapshotKeys
from gateway.snapshots.stream import batched, in_thread

CHUNK_BYTES = 64 << 10
_TAG_BYTES = 16
_MAGIC = b"wakegate-seal-1\n"
_FINGERPRINT_BYTES, _SALT_BYTES = 16, 32
_MAX_HEAD_BYTES = len(_MAGIC) + 1 + 64 + _FINGERPRINT_BYTES + _SALT_BYTES


class SealedStore:
    """A SnapshotStore that encrypts snapshots and stores them in `inner`, whose size limit counts encrypted bytes."""

    def __init__(self, inner: SnapshotStore, keys: SnapshotKeys) -> None:
        self._inner = inner
        self._keys = keys

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key, or nothing of it."""
        async with aclosing(self._seal(chunks)) as sealed:
            return await self._inner.put(session_id, sealed)

    async def _seal(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        head = make_head(self._keys)
        cipher = Cipher(self._keys.keys[self._keys.current], head)
        yield head
        held = bytearray()  # the last chunk is marked as such, so one is always held back until the stream ends
        async for batch in batched(chunks):
            held += batch
            # Minus one: exactly 64 KiB may be the last chunk, and stay here; 64 KiB and a byte release one chunk.
            whole = (len(held) - 1) // CHUNK_BYTES * CHUNK_BYTES
            if whole > 0:
                yield await in_thread(cipher.seal, bytes(held[:whole]), last=False)
                del held[:whole]
        yield await in_thread(cipher.seal, bytes(held), last=True)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they were put; raises before the last one where they are not."""
        held = bytearray()
        async with aclosing(self._inner.get(ref)) as pieces:
            while len(held) < _MAX_HEAD_BYTES and (piece := await anext(pieces, b"")):
                held += piece
            try:
                cipher = self._opener(ref, held)
            except SnapshotKeyError:
                async for _ in pieces:
                    pass  # if the head is damaged, reading on raises SnapshotCorruptError instead
                raise
            while True:
                whole = (len(held) - 1) // (CHUNK_BYTES + _TAG_BYTES) * (CHUNK_BYTES + _TAG_BYTES)
                if whole > 0:
                    yield await in_thread(_opened, ref, cipher, bytes(held[:whole]), last=False)
                    del held[:whole]
                if not (piece := await anext(pieces, b"")):
                    break
                held += piece
        rest = await in_thread(_opened, ref, cipher, bytes(held), last=True)
        if rest:
            yield rest

    async def delete(self, key: str) -> None:
        """Delete a snapshot; an absent one is success."""
        await self._inner.delete(key)

    def list(self) -> AsyncIterator[StoredSnapshot]:
        """Yield every stored snapshot, unfinished ones included."""
        return self._inner.list()

    def _opener(self, ref: SnapshotRef, held: bytearray) -> Cipher:
        """Remove the head from `held` and create the cipher. Raises SnapshotKeyError, SnapshotCorruptError."""
        # Not passed through: whoever can write to the store could otherwise plant a workspace by leaving out the head.
        if held[: len(_MAGIC)] != _MAGIC:
            raise SnapshotKeyError(
                f"snapshot {ref.key} is not encrypted by Wakegate; a gateway with keys accepts no other snapshots"
            )
        start = len(_MAGIC) + 1
        end = start + held[start - 1]
        if len(held) < end + _FINGERPRINT_BYTES + _SALT_BYTES:
            raise SnapshotCorruptError(f"snapshot {ref.key} is damaged: its head is truncated")
        name = bytes(held[start:end]).decode("ascii", "replace")
        if name not in self._keys.keys:
            raise SnapshotKeyError(
                f"snapshot {ref.key} is encrypted with the key {name!r}, which this gateway does not have"
                f" (it has {', '.join(self._keys.keys)}); add that key after the current one"
            )
        if held[end : end + _FINGERPRINT_BYTES] != self._keys.fingerprint(name):
            raise SnapshotKeyError(
                f"snapshot {ref.key} is encrypted with another key named {name!r} than the one that this gateway has"
            )
        head = bytes(held[: end + _FINGERPRINT_BYTES + _SALT_BYTES])
        del held[: len(head)]
        return Cipher(self._keys.keys[name], head)


class UnsealedStore:
    """A SnapshotStore without keys. It rejects encrypted snapshots, which picod would report as damaged."""

    def __init__(self, inner: SnapshotStore) -> None:
        self._inner = inner

    def __repr__(self) -> str:
        return f"<UnsealedStore {self._inner!r}>"

    async def put(self, session_id: SessionId, chunks: AsyncIterator[bytes]) -> SnapshotRef:
        """Store the stream durably under a new key, or nothing of it."""
        return await self._inner.put(session_id, chunks)

    async def get(self, ref: SnapshotRef) -> AsyncGenerator[bytes, None]:
        """Yield the bytes as they were put; raises before the last one where they are not."""
        head = b""
        async with aclosing(self._inner.get(ref)) as pieces:
            # The first piece may be shorter than the magic, which then must not go out before it was looked at.
            while len(head) < len(_MAGIC) and (piece := await anext(pieces, b"")):
                head += piece
            if head.startswith(_MAGIC):
                raise SnapshotKeyError(
                    f"snapshot {ref.key} is encrypted, and this gateway has no keys; start it with the"
                    " --snapshot-key-file (WAKEGATE_SNAPSHOT_KEY_FILE) that contains its key"
                )
            if head:
                yield head
            async for piece in pieces:
                yield piece

    async def delete(self, key: str) -> None:
        """Delete a snapshot; an absent one is success."""
        await self._inner.delete(key)

    def list(self) -> AsyncIterator[StoredSnapshot]:
        """Yield every stored snapshot, unfinished ones included."""
        return self._inner.list()


class Cipher:
    """Encrypts or decrypts the chunks of one snapshot in order. All methods block."""

    def __init__(self, key: bytes, head: bytes) -> None:
        # The head is an input of the key: one that was changed, e.g. to name another key, gives a key that opens
        # nothing, so it needs no tag of its own.
        derived = HKDF(hashes.SHA256(), 32, salt=head[-_SALT_BYTES:], info=head).derive(key)
        self._aead = AESGCM(derived)
        self._number = 0

    def seal(self, data: bytes, *, last: bool) -> bytes:
        """Encrypt whole chunks; with `last`, the final chunk, which may be shorter or empty."""
        assert len(data) <= CHUNK_BYTES if last else len(data) % CHUNK_BYTES == 0
        steps = range(0, max(len(data), 1), CHUNK_BYTES)
        return b"".join(self._aead.encrypt(self._nonce(last), data[at : at + CHUNK_BYTES], None) for at in steps)

    def open(self, data: bytes, *, last: bool) -> bytes:
        """Decrypt what `seal` returned. Raises InvalidTag."""
        size = CHUNK_BYTES + _TAG_BYTES
        steps = range(0, max(len(data), 1), size)
        return b"".join(self._aead.decrypt(self._nonce(last), data[at : at + size], None) for at in steps)

    def _nonce(self, last: bool) -> bytes:
        nonce = bytes(7) + self._number.to_bytes(4, "big") + bytes([last])  # OverflowError after 256 TiB
        self._number += 1
        return nonce


def make_head(keys: SnapshotKeys) -> bytes:
    """A head for a new snapshot: the current key's name and fingerprint, and a random salt."""
    name = keys.current.encode("ascii")
    return b"".join((_MAGIC, bytes([len(name)]), name, keys.fingerprint(keys.current), os.urandom(_SALT_BYTES)))


def _opened(ref: SnapshotRef, cipher: Cipher, data: bytes, *, last: bool) -> bytes:
    try:
        return cipher.open(data, last=last)
    except InvalidTag:
        raise SnapshotCorruptError(
            f"snapshot {ref.key} is damaged: a chunk fails authentication, or is missing"
        ) from None
