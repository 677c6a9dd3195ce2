"""A whole cluster: server, controllers, kubelet; in the running loop, or in a separate thread."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
import yaml

from tests.support.kube.simulator import rules
from tests.support.kube.simulator.api import ApiServer, delete, evict
from tests.support.kube.simulator.controllers import Controllers
from tests.support.kube.simulator.kubelet import Kubelet
from tests.support.kube.simulator.metrics import Metrics
from tests.support.kube.simulator.objects import BY_PLURAL, PODS, Object, Objects

T = TypeVar("T")


class Cluster:
    """What a test holds of a cluster. Use as `async with Cluster().running()`."""

    def __init__(self, *, hollow: bool = False, nodes: int = 2) -> None:
        self.objects = Objects()
        self.controllers = Controllers(self.objects)
        self.api = ApiServer(self.objects, self.controllers.admit)
        self.kubelet = Kubelet(self.objects, hollow=hollow)
        self.api.metrics = Metrics(self.kubelet.metrics)
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0
        self._nodes = nodes
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        """Run API server, controllers and kubelet for the length of a block."""
        self._loop = asyncio.get_running_loop()
        self.create("namespaces", "default")
        for index in range(self._nodes):
            self.create("nodes", f"node-{index}", labels={"kubernetes.io/hostname": f"node-{index}"})
        await self.start_api()
        work = asyncio.create_task(self.controllers.run())
        try:
            yield self
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self.kubelet.aclose()
            await self.stop_api()

    async def start_api(self) -> None:
        """Listen; on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        # asyncio sets it only on sockets that say that they are TCP, which those of create_server do not.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(self.api, lifespan="off", log_config=None, http="httptools", loop="none", ws="none")
        server = self._server = _Quiet(config)
        self._serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.002)

    async def stop_api(self) -> None:
        """Refuse connections, and break those that are open."""
        assert self._server is not None
        assert self._serving is not None
        self._server.should_exit = True
        self._server.force_exit = True
        for listener in self._server.servers:
            listener.close()
        self.api.cut_watches()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        await self._serving

    def create(self, plural: str, name: str, *, namespace: str = "", labels: Any = None, **rest: Any) -> Object:
        """Create an object as a user with all rights would."""
        metadata: Object = {"name": name, **({"labels": labels} if labels else {})}
        body = {"metadata": metadata, **rest}
        rules.fill(BY_PLURAL[plural], body)
        return self.objects.create(BY_PLURAL[plural], namespace, body)

    async def equip(self) -> None:
        """What choosy pods name and this cluster looks for: a node with a GPU."""
        self.create("nodes", "gpu-node", labels={"accelerator": "a100", "kubernetes.io/hostname": "gpu-node"})

    def pods(self, **labels: str) -> list[Object]:
        """Pods that carry the labels and are not ending."""
        return [
            pod for pod in self.objects.all(PODS)
            if labels.items() <= (pod["metadata"].get("labels") or {}).items()
            and "deletionTimestamp" not in pod["metadata"]
        ]  # fmt: skip

    def delete(self, plural: str, namespace: str, name: str) -> None:
        """Delete an object as `kubectl delete` does."""
        delete(self.objects, BY_PLURAL[plural], namespace, name)

    def evict(self, namespace: str, name: str) -> None:
        """Evict a pod as `kubectl drain` does."""
        evict(self.objects, namespace, name)

    async def lose_node(self, pod: Object) -> None:
        """The machine of a pod is gone, as far as that pod goes, and the node's controllers have noticed.

        They say that it is not ready, and when its tolerations are over that it is evicted, and delete it. Nobody is
        there to end it; once a node is deleted, too, the garbage collector of pods does.
        """
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self.kubelet.lose(pod["metadata"]["uid"])
        self.node_away(pod)
        message = "Taint manager: deleting due to NoExecute taint"
        self._condition(pod, "DisruptionTarget", "True", "DeletionByTaintManager", message)
        delete(self.objects, PODS, namespace, name)

    async def silence_node(self, pod: Object) -> None:
        """The machine of a pod is off, and the node controller has noticed that it does not report."""
        await self.silence(pod)
        self.node_away(pod)

    async def silence(self, pod: Object) -> None:
        """The machine of a pod is off, and nobody has noticed."""
        port = int(pod["spec"]["containers"][0]["ports"][0]["containerPort"])
        await self.kubelet.silence(pod["metadata"]["uid"], pod["status"]["podIP"], port)

    def node_away(self, pod: Object) -> None:
        """The node controller says that a pod is not ready, since its node does not report. It changes only Ready."""
        self._condition(pod, "Ready", "False")

    def _condition(self, pod: Object, kind: str, holds: str, reason: str = "", message: str = "") -> None:
        said = {"type": kind, "status": holds, "reason": reason, "message": message}

        def tell(present: Object) -> Object:
            others = [each for each in present["status"]["conditions"] if each["type"] != kind]
            return {**present, "status": {**present["status"], "conditions": [*others, said]}}

        self.objects.update(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], tell)

    def enforce(self, **roles: tuple[Path, ...]) -> None:
        """From now on only what the Roles in these manifests grant is allowed; by namespace."""
        self.api.roles = {
            namespace: [
                rule
                for path in paths
                for each in yaml.safe_load_all(path.read_text())
                for rule in each.get("rules", [])
            ]
            for namespace, paths in roles.items()
        }

    def kubeconfig(self, folder: Path, *, admin: bool = False) -> Path:
        """A kubeconfig file for this cluster: the gateway's, or that of a person with all rights."""
        path = folder / ("kubeconfig-admin" if admin else "kubeconfig")
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "simulator", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": "admin"} if admin else {}}],
            "contexts": [{"name": "simulator", "context": {"cluster": "simulator", "user": "tester"}}],
            "current-context": "simulator",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def call(self, verb: Callable[[], T]) -> T:
        """From another thread: run a plain function on the cluster's loop."""
        assert self._loop is not None
        result: list[T] = []
        done = threading.Event()

        def run() -> None:
            try:
                result.append(verb())
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        assert done.wait(20)
        return result[0]

    def await_(self, verb: Callable[[], Awaitable[T]]) -> T:
        """From another thread: await something on the cluster's loop."""
        assert self._loop is not None

        async def run() -> T:
            return await verb()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(20)


class _Quiet(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def in_thread(make: Callable[..., Cluster] = Cluster, **options: Any) -> Iterator[Cluster]:
    """A cluster on its own event loop, for tests of whole processes."""
    started, stop = threading.Event(), threading.Event()
    held: list[Cluster] = []
    made = make(**options)

    async def live() -> None:
        async with made.running() as cluster:
            held.append(cluster)
            started.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(live()), name="cluster")
    thread.start()
    try:
        assert started.wait(60)
        yield held[0]
    finally:
        stop.set()
        thread.join()
