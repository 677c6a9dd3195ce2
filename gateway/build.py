"""Builds a gateway from settings: selects runtimes, store and engine. gateway.app connects the parts."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import sys
from collections.abc import Coroutine, Iterator, Sequence
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gateway.api.agent_sandbox.cluster_claims import ClusterClaims
from gateway.app.cluster_skills import pack_skills
from gateway.app.gateway import Engine, Gateway, holder_name
from gateway.core.addresses import host_name, is_loopback
from gateway.core.agent_sandbox import read_router_tenants
from gateway.core.background import every
from gateway.core.clock import Clock, SystemClock
from gateway.core.errors import SettingsError
from gateway.core.identity import is_tenant
from gateway.core.interfaces import SessionStore
from gateway.core.model import Runtime
from gateway.core.read_file import read_file
from gateway.core.settings import Settings, make_state_dir, requires_identity
from gateway.egress.gate import EgressGate
from gateway.images.policy import make_policy
from gateway.runtimes.catalog import default_runtime
from gateway.runtimes.manifest import load_runtimes, parse_modules
from gateway.sandbox.picod_client import PicodExecutor
from gateway.sandbox.signing_keys import KeyRing
from gateway.sandbox.tokens import TokenIssuer
from gateway.snapshots.keeper import make_code_store, make_keeper
from gateway.store import make_store

if TYPE_CHECKING:
    from gateway.provider.kubernetes.engine import Cluster
    from gateway.provider.kubernetes.routed_sandboxes import ClusterSandboxes
    from gateway.provider.local import LocalProvider

KEYS_INTERVAL_S = 5.0  # between checks of the folder of signing keys for changes and due rotations


async def build(settings: Settings, clock: Clock | None = None) -> Gateway:
    """Build a gateway that is not running yet.

    Raises SettingsError with every problem of runtimes, store URL and engine.
    """
    clock = clock or SystemClock()
    problems: list[str] = []
    runtimes = runtimes_of(settings, problems)
    shared = settings.store.partition(":")[0].partition("+")[0] not in ("", "sqlite")
    try:
        store = store_of(settings, clock)
    except SettingsError as error:
        problems += [f"--store {problem.removeprefix('store URL ')}" for problem in error.problems]
    interpreter_of(settings, problems)
    problems += [*_exposure_problems(settings), *_egress_problems(settings)]
    if settings.engine == "kubernetes":
        try:
            make_policy(settings)
        except SettingsError as error:
            problems += error.problems
    if settings.kube_claims_tenant and not is_tenant(settings.kube_claims_tenant):
        shown = repr(settings.kube_claims_tenant[:64])
        problems.append(f"--kube-claims-tenant {shown}: expected a name of a-z, 0-9 and '-', at most 63 long")
    problems += _router_problems(settings)
    if problems:
        raise SettingsError(problems)
    make_state_dir(settings.state_dir)
    if settings.engine == "kubernetes":
        return await _build_in_cluster(settings, runtimes, store, clock, shared=shared)
    return _build_local(settings, runtimes, store, clock, shared=shared)


def store_of(settings: Settings, clock: Clock) -> SessionStore:
    """The session store that the settings name, not yet open. Raises SettingsError."""
    url = settings.store or f"sqlite:///{quote(str((settings.state_dir / 'wakegate.db').absolute()))[1:]}"
    return make_store(url, clock, prefix=settings.store_prefix)


def _build_local(
    settings: Settings,
    runtimes: Sequence[Runtime],
    store: SessionStore,
    clock: Clock,
    *,
    shared: bool,
) -> Gateway:
    from gateway.provider.local import owner_name

    gate = _gate(settings)
    provider, keys = local_provider(settings, clock, gate)

    async def turn_keys() -> None:
        await asyncio.to_thread(keys.turn, clock.now(), settings.key_rotation)

    engine = Engine(
        provider=provider,
        keys=keys,
        summary=lambda: provider.report.summary(),
        egress=gate,
        background=lambda _: (("signing keys", every(KEYS_INTERVAL_S, turn_keys)),),
    )
    me = owner_name(settings.state_dir) if shared else ""
    return Gateway(settings, engine, runtimes=runtimes, store=store, clock=clock, shared=shared, me=me)


def _gate(settings: Settings, entrance: socket.socket | None = None) -> EgressGate:
    """The egress service's keeper, which owns the entrance. Raises SettingsError."""
    trusted = None if settings.egress_ca == Path() else settings.egress_ca
    return EgressGate(
        refused=_refused_networks(settings),
        authority=settings.state_dir / "egress",
        trusted=_certificates(trusted),
        cache=(settings.state_dir / "packages", settings.package_cache, settings.workers)
        if settings.package_cache
        else None,
        entrance=entrance,
    )


def _refused_networks(settings: Settings) -> tuple[str, ...]:
    """The networks of --egress-refuse, normalised. Raises SettingsError."""
    texts = [text.strip() for text in settings.egress_refuse.split(",") if text.strip()]
    try:
        return tuple(str(ip_network(text)) for text in texts)
    except ValueError as error:
        raise SettingsError([f"--egress-refuse: {error}"]) from None


def _certificates(file: Path | None) -> Path | None:
    """The file, if it has certificates. Raises SettingsError."""
    if file is not None:
        try:
            read_file(file)  # OpenSSL would wait for a named pipe
            ssl.create_default_context(cafile=str(file))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", "") or getattr(error, "reason", "") or error
            raise SettingsError([f"--egress-ca {file}: {reason}"]) from None
    return file


def local_provider(settings: Settings, clock: Clock, gate: EgressGate | None = None) -> tuple[LocalProvider, KeyRing]:
    """The local engine on the state directory, and the signing keys that its sandboxes accept. Raises SettingsError.

    Without a gate its sandboxes have no egress.
    """
    from gateway.provider.local import LocalProvider
    from gateway.provider.local.gpus import LIBRARIES, find_gpus
    from gateway.provider.local.machine import capacity

    try:
        gpus = find_gpus(settings.gpus, libraries=(*map(str, settings.gpu_libraries), *LIBRARIES))
    except ValueError as error:
        raise SettingsError([f"--gpus {settings.gpus}: {error}"]) from None
    keys = KeyRing(settings.state_dir / "keys", settings.token_algorithm)
    keys.open()
    provider = LocalProvider(
        settings.state_dir,
        keys.public_dir,
        clock,
        isolation="process" if settings.isolation == "process" else "bubblewrap",
        sandbox_python=interpreter_of(settings, []),
        code_context=settings.code_context,
        disk_reserve=settings.disk_reserve,
        egress=gate,
        sandbox_uids=settings.sandbox_uids,
        capacity=capacity(settings.bookable_cpus, settings.bookable_memory, gpus),
        gpus=gpus,
    )
    return provider, keys


async def _build_in_cluster(
    settings: Settings, files: Sequence[Runtime], store: SessionStore, clock: Clock, *, shared: bool
) -> Gateway:
    from gateway.provider.kubernetes.engine import (
        Remains,
        join_cluster,
    )  # kubernetes_asyncio is 40 MB that the local engine does not need

    gate = _entrance_gate(settings)
    try:
        cluster = await join_cluster(settings, files, clock, gate)
    except SettingsError:
        if gate is not None:
            await gate.aclose()  # it has the port already
        raise
    tenants = read_router_tenants(settings.kube_router_tenants)
    sandboxes = cluster.routed(tenants, clock) if tenants else None
    executor = PicodExecutor(
        cluster.catalog, TokenIssuer(cluster.keys, clock), connect_timeout=settings.connect_timeout
    )

    def renew(gateway: Gateway) -> None:
        gateway.activator.renew_tokens()
        if gateway.pod_egress is not None:
            gateway.pod_egress.renew()

    engine = Engine(
        provider=cluster.provider,
        keeper=make_keeper(settings, Remains(cluster.provider), executor, clock),
        keys=cluster.keys,
        summary=cluster.summary,
        catalog=cluster.catalog,
        agents=cluster.agents,
        code=make_code_store(settings),
        skills=await asyncio.to_thread(pack_skills, files),
        sandboxes=sandboxes,
        egress=gate,
        egress_address=settings.egress_address,
        background=lambda gateway: (
            ("runtimes of the cluster", cluster.follow()),
            ("signing keys", cluster.sharing.follow(partial(renew, gateway))),
            ("runtime statuses", cluster.report(gateway.store, gateway.provider, holder_name())),
            *_claims(settings, cluster, gateway),
            *(() if sandboxes is None else _routed(sandboxes, gateway)),
        ),
    )
    gateway = Gateway(settings, engine, runtimes=(), store=store, clock=clock, shared=shared)
    if gateway.agents is not None and (code := gateway.agents.stored_code) is not None:
        cluster.provider.deliveries.bring = lambda sandbox, digest: executor.bring(sandbox, digest, code.read(digest))
    cluster.count_in(gateway.counters.kubernetes)
    return gateway


def _claims(settings: Settings, cluster: Cluster, gateway: Gateway) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    """What answers the cluster's SandboxClaims, where the settings ask for that."""
    if settings.kube_claims_tenant:
        sessions = ClusterClaims(
            gateway.sessions.lifecycle, gateway.sessions.hibernator, gateway.store, cluster.catalog, gateway.clock,
            tenant=settings.kube_claims_tenant,
        )  # fmt: skip
        yield "claims of the cluster", cluster.claims(sessions, gateway.clock).run(gateway.store, holder_name())


def _routed(sandboxes: ClusterSandboxes, gateway: Gateway) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
    """What follows the Sandboxes whose router this gateway is, and suspends those that are idle."""
    yield "sandboxes of the cluster", sandboxes.run()
    yield "idle sandboxes of the cluster", sandboxes.suspend_idle(gateway.store, holder_name())


def _router_problems(settings: Settings) -> Iterator[str]:
    try:
        tenants = read_router_tenants(settings.kube_router_tenants)
    except ValueError as error:
        yield f"--kube-router-tenants: {error}"
        return
    if tenants and settings.engine != "kubernetes":
        yield "--kube-router-tenants: only with --engine kubernetes"
    answered = settings.kube_namespaces.split(",") if settings.kube_claims_tenant else []
    if both := sorted(tenants.keys() & set(answered)):
        yield (
            f"--kube-router-tenants: {', '.join(both)}: SandboxClaims are answered there (--kube-claims-tenant), which"
            " agent-sandbox's controllers would answer too"
        )


def _entrance_gate(settings: Settings) -> EgressGate | None:
    """What serves sandboxes on other machines, with its port bound; None where the settings name none.

    Raises SettingsError.
    """
    if not settings.egress_port:
        return None
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # Workers share the port, as they share --port; the kernel spreads connections over them.
        entrance = socket.create_server(
            (settings.host, settings.egress_port), family=family, backlog=1024, reuse_port=settings.workers > 1
        )
    except OSError as error:
        reason = f"cannot listen on {settings.host}: {os.strerror(error.errno or 0)}"
        raise SettingsError([f"--egress-port {settings.egress_port}: {reason}"]) from error
    return _gate(settings, entrance)


def _egress_problems(settings: Settings) -> Iterator[str]:
    if settings.engine != "kubernetes" and (settings.egress_port or settings.egress_address):
        yield "--egress-port and --egress-address: only with --engine kubernetes; local sandboxes need neither"
    elif bool(settings.egress_port) != bool(settings.egress_address):
        yield "--egress-port and --egress-address: give both, where gateways listen and how sandboxes reach that port"
    elif settings.egress_address:
        host, _, port = settings.egress_address.rpartition(":")
        if not host or not re.fullmatch(r"[1-9][0-9]{0,4}", port):
            wanted = "expected HOST:PORT such as wakegate-egress.wakegate:3129"
            yield f"--egress-address: {wanted}, got {settings.egress_address[:300]}"


def runtimes_of(settings: Settings, problems: list[str]) -> Sequence[Runtime]:
    """The manifests' runtimes and, on the local engine, the built-in one unless a manifest replaces it.

    Adds what is wrong to `problems`.
    """
    runtimes: list[Runtime] = []
    try:
        default = default_runtime(settings.warm_pool, parse_modules(settings.preload))
        if settings.engine == "local" and not settings.no_default_runtime:
            runtimes.append(default)
        elif settings.engine == "local" and not settings.runtime:
            problems.append("--no-default-runtime: nothing would be served; name manifests with --runtime")
    except ValueError as error:
        problems.append(f"--preload: {error}")
    if settings.runtime:
        try:
            named = load_runtimes(
                settings.runtime,
                engine=settings.engine,
                sources=settings.runtime_sources,
                environment=interpreter_of(settings, []),
                private=() if settings.state_dir == Path() else (settings.state_dir,),
            )
            if settings.engine == "local":
                problems += _environment_problems(settings, named)
            taken = {runtime.key for runtime in named}
            runtimes = [*named, *(runtime for runtime in runtimes if runtime.key not in taken)]
        except SettingsError as error:
            problems += error.problems
    return runtimes


def _exposure_problems(settings: Settings) -> Iterator[str]:
    """Refuse to serve the network without authentication, unless --insecure-no-auth asks for it."""
    if requires_identity(settings) or settings.insecure_no_auth or is_loopback(host_name(settings.host.encode())):
        return
    yield (
        f"--host {settings.host}: anybody who reaches this address could run code here, since requests need no key; "
        "add --auth (make keys with: wakegate keys create) or --oidc-issuer, or --insecure-no-auth if the network lets"
        " nobody in"
    )


def _environment_problems(settings: Settings, runtimes: Sequence[Runtime]) -> Iterator[str]:
    """Problems of the Python environments that manifests name, which would otherwise fail the first claim."""
    from gateway.provider.local.interpreters import python_of

    for runtime in runtimes:
        if runtime.python is not None:
            try:
                python_of(runtime, interpreter_of(settings, []))
            except (OSError, ValueError) as error:
                yield f"{runtime.key}: spec.wakegate.python: {error}"


def interpreter_of(settings: Settings, problems: list[str]) -> Path | None:
    """The environment of user code: as set, else `.venv-sandbox` beside our own, else the system's.

    What keeps sandboxes from the one that is set goes to `problems`: no sandbox could start.
    """
    from gateway.provider.local.interpreters import user_python

    if settings.sandbox_python != Path():
        try:
            user_python(settings.sandbox_python)
        except (OSError, ValueError) as error:
            problems.append(f"--sandbox-python {settings.sandbox_python}: {error}")
        return settings.sandbox_python
    beside = Path(sys.prefix).parent / ".venv-sandbox"
    return beside if (beside / "bin" / "python3").exists() else None
