"""The API keys of a gateway: all of them in memory, followed in the store.

A revoked key stops working at every gateway within FOLLOW_INTERVAL_S and the time of one read. The bootstrap key is not
stored: it comes from a file of the operator's, and is read again when the file changes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gateway.core.agentscope_env import parse_env
from gateway.core.clock import Clock
from gateway.core.documents import Document, DocumentStore
from gateway.core.errors import BadRequestError, NotFoundError, SettingsError, StaleWriteError, WakegateError
from gateway.core.identity import Role, is_tenant, runtime_scope
from gateway.core.model import DEFAULT_TENANT
from gateway.core.read_file import read_file
from gateway.identity import keys
from gateway.identity.keys import APIKey
from gateway.identity.shared_secret import load_secret

logger = logging.getLogger(__name__)

KIND = "api-key"
USES_KIND = "api-key-use"
FOLLOW_INTERVAL_S = 1.0
BOOTSTRAP_ID = "bootstrap"
MAX_KEYS = 10_000  # about 4 MB of memory in each gateway
_LAST_USE_INTERVAL_S = 60.0  # between two writes of a key's last use
_MIN_BOOTSTRAP_CHARS = 32
_MAX_NAME_CHARS = 128


class KeyDirectory:
    """Finds, makes and revokes keys. `secret` is what their digests are made with."""

    def __init__(self, documents: DocumentStore, clock: Clock, secret: bytes, bootstrap_file: Path | None) -> None:
        self._documents = documents
        self._clock = clock
        self._secret = secret
        self._bootstrap_file = bootstrap_file
        self._bootstrap_stat: tuple[int, int, int] | None = None
        self._bootstrap = ""  # its digest
        self._revision = -1
        self._keys: dict[str, APIKey] = {}
        self._used: dict[str, float] = {}  # last uses that are not written yet
        self._noted: dict[str, float] = {}  # the last uses that were

    def __repr__(self) -> str:
        return f"<KeyDirectory of {len(self._keys)} keys>"

    async def start(self) -> None:
        """Read all keys. Raises SettingsError for an unusable bootstrap file, StoreUnavailableError."""
        self._read_bootstrap()
        await self.follow()

    async def follow(self) -> bool:
        """Read again what has changed, and write last uses. Returns whether anything has changed.

        Raises StoreUnavailableError: the keys that are known go on working.
        """
        changed = self._bootstrap_changed()
        # The revision is read before the list: a change in between is read twice, never missed.
        revision = await self._documents.revision(KIND)
        if revision != self._revision:
            found = {}
            for document in await self._documents.list(KIND):
                try:
                    found[document.name] = APIKey.read(document.value)
                except (KeyError, TypeError, ValueError) as error:
                    logger.error("API key %s is unreadable in the store and is ignored: %r", document.name, error)
            changed = changed or found != self._keys
            self._keys, self._revision = found, revision
        await self._write_last_uses()
        return changed

    def find(self, credential: str) -> APIKey | None:
        """The key of a credential; None if it is not a key, or unknown, or expired."""
        key_id = keys.id_of(credential)
        if key_id is None:
            if self._bootstrap and keys.matches(credential, self._bootstrap, self._secret):
                return APIKey(BOOTSTRAP_ID, self._bootstrap, Role.ADMIN, name="from the admin key file")
            return None
        key = self._keys.get(key_id)
        if key is None or not keys.matches(credential, key.digest, self._secret):
            return None
        now = self._clock.now()
        if key.expires_at is not None and key.expires_at <= now:
            return None
        self._used[key_id] = now
        return key

    async def list(self, tenant: str | None = None) -> Sequence[APIKey]:
        """The keys, of one tenant or of all, the oldest first, with their last uses. Raises StoreUnavailableError."""
        # From the store, not from memory: other gateways have noted uses too.
        uses = {each.name: float(each.value["at"]) for each in await self._documents.list(USES_KIND)}
        found = (
            key.used(uses[key.id]) if key.id in uses else key
            for key in self._keys.values()
            if tenant in (None, key.tenant)
        )
        return sorted(found, key=lambda key: (key.created_at, key.id))

    async def create(
        self,
        *,
        role: Role,
        tenant: str = DEFAULT_TENANT,
        name: str = "",
        user: str = "",
        runtimes: Sequence[str] = (),
        lifetime: float | None = None,
    ) -> tuple[str, APIKey]:
        """A new key: the text, which is shown once, and what is stored. `lifetime` in seconds, None: it never expires.

        Raises BadRequestError, StoreUnavailableError.
        """
        if role is Role.SESSION:
            raise BadRequestError("role: a session token is made at POST /v1/sessions/{id}/tokens")
        if not is_tenant(tenant):
            raise BadRequestError(f"tenant: expected a name of a-z, 0-9 and '-', at most 63 long; got {tenant[:64]!r}")
        if len(name) > _MAX_NAME_CHARS or len(user) > _MAX_NAME_CHARS:
            raise BadRequestError(f"name, user: expected at most {_MAX_NAME_CHARS} characters")
        try:
            scopes = frozenset(runtime_scope(each) for each in runtimes)
        except ValueError as error:
            raise BadRequestError(f"runtimes: {error}") from None
        if len(self._keys) >= MAX_KEYS:
            raise BadRequestError(f"there are {MAX_KEYS} keys, the most that a store holds; revoke some first")
        text, key_id = keys.new_key()
        now = self._clock.now()
        key = APIKey(
            key_id,
            keys.digest(text, self._secret),
            role,
            tenant,
            name,
            user,
            scopes,
            created_at=now,
            expires_at=None if lifetime is None else now + lifetime,
        )
        await self._documents.put(Document(KIND, key_id, key.document()))
        self._keys[key_id] = key  # at once: whoever made it may send it to this gateway before the next `follow`
        return text, key

    async def revoke(self, key_id: str) -> APIKey:
        """End a key. Raises NotFoundError, StoreUnavailableError."""
        key = self._keys.get(key_id)
        # The store first. If that fails the key still works everywhere and the caller learns so; the other way round it
        # would be refused here, and accepted by every other gateway.
        found = await self._documents.delete(KIND, key_id)
        await self._documents.delete(USES_KIND, key_id)
        self._keys.pop(key_id, None)
        self._used.pop(key_id, None)
        self._noted.pop(key_id, None)
        if not found or key is None:
            raise NotFoundError(f"no API key {key_id[:64]!r}")
        return key

    async def rotate(self, key_id: str, *, overlap: float) -> tuple[str, APIKey]:
        """A new key with the rights of an old one, which ends `overlap` seconds from now.

        Raises NotFoundError, StaleWriteError, StoreUnavailableError.
        """
        document = await self._documents.get(KIND, key_id)
        if document is None:
            raise NotFoundError(f"no API key {key_id[:64]!r}")
        old = APIKey.read(document.value)
        now = self._clock.now()
        lifetime = None if old.expires_at is None else old.expires_at - old.created_at
        made = await self.create(
            role=old.role,
            tenant=old.tenant,
            name=old.name,
            user=old.user,
            runtimes=sorted(old.runtimes),
            lifetime=lifetime,
        )
        # The new key is stored before the old one ends: a failure in between leaves both, so the holder keeps access.
        ends = now + overlap if old.expires_at is None else min(old.expires_at, now + overlap)
        ending = replace(old, expires_at=ends)
        await self._documents.put(replace(document, value=ending.document()))
        self._keys[key_id] = ending
        return made

    async def _write_last_uses(self) -> None:
        """Note when keys were used, each at most once a minute.

        In documents of another kind: a change of the keys' own makes every gateway read all of them again.
        """
        for key_id, at in list(self._used.items()):
            if 0 <= at - self._noted.get(key_id, 0.0) < _LAST_USE_INTERVAL_S:
                continue
            del self._used[key_id]
            self._noted[key_id] = at
            kept = await self._documents.get(USES_KIND, key_id) or Document(USES_KIND, key_id, {})
            try:
                await self._documents.put(replace(kept, value={"at": at}))
            except StaleWriteError:
                pass  # another gateway noted a use at the same moment

    def _read_bootstrap(self) -> None:
        path = self._bootstrap_file
        if path is None:
            return
        text, stat = read_admin_key(path)
        self._bootstrap = keys.digest(text, self._secret)
        self._bootstrap_stat = _identity_of(stat)

    def _bootstrap_changed(self) -> bool:
        """Read the file again if it is another one now. One that cannot be read leaves the known key as it was."""
        path = self._bootstrap_file
        if path is None:
            return False
        try:
            if _identity_of(path.stat()) == self._bootstrap_stat:
                return False
            self._read_bootstrap()
        except (OSError, WakegateError) as error:
            logger.warning("the admin key stays as it was: %s", error)
            return False
        return True


def read_admin_key(path: Path) -> tuple[str, os.stat_result]:
    """The key in --admin-key-file, and the file's state. Raises SettingsError with what is wrong. Blocks."""
    try:
        text = _key_in(read_file(path).decode().strip())
        stat = path.stat()
    except OSError as error:
        raise SettingsError([f"--admin-key-file {path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise SettingsError([f"--admin-key-file {path}: {error}"]) from error
    if len(text) < _MIN_BOOTSTRAP_CHARS or not text.isascii() or any(char.isspace() for char in text):
        expected = f"one line of at least {_MIN_BOOTSTRAP_CHARS} ASCII characters, e.g. from: openssl rand -hex 32"
        raise SettingsError([f"--admin-key-file {path}: expected {expected}"])
    return text, stat


def _key_in(text: str) -> str:
    """The key: the file's one line or, in an env file of AgentScope's, its BEARER_TOKEN."""
    return parse_env(text, lambda _, __: None).get("BEARER_TOKEN") or text


def _identity_of(stat: os.stat_result) -> tuple[int, int, int]:
    # The inode too: Kubernetes renews a mounted Secret by turning a link, and the new file may be as old and as long.
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


async def open_directory(documents: DocumentStore, clock: Clock, admin_key_file: Path | None = None) -> KeyDirectory:
    """The keys of a store, read. Raises SettingsError for an unusable file, StoreUnavailableError."""
    secret = await load_secret(documents)
    directory = KeyDirectory(documents, clock, secret.key("API keys"), admin_key_file)
    await directory.start()
    return directory
