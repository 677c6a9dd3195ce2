"""A real cluster with the simulator's handle: what tests do with one they can do with the other.

The control plane is started once for all tests of a process, and emptied after each. What only the simulator can do,
such as answering late, skips the test that asks for it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
import yaml

from tests.support.kube.real import plane
from tests.support.kube.real.nodes import Nodes
from tests.support.kube.real.objects import Mirror, Store, path_of
from tests.support.kube.simulator.kubelet import Kubelet
from tests.support.kube.simulator.objects import BY_PLURAL, DEPLOYMENTS, PODS, ApiError, Kind, Object

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[4]
NAMESPACES = ("default", "wakegate", "wakegate-sandboxes")
ACCOUNT = "wakegate"
_RBAC = "rbac.authorization.k8s.io"
OTHERS = {
    "Role": Kind(_RBAC, "v1", "roles", "Role"),
    "RoleBinding": Kind(_RBAC, "v1", "rolebindings", "RoleBinding"),
    "ServiceAccount": Kind("", "v1", "serviceaccounts", "ServiceAccount"),
}
RUNTIME_CLASSES = Kind("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
PRIORITY_CLASSES = Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
_CLEARED = (
    "codeinterpreters", "agentruntimes", "deployments", "replicasets", "pods", "configmaps", "secrets",
    "networkpolicies", "resourcequotas", "sandboxclaims", "sandboxes",
)  # fmt: skip
_ASIDE, _PROBE = "wakegate", "probe"
_BACK_IN_S = 90.0
_planes: list[plane.Plane] = []


def shared_plane() -> plane.Plane:
    """The control plane of this process, with the shipped CRDs; started by who first asks."""
    if not _planes:
        programs = Path(os.environ["KUBERNETES_BIN"])
        if absent := plane.missing(programs):
            pytest.skip(f"KUBERNETES_BIN={programs} lacks {', '.join(absent)}; scripts/test-kubernetes builds them")
        folder = Path(tempfile.mkdtemp(prefix="plane-"))
        one = plane.Plane(programs, folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        atexit.register(one.stop)
        one.start()
        _planes.append(one)
        store = Store(one.client())
        kind = BY_PLURAL["customresourcedefinitions"]
        for file in ("codeinterpreters", "agentruntimes"):
            store.create(kind, "", yaml.safe_load((ROOT / f"manifests/base/crds/{file}.yaml").read_text()))
        for document in yaml.safe_load_all((ROOT / "manifests/sandbox-claims/crds.yaml").read_text()):
            store.create(kind, "", document)
        with contextlib.suppress(ApiError):
            store.create(BY_PLURAL["namespaces"], "", {"metadata": {"name": "wakegate"}})
        for file in ("codeinterpreters", "agentruntimes", "sandboxclaims", "sandboxes"):
            one.wait_for(path_of(BY_PLURAL[file]))
        store.close()
    return _planes[0]


def _wait(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _BACK_IN_S
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.2)


class RealCluster:
    """Use as `async with RealCluster().running()`."""

    busy = False  # the one control plane is in use

    def __init__(self, *, hollow: bool = False, nodes: int = 2) -> None:
        if RealCluster.busy:
            pytest.skip("needs a cluster of its own, and there is one real one at a time")
        self.plane = shared_plane()
        self.objects = Store(self.plane.client())
        tls = ssl.create_default_context(cafile=str(self.plane.ca))
        self._mirror = Mirror(self.objects, self.plane.url, self.plane.tokens["kubelet"], tls)
        self.nodes = Nodes(self.objects, nodes)
        self._hollow = hollow
        self._token = self.plane.tokens["admin"]
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return self.plane.url

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("api", "controllers"):
            pytest.skip(f"needs the simulator: `{name}` of a real cluster cannot be told to misbehave")
        raise AttributeError(name)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[RealCluster]:
        """The time in which it has nodes."""
        self._loop, RealCluster.busy = asyncio.get_running_loop(), True
        self.kubelet = Kubelet(self._mirror, hollow=self._hollow, schedules=False)  # type: ignore[arg-type]
        await asyncio.to_thread(self.nodes.start)
        await self._mirror.start()
        try:
            yield self
        finally:
            await asyncio.to_thread(self._clear)
            await self.kubelet.aclose()
            await self._mirror.aclose()
            self.objects.close()
            RealCluster.busy = False

    def _clear(self) -> None:
        deadline = time.monotonic() + 30
        kinds = [BY_PLURAL[plural] for plural in _CLEARED] + list(OTHERS.values())
        self.nodes.stop()
        while True:
            for kind in kinds:
                for namespace in NAMESPACES:
                    self.objects.clear(kind, namespace, spared=("kube-root-ca.crt", "default"))
            if not any(self.objects.all(PODS, namespace) for namespace in NAMESPACES):
                break
            assert time.monotonic() < deadline, "pods do not go"
            time.sleep(0.1)

    async def start_api(self) -> None:
        """On the same port as before, and wait until the scheduler and the controllers are back at work.

        A server that starts refuses them for a moment, as it has not read its roles yet, and they come back after
        pauses that grow to half a minute with each time that they lost it.
        """
        await asyncio.to_thread(self.plane.start_api)
        await asyncio.to_thread(self._prove_work)

    def _prove_work(self) -> None:
        """By a Deployment whose pod fits nowhere, and a quota: the words of each that has to act upon them."""
        labels = {"app": _PROBE}
        pod = {"nodeSelector": labels, "containers": [{"name": "c", "image": "none"}]}
        spec = {
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod},
        }  # fmt: skip
        made = ((DEPLOYMENTS, spec), (BY_PLURAL["resourcequotas"], {"hard": {"configmaps": "9"}}))
        for kind, what in made:
            self.objects.create(kind, _ASIDE, {"metadata": {"name": _PROBE}, "spec": what})

        def pods() -> list[Object]:
            return [pod for pod in self.objects.all(PODS, _ASIDE) if pod["metadata"]["name"].startswith(_PROBE)]

        def all_said() -> bool:
            quota = self.objects.get(BY_PLURAL["resourcequotas"], _ASIDE, _PROBE)
            looked_at = [each for each in pods() if each["status"].get("conditions")]
            return bool(looked_at) and "hard" in quota.get("status", {})

        _wait(all_said, "the control plane works again")
        for kind, _ in made:
            self.objects.delete(kind, _ASIDE, _PROBE)
        _wait(lambda: not pods(), "the garbage collector works again")

    async def stop_api(self) -> None:
        """Kill the API server with SIGKILL."""
        self.plane.stop_api()

    def create(self, plural: str, name: str, *, namespace: str = "", labels: Any = None, **rest: Any) -> Object:
        """Create an object as a user with all rights would."""
        metadata: Object = {"name": name, **({"labels": labels} if labels else {})}
        return self.objects.create(BY_PLURAL[plural], namespace, {"metadata": metadata, **rest})

    async def equip(self) -> None:
        """What choosy pods name: a node with a GPU and a rack, classes of runtimes and of priority, an account."""
        self.nodes.add("gpu-node", {"accelerator": "a100", "rack": "r1"}, {"nvidia.com/gpu": "8"})
        made: list[tuple[Kind, str, Object]]
        made = [(RUNTIME_CLASSES, "", {"metadata": {"name": name}, "handler": name}) for name in ("gvisor", "kata")]
        made.append((PRIORITY_CLASSES, "", {"metadata": {"name": "batch"}, "value": 7}))
        made.append((OTHERS["ServiceAccount"], "default", {"metadata": {"name": "agent"}}))
        for kind, namespace, body in made:
            with contextlib.suppress(ApiError):  # classes stay from one test to the next
                self.objects.create(kind, namespace, body)

    def pods(self, **labels: str) -> list[Object]:
        """Pods that carry the labels and are not ending."""
        return [
            pod for pod in self.objects.all(PODS, "default")
            if labels.items() <= (pod["metadata"].get("labels") or {}).items()
            and "deletionTimestamp" not in pod["metadata"]
        ]  # fmt: skip

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object as `kubectl delete` does."""
        self.objects.delete(BY_PLURAL[plural], namespace, name)

    def evict(self, namespace: str, name: str) -> None:
        """Evict a pod as `kubectl drain` does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        self.objects.ask("POST", path_of(PODS, namespace, name, "eviction"), body)

    async def lose_node(self, pod: Object) -> None:
        """A pod's machine is gone: until the node's controllers have noticed, and the pod's tolerations are over."""
        node, metadata = pod["spec"]["nodeName"], pod["metadata"]
        self.nodes.lost.add(node)
        for each in self.objects.all(PODS, "default"):
            if each["spec"].get("nodeName") == node:
                self.kubelet.lose(each["metadata"]["uid"])
        while "deletionTimestamp" not in self.objects.get(PODS, metadata["namespace"], metadata["name"])["metadata"]:
            await asyncio.sleep(0.5)

    def enforce(self, **roles: tuple[Path, ...]) -> None:
        """From now on kubeconfigs are the gateway's account, with what these manifests grant; by namespace."""
        for namespace, path in ((namespace, path) for namespace, paths in roles.items() for path in paths):
            for document in yaml.safe_load_all(path.read_text()):
                for subject in document.get("subjects", []):
                    subject.setdefault("namespace", "wakegate")  # as kustomize does
                with contextlib.suppress(ApiError):
                    self.objects.create(OTHERS[document["kind"]], namespace, document)
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
        path_to = path_of(OTHERS["ServiceAccount"], "wakegate", ACCOUNT, "token")
        self._token = self.objects.ask("POST", path_to, body)["status"]["token"]

    def kubeconfig(self, folder: Path, *, admin: bool = False) -> Path:
        """A kubeconfig file for this cluster: the gateway's, or that of a person with all rights."""
        if admin:
            return self.plane.kubeconfig(self.plane.tokens["admin"], folder / "kubeconfig-admin")
        return self.plane.kubeconfig(self._token, folder / "kubeconfig")

    def call(self, verb: Callable[[], T]) -> T:
        """From another thread: run a plain function on the cluster's loop."""

        async def run() -> T:
            return verb()

        return self.await_(run)

    def await_(self, verb: Callable[[], Awaitable[T]]) -> T:
        """From another thread: await something on the cluster's loop."""
        assert self._loop is not None

        async def run() -> T:
            return await verb()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_BACK_IN_S + 30)
