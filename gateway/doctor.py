"""`wakegate doctor`: look at everything a gateway with these settings would need, and say what to mend.

Each check gives findings, one line each: what was looked at, whether it is well, and if not, what to do. A check that
fails does not stop the others; only without a way to the API server nothing more can be asked of it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.core.clock import SystemClock
from gateway.core.errors import SettingsError, SnapshotNotFoundError, WakegateError
from gateway.core.model import Kind, SessionId, SnapshotRef, is_snapshot
from gateway.core.settings import Settings, make_state_dir, probe_state_dir
from gateway.sessions.restorability import restore_problems
from gateway.snapshots import make_snapshot_store
from gateway.snapshots.keys import SnapshotKeys
from gateway.store import make_store

OLDEST = (1, 27)  # the oldest Kubernetes whose API has all that is used here in its stable form
SANDBOX_POLICY = "wakegate-sandboxes"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `mend` is empty when all is well; `grave`: a gateway would not work."""

    what: str
    said: str
    mend: str = ""
    grave: bool = True

    def __str__(self) -> str:
        mark = "ok  " if not self.mend else "FAIL" if self.grave else "warn"
        return f"{mark}  {self.what}: {self.said}" + (f"\n      {self.mend}" if self.mend else "")


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All findings, as they come."""
    yield await check_state_dir(settings)
    yield await check_store(settings)
    yield await check_snapshots(settings)
    async for finding in check_sleeping(settings):
        yield finding
    if settings.engine == "kubernetes":
        async for finding in check_cluster(settings):
            yield finding


def exit_status(findings: Iterable[Finding]) -> int:
    """0 when a gateway would work."""
    return int(any(finding.mend and finding.grave for finding in findings))


async def check_store(settings: Settings) -> Finding:
    """Does the session store answer?"""
    url = _store_url(settings)
    try:
        store = make_store(url, SystemClock(), prefix=settings.store_prefix)
        began = time.perf_counter()
        await store.start()
        try:
            await store.ping()
            warnings = await store.warnings()
        finally:
            await store.aclose()
    except WakegateError as error:
        return Finding("session store", str(error), "check --store (WAKEGATE_STORE): address, password, network policy")
    took = (time.perf_counter() - began) * 1e3
    if settings.engine == "kubernetes" and url.startswith("sqlite"):
        return Finding(
            "session store", "sqlite, on this machine only",
            "with more than one gateway set WAKEGATE_STORE=redis://...", grave=False,
        )  # fmt: skip
    if warnings:
        return Finding("session store", "takes a write", " ".join(warnings), grave=False)
    return Finding("session store", f"takes a write ({took:.0f} ms)")


async def check_state_dir(settings: Settings) -> Finding:
    """Can the state directory be written to?"""
    try:
        make_state_dir(settings.state_dir)
    except SettingsError as error:
        return Finding("state directory", str(error), "name another with --state-dir (WAKEGATE_STATE_DIR)")
    problem = probe_state_dir(settings.state_dir)
    fix = "free space there, mount it read-write, or name another with --state-dir (WAKEGATE_STATE_DIR)"
    return Finding("state directory", problem or "takes a write", fix if problem else "")


def _store_url(settings: Settings) -> str:
    return settings.store or f"sqlite:///{quote(str((settings.state_dir / 'wakegate.db').absolute()))[1:]}"


async def check_snapshots(settings: Settings) -> Finding:
    """Can a snapshot be put, read and deleted?"""
    if not settings.snapshots and settings.engine == "local":
        return Finding("snapshots", "none needed: workspaces are parked in the state folder")
    url = settings.snapshots or str(settings.state_dir / "snapshots")
    try:
        keys = SnapshotKeys.read(settings.snapshot_key_file) if settings.snapshot_key_file != Path() else None
        store = make_snapshot_store(url, keys=keys)
        reference = await store.put(SessionId("doctor"), _probe())
        read = b"".join([piece async for piece in store.get(reference)])
        await store.delete(reference.key)
    except (WakegateError, OSError) as error:
        mend = "check --snapshots (WAKEGATE_SNAPSHOTS): the folder's owner, or the bucket's name, region and rights"
        return Finding("snapshots", str(error), mend)
    if read != b"wakegate":
        return Finding("snapshots", "what was put came back changed", f"do not use {url}")
    if settings.engine == "kubernetes" and not settings.snapshots:
        return Finding(
            "snapshots", "in the state folder, which ends with the pod",
            "set WAKEGATE_SNAPSHOTS to an object store, or to a folder on a volume", grave=False,
        )  # fmt: skip
    return Finding("snapshots", "can be put, read and deleted")


async def check_sleeping(settings: Settings) -> AsyncIterator[Finding]:
    """Can sleeping sessions wake with these settings?"""
    what = "sleeping sessions"
    try:
        snapshots = None
        if settings.snapshots or settings.engine != "local":
            keys = SnapshotKeys.read(settings.snapshot_key_file) if settings.snapshot_key_file != Path() else None
            snapshots = make_snapshot_store(settings.snapshots or str(settings.state_dir / "snapshots"), keys=keys)
        store = make_store(_store_url(settings), SystemClock(), prefix=settings.store_prefix)
        await store.start()
    except WakegateError:
        return  # the checks above say so

    async def check(reference: str) -> None:
        if not is_snapshot(reference):
            return  # whether it is parked the engine knows, and the gateway says at its start
        if snapshots is None:
            raise SnapshotNotFoundError("its workspace is a snapshot, and no --snapshots (WAKEGATE_SNAPSHOTS) is set")
        async with aclosing(snapshots.get(SnapshotRef(reference))) as pieces:
            await anext(pieces, b"")

    try:
        async for problem in restore_problems(store, check, ""):
            fix = "set --snapshots and --snapshot-key-file as they were when its workspace was kept"
            yield Finding(what, problem, fix, grave=False)
    except WakegateError as error:
        yield Finding(what, str(error), "the session store could not be read; run this again", grave=False)
    finally:
        await store.aclose()


async def _probe() -> AsyncIterator[bytes]:
    yield b"wakegate"


async def check_cluster(settings: Settings) -> AsyncIterator[Finding]:
    """Access, version, custom resources, rights, network policy, and what stands in the runtimes' status."""
    from gateway.provider.kubernetes.client import KubeError, connect  # not needed, and slow to load, for the others

    try:
        api = await connect(settings.kubeconfig if settings.kubeconfig != Path() else None)
    except SettingsError as error:
        yield Finding("cluster", "no access", str(error))
        return
    try:
        version = await api.get("/version")
    except KubeError as error:
        mend = "check the server's address in the kubeconfig, or the pod's network; then run this again"
        yield Finding("cluster", str(error), mend)
        await api.aclose()
        return
    try:
        yield check_version(version)
        namespaces = [name for name in settings.kube_namespaces.split(",") if name]
        for namespace in namespaces:
            async for finding in check_namespace(api, namespace):
                yield finding
        yield await check_rights(api, settings.kube_gateway_namespace, own=True)
        for namespace in sorted({*namespaces, settings.kube_gateway_namespace}):
            both = namespace in namespaces, namespace == settings.kube_gateway_namespace
            yield await check_excess(api, namespace, sandboxes=both[0], own=both[1])
    finally:
        await api.aclose()


def check_version(version: dict[str, Any]) -> Finding:
    """Is the server new enough?"""
    major, minor = (int("".join(c for c in str(version.get(part, "0")) if c.isdigit()) or 0)
                    for part in ("major", "minor"))  # fmt: skip
    said = str(version.get("gitVersion", f"{major}.{minor}"))
    if (major, minor) < OLDEST:
        return Finding("Kubernetes", said, f"older than {OLDEST[0]}.{OLDEST[1]}, untried", grave=False)
    return Finding("Kubernetes", said)


async def check_namespace(api: Any, namespace: str) -> AsyncIterator[Finding]:
    """Of one namespace with sandboxes: rights, custom resources, network policy, runtimes."""
    yield await check_rights(api, namespace, own=False)
    for kind in Kind:
        async for finding in check_runtimes(api, namespace, kind):
            yield finding
    yield await check_policy(api, namespace)


async def check_rights(api: Any, namespace: str, *, own: bool) -> Finding:
    """May we do there what a gateway must? `own`: the gateway's own namespace."""
    from gateway.provider.kubernetes import rights
    from gateway.provider.kubernetes.client import KubeError

    missing = []
    for right in rights.GATEWAY if own else rights.SANDBOXES:
        resource, _, sub = right.resource.partition("/")
        for verb in right.verbs:
            attributes = {"namespace": namespace, "verb": verb, "group": right.group, "resource": resource}
            attributes |= {"subresource": sub} if sub else {}
            attributes |= {"name": right.name} if right.name else {}
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            try:
                answer = await api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
            except KubeError as error:
                return Finding(f"rights in {namespace}", str(error), "the server could not be asked; run this again")
            if not (answer.get("status") or {}).get("allowed"):
                missing.append(f"{verb} {right.resource}")
    if missing:
        where = "manifests/base" if own else f"manifests/sandboxes with `namespace: {namespace}`"
        return Finding(f"rights in {namespace}", f"missing: {', '.join(missing)}", f"kubectl apply -k {where}")
    return Finding(f"rights in {namespace}", "all there")


async def check_excess(api: Any, namespace: str, *, sandboxes: bool, own: bool) -> Finding:
    """May we do more there than a gateway must? `sandboxes`, `own`: what the namespace is for."""
    from gateway.provider.kubernetes import rights
    from gateway.provider.kubernetes.client import KubeError

    what = f"least right in {namespace}"
    wanted = rights.SANDBOXES * sandboxes + rights.GATEWAY * own
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    try:
        answer = await api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)
    except KubeError as error:
        return Finding(what, str(error), "the server could not be asked; run this again", grave=False)
    more = rights.beyond((answer.get("status") or {}).get("resourceRules") or [], wanted)
    if more:
        said = ", ".join(more[:5]) + (f" and {len(more) - 5} more" if len(more) > 5 else "")
        mend = "as the gateway's account it should not; as your own it may: run this in the gateway's pod to be sure"
        return Finding(what, f"this account may do more than a gateway needs: {said}", mend, grave=False)
    return Finding(what, "nothing more is granted")


async def check_runtimes(api: Any, namespace: str, kind: Kind) -> AsyncIterator[Finding]:
    """Does the cluster know the kind, and what do its runtimes' conditions say?"""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    what = f"{names.plural(kind)} in {namespace}"
    try:
        items = (await api.get(names.runtimes(kind, namespace)))["items"]
    except KubeError as error:
        if error.http_status == 404:
            yield Finding(what, "the cluster does not know the kind", "kubectl apply -k manifests/base/crds")
        else:
            yield Finding(what, str(error), "see the rights above")
        return
    yield Finding(what, f"{len(items)} there")
    for item in items:
        conditions = (item.get("status") or {}).get("conditions") or []
        ready = next((each for each in conditions if each.get("type") == "Ready"), None)
        name = f"{kind.value} {namespace}/{item['metadata']['name']}"
        if ready is None:
            yield Finding(name, "no gateway has written its status", "start one; see its log", grave=False)
        elif ready.get("status") == "False":
            said = f"{ready.get('reason')}: {ready.get('message')}"
            yield Finding(name, said, f"kubectl -n {namespace} describe pods -l wakegate.io/runtime", grave=False)


async def check_policy(api: Any, namespace: str) -> Finding:
    """Is the policy there that shuts sandboxes in? Whether the network enforces it, the server does not know."""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    what = f"network policy in {namespace}"
    try:
        policy = await api.get(names.network_policies(namespace, SANDBOX_POLICY))
    except KubeError as error:
        if error.http_status == 404:
            mend = f"sandboxes reach everything; kubectl apply -k manifests/sandboxes with `namespace: {namespace}`"
            return Finding(what, f"{SANDBOX_POLICY} is not there", mend, grave=False)
        return Finding(what, str(error), "see the rights above", grave=False)
    types = set(policy["spec"].get("policyTypes") or [])
    if types != {"Ingress", "Egress"} or policy["spec"].get("egress"):
        mend = "its policyTypes should be Ingress and Egress, and it should allow no egress"
        return Finding(what, f"{SANDBOX_POLICY} was changed", mend, grave=False)
    return Finding(what, "is there (that the cluster's network enforces policies cannot be seen from here)")
