"""Life in a cluster: what `--engine kubernetes` adds to a gateway besides its provider.

The signing keys are shared through a Secret, the public ones reach sandboxes through a ConfigMap; runtimes are followed
as custom resources, and one gateway at a time, by a lease of the session store, writes their status.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization

from gateway.catalog import WatchedCatalog
from gateway.clock import Clock
from gateway.conditions import make_status
from gateway.counters import Calls
from gateway.errors import RuntimeNotFoundError, SettingsError, WakegateError
from gateway.interfaces import SandboxProvider, SessionStore
from gateway.keys import KeyRing
from gateway.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxId
from gateway.provider.kubernetes import KubeApi, KubernetesProvider, PodDefaults, connect, names
from gateway.provider.kubernetes.client import KubeError
from gateway.settings import Settings

log = logging.getLogger(__name__)

STATUS_LEASE = "kubernetes-status"
_STATUS_S = 2.0  # between two looks at all statuses: also the most often that one is written
_LEASE_TTL = 10.0
_RETRY_S = 2.0


class Remains:
    """Finds sandboxes whose files can still be copied: a keeper's view of the provider."""

    def __init__(self, provider: KubernetesProvider) -> None:
        self._provider = provider

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """See KubernetesProvider.find_remains."""
        return await self._provider.find_remains(sandbox_id)


class Cluster:
    """The parts, made from settings. `provider`, `catalog` and `keys` are for the composition root."""

    def __init__(
        self, settings: Settings, api: KubeApi, catalog: WatchedCatalog, provider: KubernetesProvider, keys: KeyRing
    ) -> None:
        self._settings, self._api = settings, api
        self.catalog, self.provider, self.keys = catalog, provider, keys

    def count_in(self, calls: Calls) -> None:
        """Count requests to the API server there."""
        self._api.calls = calls

    def summary(self) -> str:
        """For the start banner."""
        return f"engine: kubernetes, namespaces {self._settings.kube_namespaces}"

    async def follow(self) -> None:
        """Follow the custom resources, and serve them as they change."""
        await asyncio.gather(self.catalog.run(), self._apply_changes())

    async def _apply_changes(self) -> None:
        while True:
            await self.catalog.changed.wait()
            self.catalog.changed.clear()
            wanted = self.catalog.wanted()
            self.catalog.withdraw()
            try:
                await self.provider.apply(wanted)
                self.catalog.publish(wanted)
            except KubeError as error:
                log.warning("runtimes could not be applied, trying again: %s", error)
                self.catalog.changed.set()
                await asyncio.sleep(_RETRY_S)

    async def report(self, store: SessionStore, provider: SandboxProvider, holder: str) -> None:
        """Write the status of every runtime while this gateway holds the lease."""
        lease = None
        while True:
            try:
                lease = await store.acquire_lease(STATUS_LEASE, holder, _LEASE_TTL)
                if lease is not None:
                    await self._write_statuses(provider)
            except WakegateError as error:
                log.debug("runtime statuses: %s", error)
            await asyncio.sleep(_STATUS_S)

    async def _write_statuses(self, provider: SandboxProvider) -> None:
        for key, declared in list(self.catalog.declared.items()):
            pool = await _pool_status(provider, key)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            status = make_status(declared.status, declared.generation, declared.problems, pool, now)
            if status != declared.status:
                path = names.runtimes(key.kind, key.namespace, key.name, "status")
                await self._api.patch(path, {"status": status})


async def _pool_status(provider: SandboxProvider, key: RuntimeKey) -> PoolStatus | None:
    try:
        return await provider.status(key)
    except RuntimeNotFoundError:
        return None


async def join_cluster(settings: Settings, files: Sequence[Runtime], clock: Clock) -> Cluster:
    """Connect, share the signing keys, read the runtimes. Raises SettingsError, KubeError."""
    namespaces = [name for name in settings.kube_namespaces.split(",") if name]
    kubeconfig = settings.kubeconfig if settings.kubeconfig != Path() else None
    for runtime in files:
        if runtime.key.namespace not in namespaces:
            raise SettingsError(
                [f"--kube-namespaces {settings.kube_namespaces}: does not have the namespace of {runtime.key}"]
            )
    api = await connect(kubeconfig, settings.kube_concurrency)
    try:
        keys = KeyRing(settings.state_dir / "keys", settings.token_algorithm)
        await share_keys(api, settings.kube_gateway_namespace, settings.state_dir / "keys", keys.open)
        for namespace in namespaces:
            await publish_keys(api, namespace, (keys.public_dir / "jwks.json").read_text())
        catalog = WatchedCatalog(api, namespaces, files)
        await catalog.start()
    except KubeError as error:
        await api.aclose()
        raise SettingsError([f"--engine kubernetes: {error}; `wakegate doctor` says what is missing"]) from error
    defaults = PodDefaults(
        picod_image=settings.picod_image,
        spread=settings.kube_spread,
        scheduler=settings.kube_scheduler,
        runtime_class=settings.kube_runtime_class,
        code_context=settings.code_context,
        environment=_foreign_key(keys),
    )
    provider = KubernetesProvider(api, clock, defaults, namespaces, start_timeout=settings.sandbox_start_timeout)
    return Cluster(settings, api, catalog, provider, keys)


async def share_keys(api: KubeApi, namespace: str, folder: Path, open_ring: Callable[[], None]) -> None:
    """Make the key folder and the Secret the same: the first gateway's keys are everybody's.

    `open_ring` opens the folder's KeyRing, which makes a key where none fits. Raises KubeError, SettingsError.
    """
    path = f"/api/v1/namespaces/{namespace}/secrets"
    private = folder / "private"
    while True:
        secret = await _get(api, f"{path}/{names.KEYS_SECRET}")
        await asyncio.to_thread(_take_over, private, (secret or {}).get("data"))
        await asyncio.to_thread(open_ring)
        data = {file.name: base64.b64encode(file.read_bytes()).decode() for file in private.glob("*.pem")}
        if secret is not None and secret.get("data") == data:
            return
        body = {
            **(secret or _named("Secret", names.KEYS_SECRET)),
            "type": "Opaque",
            "data": data,
        }
        if await _wrote(api.create(path, body) if secret is None else api.replace(f"{path}/{names.KEYS_SECRET}", body)):
            return


async def publish_keys(api: KubeApi, namespace: str, key_set: str) -> None:
    """Give the sandboxes of a namespace the public keys. Raises KubeError."""
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    while True:
        present = await _get(api, f"{path}/{names.KEYS_CONFIGMAP}")
        if present is not None and present.get("data") == {"jwks.json": key_set}:
            return
        body = {**(present or _named("ConfigMap", names.KEYS_CONFIGMAP)), "data": {"jwks.json": key_set}}
        one = f"{path}/{names.KEYS_CONFIGMAP}"
        if await _wrote(api.create(path, body) if present is None else api.replace(one, body)):
            return


def _foreign_key(keys: KeyRing) -> dict[str, str]:
    """The public key as AgentCube's own picod reads it. It knows RS256 only, and one key."""
    if keys.signer.algorithm != "RS256":
        return {}
    pem = keys.signer.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {"PICOD_AUTH_PUBLIC_KEY": pem.decode()}


def _take_over(private: Path, data: dict[str, str] | None) -> None:
    if data is None:
        return  # whatever is in the folder becomes everybody's
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in private.glob("*.pem"):
        if file.name not in data:
            file.unlink()
    for name, text in data.items():
        file = private / Path(name).name
        file.touch(mode=0o600)
        file.write_bytes(base64.b64decode(text))


def _named(kind: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "labels": {names.MANAGED: names.MANAGER}},
    }


async def _get(api: KubeApi, path: str) -> dict[str, Any] | None:
    try:
        return await api.get(path)
    except KubeError as error:
        if error.http_status == 404:
            return None
        raise


async def _wrote(write: Awaitable[Any]) -> bool:
    """Whether a write went through; False: somebody else was faster, look again."""
    try:
        await write
    except KubeError as error:
        if error.reason in ("Conflict", "AlreadyExists"):
            return False
        raise
    return True
