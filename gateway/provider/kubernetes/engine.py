"""Life in a cluster: what `--engine kubernetes` adds to a gateway besides its provider.

The signing keys are shared with all gateways and pods (signing_keys.py); runtimes are followed as custom resources, and
one gateway at a time, by a lease of the session store, writes their status.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from gateway.core.agent_sandbox import read_router_tenants
from gateway.core.clock import Clock
from gateway.core.errors import RuntimeNotFoundError, SettingsError, WakegateError
from gateway.core.interfaces import SandboxProvider, SessionStore
from gateway.core.model import PoolStatus, Runtime, RuntimeKey, Sandbox, SandboxId
from gateway.core.settings import Settings
from gateway.egress.gate import EgressGate
from gateway.images.policy import make_policy
from gateway.observability.counters import Calls
from gateway.provider.kubernetes import KubeApi, KubernetesProvider, PodDefaults, connect, names
from gateway.provider.kubernetes.agents import CustomResources
from gateway.provider.kubernetes.catalog import WatchedCatalog
from gateway.provider.kubernetes.claim_controller import ClaimController, ClaimSessions
from gateway.provider.kubernetes.client import KubeError
from gateway.provider.kubernetes.egress_authority import SharedAuthority
from gateway.provider.kubernetes.egress_secrets import LentSecrets
from gateway.provider.kubernetes.routed_sandboxes import ClusterSandboxes
from gateway.provider.kubernetes.signing_keys import SharedKeys
from gateway.provider.kubernetes.status import make_status
from gateway.provider.kubernetes.trust import untrusted
from gateway.sandbox.signing_keys import KeyRing

logger = logging.getLogger(__name__)

STATUS_LEASE = "kubernetes-status"
EGRESS_FOLDER = "egress"  # of the state folder: the authority of the egress service
_STATUS_INTERVAL_S = 2.0  # between two looks at all statuses: also the most often that one is written
# Five intervals: a slow pass does not lose the lease, and a leader that died is replaced within this time.
_LEASE_TTL_S = 10.0
_RETRY_DELAY_S = 2.0


class Remains:
    """Finds sandboxes whose files can still be copied: a keeper's view of the provider."""

    def __init__(self, provider: KubernetesProvider) -> None:
        self._provider = provider

    async def find(self, sandbox_id: SandboxId) -> Sandbox | None:
        """See KubernetesProvider.find_remains."""
        return await self._provider.find_remains(sandbox_id)


class Cluster:
    """The parts, made from settings. `provider`, `catalog` and `keys` are for build.py."""

    def __init__(
        self,
        settings: Settings,
        api: KubeApi,
        catalog: WatchedCatalog,
        provider: KubernetesProvider,
        keys: KeyRing,
        sharing: SharedKeys,
        lent: LentSecrets | None = None,
    ) -> None:
        """`lent`: where this gateway has an egress service."""
        self._settings, self._api, self._lent = settings, api, lent
        self.catalog, self.provider, self.keys, self.sharing = catalog, provider, keys, sharing
        self._applying = asyncio.Lock()
        namespaces = [name for name in settings.kube_namespaces.split(",") if name]
        self.agents = CustomResources(api, catalog, namespaces, self.apply)

    def count_in(self, calls: Calls) -> None:
        """Count requests to the API server there."""
        self._api.calls = calls

    def summary(self) -> str:
        """One line about this engine for the start banner."""
        return f"engine: kubernetes, namespaces {self._settings.kube_namespaces}"

    async def follow(self) -> None:
        """Follow the custom resources, and serve them as they change."""
        await asyncio.gather(self.catalog.run(), self._apply_changes())

    async def _apply_changes(self) -> None:
        while True:
            await self.catalog.changed.wait()
            try:
                await self.apply()
            except KubeError as error:
                logger.warning("runtimes could not be applied, trying again: %s", error)
                await asyncio.sleep(_RETRY_DELAY_S)

    async def apply(self) -> None:
        """Have the provider serve what is wanted now. What fails is tried again by `follow`. Raises KubeError."""
        async with self._applying:
            # Before the read: a change that comes while `apply` runs sets it again, and is not lost.
            self.catalog.changed.clear()
            wanted = self.catalog.wanted()
            # A deleted runtime gets no more requests before its pool is taken down.
            self.catalog.withdraw()
            try:
                await self.provider.dismantle(runtime.key for runtime in self.catalog.admission.refused())
                await self.provider.apply(wanted)
                self.catalog.publish(wanted)
            except BaseException:
                self.catalog.changed.set()
                raise

    def claims(self, sessions: ClaimSessions, clock: Clock) -> ClaimController:
        """What answers SandboxClaims in the namespaces of sandboxes."""
        return ClaimController(self._api, _namespaces(self._settings), sessions, clock)

    def routed(self, tenants: Mapping[str, str], clock: Clock) -> ClusterSandboxes:
        """The Sandboxes of namespaces, each a tenant's, that agent-sandbox's controllers manage."""
        return ClusterSandboxes(self._api, tenants, clock)

    async def report(self, store: SessionStore, provider: SandboxProvider, holder: str) -> None:
        """Write the status of every runtime while this gateway holds the lease."""
        lease = None
        while True:
            try:
                # The holder gets its own lease again: this also renews it.
                lease = await store.acquire_lease(STATUS_LEASE, holder, _LEASE_TTL_S)
                if lease is not None:
                    async with asyncio.timeout(_LEASE_TTL_S):  # beyond it another gateway leads
                        await self._write_statuses(provider)
            except TimeoutError:
                logger.debug("runtime statuses: not all could be written while this gateway led")
            except WakegateError as error:
                logger.debug("runtime statuses: %s", error)
            await asyncio.sleep(_STATUS_INTERVAL_S)

    async def _write_statuses(self, provider: SandboxProvider) -> None:
        """Of all runtimes. Each write names the version that it was made from, so that a gateway that led before, and
        does not know yet that another one does, cannot put an older status over a newer one: it is refused."""
        for key, declared in list(self.catalog.declared.items()):
            shown = self.catalog.shown(key)
            pool = await _pool_status(provider, shown)
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            verdict = self.catalog.admission.of(shown)
            secrets = await self._secret_problems(declared.runtime)
            status = make_status(declared.status, declared.generation, declared.problems, pool, now, verdict, secrets)
            if status != declared.status:
                path = names.runtimes(key.kind, key.namespace, key.name, "status")
                # In a merge patch null removes a field: a runtime that is not served any more has no pool.
                body = {"metadata": {"resourceVersion": declared.version}, "status": {"pool": None, **status}}
                try:
                    await self._api.patch(path, body)
                except KubeError as error:
                    if error.http_status not in (404, 409):
                        raise  # else it is gone, or changed: the watch tells how, and the next look writes

    async def _secret_problems(self, runtime: Runtime | None) -> Sequence[str] | None:
        if self._lent is None or runtime is None or not any(each.secret for each in runtime.secrets):
            return None
        return await self._lent.problems(runtime.key, runtime.secrets)


async def _pool_status(provider: SandboxProvider, key: RuntimeKey) -> PoolStatus | None:
    try:
        return await provider.status(key)
    except RuntimeNotFoundError:
        return None


async def join_cluster(
    settings: Settings, files: Sequence[Runtime], clock: Clock, gate: EgressGate | None = None
) -> Cluster:
    """Connect, share the signing keys and the authority of egress, read the runtimes. Raises SettingsError, KubeError.

    `gate`: of this gateway's egress service, where it has one; its authority is in EGRESS_FOLDER of the state folder.
    """
    namespaces = _namespaces(settings)
    kubeconfig = settings.kubeconfig if settings.kubeconfig != Path() else None
    for runtime in files:
        if runtime.key.namespace not in namespaces:
            raise SettingsError(
                [f"--kube-namespaces {settings.kube_namespaces}: does not have the namespace of {runtime.key}"]
            )
        if not settings.kube_trust_manifests and (refused := untrusted(runtime)):
            raise SettingsError([f"{runtime.key}: {problem}" for problem in refused])
    routed = read_router_tenants(settings.kube_router_tenants)
    api = await connect(kubeconfig, settings.kube_concurrency, watches=64 + len(routed))
    try:
        folder = settings.state_dir / "keys"
        keys = KeyRing(folder, settings.token_algorithm)
        # Keys before pods: a pod mounts the ConfigMap with the public keys, and waits in ContainerCreating until it
        # exists.
        sharing = SharedKeys(
            api,
            keys,
            folder,
            clock,
            settings.kube_gateway_namespace,
            namespaces,
            rotation=settings.key_rotation,
            settle=settings.key_settle,
        )
        await sharing.open()
        lent = None if gate is None else await _share_egress(settings, api, clock, namespaces, gate)
        catalog = WatchedCatalog(
            api,
            namespaces,
            files,
            trusted=settings.kube_trust_manifests,
            policy=await asyncio.to_thread(make_policy, settings),
            defaults=(defaults := _pod_defaults(settings, keys)),
        )
        await catalog.start()
    except SettingsError:
        await api.aclose()
        raise
    except KubeError as error:
        await api.aclose()
        raise SettingsError([f"--engine kubernetes: {error}; `wakegate doctor` says what is missing"]) from error
    provider = KubernetesProvider(api, clock, defaults, namespaces, start_timeout=settings.sandbox_start_timeout)
    return Cluster(settings, api, catalog, provider, keys, sharing, lent)


async def _share_egress(
    settings: Settings, api: KubeApi, clock: Clock, namespaces: Sequence[str], gate: EgressGate
) -> LentSecrets:
    """What pods of runtimes that name hosts trust, and the values that their requests get, which are returned.

    Raises KubeError, SettingsError.
    """
    own = settings.kube_gateway_namespace
    await SharedAuthority(api, settings.state_dir / EGRESS_FOLDER, clock, own, namespaces, gate.bundle).open()
    lent = LentSecrets(api, own, clock)
    gate.on_secrets(lent.values)
    return lent


def _namespaces(settings: Settings) -> list[str]:
    return [name for name in settings.kube_namespaces.split(",") if name]


def _pod_defaults(settings: Settings, keys: KeyRing) -> PodDefaults:
    return PodDefaults(
        picod_image=settings.picod_image,
        spread=settings.kube_spread,
        scheduler=settings.kube_scheduler,
        runtime_class=settings.kube_runtime_class,
        code_context=settings.code_context,
        trusted=settings.kube_trust_manifests,
        egress_service=(settings.kube_gateway_namespace, settings.egress_port) if settings.egress_port else None,
        environment=_foreign_key(keys),
    )


def _foreign_key(keys: KeyRing) -> dict[str, str]:
    """The public key as AgentCube's own picod reads it. It knows RS256 only, and one key."""
    # Given at the pod's start, so it cannot follow a rotation; signing_keys.py does not rotate RS256 keys.
    if keys.signer.algorithm != "RS256":
        return {}
    pem = keys.signer.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return {"PICOD_AUTH_PUBLIC_KEY": pem.decode()}
