"""Checks of a cluster: access, version, custom resources, rights, network policy, and the status of runtimes.

Without access to the API server the other checks are skipped; otherwise a check that fails does not stop the others.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence, Set
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.core.agent_sandbox import read_router_tenants
from gateway.core.errors import SettingsError
from gateway.core.model import Kind
from gateway.core.settings import Settings
from gateway.doctor.finding import Finding

if TYPE_CHECKING:
    from gateway.provider.kubernetes.rights import Right


class Use(Enum):
    """What a gateway uses a namespace for; the value is the folder of manifests/ that grants the rights to it."""

    GATEWAY = "base"  # it runs there
    SANDBOXES = "sandboxes"
    CLAIMS = "sandbox-claims"
    ROUTER = "sandbox-router"
    NODES = "node-leases"  # kube-node-lease alone


_SHOWN = {Use.CLAIMS: "rights to claims", Use.ROUTER: "rights of a router", Use.NODES: "rights to leases of nodes"}
OLDEST = (1, 27)  # the oldest Kubernetes whose API has all that is used here in its stable form
NODE_LEASES = "kube-node-lease"
SANDBOX_POLICY = "wakegate-sandboxes"


async def check_cluster(settings: Settings) -> AsyncIterator[Finding]:
    """Run all checks of the cluster that the kubeconfig, or the pod's service account, gives access to."""
    from gateway.provider.kubernetes.client import KubeError, connect  # slow to import, and only needed here

    try:
        routed = read_router_tenants(settings.kube_router_tenants)
    except ValueError as error:
        yield Finding("--kube-router-tenants", "malformed", str(error))
        return
    try:
        api = await connect(settings.kubeconfig if settings.kubeconfig != Path() else None)
    except SettingsError as error:
        yield Finding("cluster", "no access", str(error))
        return
    try:
        version = await api.get("/version")
    except KubeError as error:
        fix = "check the server's address in the kubeconfig, or the pod's network; then run this again"
        yield Finding("cluster", str(error), fix)
        # Every other check would fail for the same reason, and bury the line that says what to do.
        await api.aclose()
        return
    try:
        yield check_version(version)
        namespaces = [name for name in settings.kube_namespaces.split(",") if name]
        answers_claims = bool(settings.kube_claims_tenant)
        for namespace in namespaces:
            async for finding in check_namespace(api, namespace, claims=answers_claims):
                yield finding
        for namespace in routed:
            yield await check_rights(api, namespace, Use.ROUTER)
        yield await check_rights(api, settings.kube_gateway_namespace, Use.GATEWAY)
        yield await check_rights(api, NODE_LEASES, Use.NODES)
        for namespace in sorted({*namespaces, *routed, settings.kube_gateway_namespace}):
            uses = {Use.SANDBOXES: namespace in namespaces, Use.CLAIMS: namespace in namespaces and answers_claims}
            uses |= {Use.ROUTER: namespace in routed, Use.GATEWAY: namespace == settings.kube_gateway_namespace}
            yield await check_excess(api, namespace, {use for use, holds in uses.items() if holds})
    finally:
        await api.aclose()


def check_version(version: dict[str, Any]) -> Finding:
    """Compare the API server's version with the oldest that the manifests work on."""
    major, minor = (int("".join(c for c in str(version.get(part, "0")) if c.isdigit()) or 0)
                    for part in ("major", "minor"))  # fmt: skip
    detail = str(version.get("gitVersion", f"{major}.{minor}"))
    if (major, minor) < OLDEST:
        return Finding("Kubernetes", detail, f"older than {OLDEST[0]}.{OLDEST[1]}, untried", fatal=False)
    return Finding("Kubernetes", detail)


async def check_namespace(api: Any, namespace: str, *, claims: bool = False) -> AsyncIterator[Finding]:
    """Check a namespace with sandboxes: rights, custom resources, network policy, runtimes.

    `claims`: SandboxClaims are answered there.
    """
    yield await check_rights(api, namespace, Use.SANDBOXES)
    if claims:
        yield await check_rights(api, namespace, Use.CLAIMS)
    for kind in Kind:
        async for finding in check_runtimes(api, namespace, kind):
            yield finding
    yield await check_policy(api, namespace)
    yield await check_metrics(api, namespace)


async def check_rights(api: Any, namespace: str, use: Use) -> Finding:
    """Check that the account has the rights that a gateway needs for a use of a namespace."""
    from gateway.provider.kubernetes.client import KubeError

    missing, what = [], _SHOWN.get(use, "rights")
    for right in _wanted(use):
        resource, _, sub = right.resource.partition("/")
        for verb in right.verbs:
            attributes = {"namespace": namespace, "verb": verb, "group": right.group, "resource": resource}
            attributes |= {"subresource": sub} if sub else {}
            attributes |= {"name": right.name} if right.name else {}
            # Asked of the server and not read from roles: groups, webhooks and aggregated roles count too.
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": attributes},
            }
            try:
                answer = await api.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
            except KubeError as error:
                return Finding(f"{what} in {namespace}", str(error), "the server could not be asked; run this again")
            if not (answer.get("status") or {}).get("allowed"):
                missing.append(f"{verb} {right.resource}")
    if missing:
        fixed = use in (Use.GATEWAY, Use.NODES)
        where = f"manifests/{use.value}" if fixed else f"manifests/{use.value} with `namespace: {namespace}`"
        detail = f"missing: {', '.join(missing)}"
        return Finding(f"{what} in {namespace}", detail, f"kubectl apply -k {where}", fatal=use is not Use.NODES)
    return Finding(f"{what} in {namespace}", "all there")


def _wanted(use: Use) -> Sequence[Right]:
    from gateway.provider.kubernetes import rights

    return {
        Use.GATEWAY: rights.GATEWAY,
        Use.SANDBOXES: rights.SANDBOXES,
        Use.CLAIMS: rights.CLAIMS,
        Use.ROUTER: rights.ROUTER,
        Use.NODES: rights.NODES,
    }[use]


async def check_excess(api: Any, namespace: str, uses: Set[Use]) -> Finding:
    """Check that the account has no further rights than those for its uses of a namespace."""
    from gateway.provider.kubernetes import rights
    from gateway.provider.kubernetes.client import KubeError

    what = f"least right in {namespace}"
    wanted = [right for use in uses for right in _wanted(use)]
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    try:
        answer = await api.create("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", body)
    except KubeError as error:
        return Finding(what, str(error), "the server could not be asked; run this again", fatal=False)
    more = rights.beyond((answer.get("status") or {}).get("resourceRules") or [], wanted)
    if Use.GATEWAY in uses:
        more = [right for right in more if not await _is_lent(api, namespace, right)]
    if more:
        detail = ", ".join(more[:5]) + (f" and {len(more) - 5} more" if len(more) > 5 else "")
        fix = "as the gateway's account it should not; as your own it may: run this in the gateway's pod to be sure"
        return Finding(what, f"this account may do more than a gateway needs: {detail}", fix, fatal=False)
    return Finding(what, "nothing more is granted")


async def _is_lent(api: Any, namespace: str, right: str) -> bool:
    """Whether it is to read a Secret that an operator lends to runtimes (docs/egress.md)."""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    # One Secret by its name. A right to list them would read all, lent or not, and is reported.
    verb, _, name = right.partition(" secrets ")
    if verb != "get" or not name:
        return False
    try:
        secret = await api.get(names.secrets(namespace, name))
    except KubeError:
        return False
    return names.LENT_TO in ((secret.get("metadata") or {}).get("annotations") or {})


async def check_runtimes(api: Any, namespace: str, kind: Kind) -> AsyncIterator[Finding]:
    """Check that the cluster has the custom resource, and report runtimes that are not ready."""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    what = f"{names.plural(kind)} in {namespace}"
    try:
        items = (await api.get(names.runtimes(kind, namespace)))["items"]
    except KubeError as error:
        if error.http_status == 404:  # the kind, not an object: a list of nothing is 200
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
            yield Finding(name, "no gateway has written its status", "start one; see its log", fatal=False)
        elif ready.get("status") == "False":
            detail = f"{ready.get('reason')}: {ready.get('message')}"
            yield Finding(name, detail, f"kubectl -n {namespace} describe pods -l wakegate.io/runtime", fatal=False)


async def check_policy(api: Any, namespace: str) -> Finding:
    """Check the network policy of sandboxes. The API server does not know whether the network enforces it."""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    what = f"network policy in {namespace}"
    try:
        policy = await api.get(names.network_policies(namespace, SANDBOX_POLICY))
    except KubeError as error:
        if error.http_status == 404:
            fix = f"sandboxes reach everything; kubectl apply -k manifests/sandboxes with `namespace: {namespace}`"
            return Finding(what, f"{SANDBOX_POLICY} is not there", fix, fatal=False)
        return Finding(what, str(error), "see the rights above", fatal=False)
    # Without Egress among the types nothing is restricted, whatever `egress` lists.
    types = set(policy["spec"].get("policyTypes") or [])
    if types != {"Ingress", "Egress"} or policy["spec"].get("egress"):
        fix = "its policyTypes should be Ingress and Egress, and it should allow no egress"
        return Finding(what, f"{SANDBOX_POLICY} was changed", fix, fatal=False)
    return Finding(what, "is there (that the cluster's network enforces policies cannot be seen from here)")


async def check_metrics(api: Any, namespace: str) -> Finding:
    """Check that the cluster tells what pods use; without that, usage metering knows their limits only."""
    from gateway.provider.kubernetes import names
    from gateway.provider.kubernetes.client import KubeError

    what = f"metrics of pods in {namespace}"
    try:
        await api.get(names.pod_metrics(namespace), limit=1)
    except KubeError as error:
        fix = "CPU and memory really used are counted as 0 in /v1/usage; install metrics-server"
        return Finding(what, f"metrics.k8s.io: {error}", fix, fatal=False)
    return Finding(what, "can be read")
