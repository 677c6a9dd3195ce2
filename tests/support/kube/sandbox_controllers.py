"""As much of agent-sandbox's controllers as a router meets: claims become Sandboxes, and Sandboxes have pods.

A pod is a real HTTP server on an address of this machine's loopback, with a part of their runtime's API and some paths
that show what came. It is there while `spec.operatingMode` is Running; status follows as theirs does, with the
generation that it was observed of. Runs on the loop of a simulated cluster, in a thread of the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.support.kube.simulator import Cluster, in_thread
from tests.support.kube.simulator.objects import BY_PLURAL, ApiError, Change, Kind, Object, now_text

NAMESPACE = "agents"
SANDBOXES, CLAIMS = BY_PLURAL["sandboxes"], BY_PLURAL["sandboxclaims"]
PORT = 8888
_ADDRESSES = itertools.count(2)


class Pod:
    """One server. `requests` came to it; `released` lets those to /held go on."""

    def __init__(self, name: str) -> None:
        self.name = name
        number = next(_ADDRESSES)
        self.address = f"127.{os.getpid() % 250 + 2}.{255 - number // 250}.{number % 250 + 2}"
        self.requests = 0
        self.under_way = 0
        self.released = asyncio.Event()
        self._files: dict[str, bytes] = {}
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen on the runtime's port, and on another as a user's own server."""
        listeners = [socket.create_server((self.address, port)) for port in (PORT, PORT + 1)]
        config = uvicorn.Config(self._app(), lifespan="off", log_config=None, loop="none", ws="websockets-sansio")
        self._server = uvicorn.Server(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self._serving = asyncio.create_task(self._server.serve(sockets=listeners))
        while not self._server.started:
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """End it as a kubelet does in the end: connections break."""
        assert self._server is not None
        assert self._serving is not None
        self._server.should_exit = self._server.force_exit = True
        for listener in self._server.servers:
            listener.close()
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()
        self.released.set()
        await self._serving

    def _app(self) -> Starlette:
        methods = ["GET", "POST", "PUT", "DELETE"]
        return Starlette(
            routes=[
                Route("/execute", self._execute, methods=["POST"]),
                Route("/upload", self._upload, methods=["POST"]),
                Route("/download/{path:path}", self._download),
                Route("/held", self._held),
                Route("/count", self._count, methods=["POST"]),
                Route("/stream", self._stream),
                WebSocketRoute("/socket", self._socket),
                Route("/{path:path}", self._show, methods=methods),
            ]
        )

    async def _execute(self, request: Request) -> Response:
        argv = shlex.split((await request.json())["command"])
        process = await asyncio.create_subprocess_exec(*argv, stdout=-1, stderr=-1)
        out, err = await process.communicate()
        answer = {"stdout": out.decode(), "stderr": err.decode(), "exit_code": process.returncode, "timed_out": False}
        return JSONResponse(answer)

    async def _upload(self, request: Request) -> Response:
        async with request.form() as form:
            file: Any = form["file"]
            self._files[file.filename] = await file.read()
        return JSONResponse({"message": "uploaded"})

    async def _download(self, request: Request) -> Response:
        found = self._files.get(request.path_params["path"])
        return JSONResponse({"message": "File not found"}, 404) if found is None else Response(found)

    async def _show(self, request: Request) -> Response:
        """What came: its head as it was, and whose pod it came to."""
        self.requests += 1
        shown = {
            "pod": self.name,
            "method": request.method,
            "target": request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else ""),
            "headers": [[name.decode(), value.decode()] for name, value in request.scope["headers"]],
            "port": request.scope["server"][1],
        }
        headers = {"set-cookie": "of=the-pod", "x-app": "yes"}
        return JSONResponse(shown, headers=headers)

    async def _held(self, request: Request) -> Response:
        self.under_way += 1
        try:
            await self.released.wait()
        finally:
            self.under_way -= 1
        return JSONResponse({"pod": self.name})

    async def _count(self, request: Request) -> Response:
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return JSONResponse({"size": size})

    async def _stream(self, request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first\n"
            await self.released.wait()
            yield b"last\n"

        return StreamingResponse(pieces(), media_type="text/plain")

    async def _socket(self, socket: WebSocket) -> None:
        """Echoes; its first message is the head that it got."""
        await socket.accept()
        self.under_way += 1
        try:
            await socket.send_json({name.decode(): value.decode() for name, value in socket.scope["headers"]})
            while True:
                await socket.send_text("echo " + await socket.receive_text())
        except WebSocketDisconnect:
            pass
        finally:
            self.under_way -= 1


class SandboxControllers:
    """Follows claims and Sandboxes of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.pods: dict[str, Pod] = {}  # by the name of their Sandbox
        self.modes: list[tuple[str, str]] = []  # each change of an operating mode: name, mode
        self.paused = False  # Sandboxes that are to run get no pods
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        cluster.objects.listen(self._note)
        self._work = asyncio.create_task(self._run())

    def create(self, name: str, *, mode: str = "Running", **annotations: str) -> None:
        """Make a Sandbox, from the test's thread."""
        spec = {"operatingMode": mode, "podTemplate": {"spec": {"containers": [{"name": "main", "image": "x"}]}}}
        metadata = {"name": name, "annotations": {f"wakegate.io/{key}": value for key, value in annotations.items()}}
        body = {"metadata": metadata, "spec": spec}
        self.cluster.call(lambda: self.cluster.objects.create(SANDBOXES, NAMESPACE, body))

    def look(self, name: str) -> Object:
        """A Sandbox as it is, from the test's thread."""
        return self.cluster.call(lambda: self.cluster.objects.get(SANDBOXES, NAMESPACE, name))

    def delete(self, name: str) -> None:
        """Delete a Sandbox, from the test's thread."""
        self.cluster.call(lambda: self.cluster.objects.remove(SANDBOXES, NAMESPACE, name))

    def set_mode(self, name: str, mode: str) -> None:
        """Change an operating mode as a person does, from the test's thread."""

        def change(obj: Object) -> Object:
            return {**obj, "spec": {**obj["spec"], "operatingMode": mode}}

        self.cluster.call(lambda: self.cluster.objects.update(SANDBOXES, NAMESPACE, name, change))

    @property
    def patches(self) -> int:
        """How many patches of Sandboxes the API server was asked for."""
        return self.cluster.api.counts["patch", "sandboxes"]

    def is_ready(self, name: str) -> bool:
        """Whether its status says so, from the test's thread."""
        conditions = (self.look(name).get("status") or {}).get("conditions") or []
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    def pause(self, *, paused: bool) -> None:
        """Have Sandboxes that are to run wait for their pods, from the test's thread."""

        def change() -> None:
            self.paused = paused
            self._dirty.update(each["metadata"]["name"] for each in self.cluster.objects.all(SANDBOXES, NAMESPACE))
            self._wake.set()

        self.cluster.call(change)

    def set_status(self, name: str, *addresses: str) -> None:
        """Say that a Sandbox is ready at some addresses, from the test's thread."""

        def change(obj: Object) -> Object:
            return {**obj, "status": _status(obj, "True", list(addresses))}

        self.cluster.call(lambda: self.cluster.objects.update(SANDBOXES, NAMESPACE, name, change))

    async def aclose(self) -> None:
        """Stop following, and end all pods."""
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        for pod in self.pods.values():
            await pod.stop()

    def _note(self, kind: Kind, change: Change) -> None:
        metadata = change.new["metadata"]
        if metadata.get("namespace") != NAMESPACE:
            return
        if kind is SANDBOXES:
            old, new = (_mode(each) for each in (change.old or {}, change.new))
            if old != new and change.old is not None:
                self.modes.append((metadata["name"], new))
            self._dirty.add(metadata["name"])
            self._wake.set()
        elif kind is CLAIMS and change.type == "ADDED":
            self._loop.call_soon(self._answer, change.new)

    def _answer(self, claim: Object) -> None:
        name = f"{claim['spec']['warmPoolRef']['name']}-{claim['metadata']['uid'][:5]}"
        reference = {"kind": "SandboxClaim", "name": claim["metadata"]["name"], "uid": claim["metadata"]["uid"]}
        body = {
            "metadata": {"name": name, "ownerReferences": [{**reference, "controller": True}]},
            "spec": {"operatingMode": "Running"},
        }
        self.cluster.objects.create(SANDBOXES, NAMESPACE, body)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            dirty, self._dirty = self._dirty, set()
            for name in sorted(dirty):
                await self._settle(name)

    async def _settle(self, name: str) -> None:
        try:
            sandbox = self.cluster.objects.get(SANDBOXES, NAMESPACE, name)
        except ApiError:
            sandbox = {}
        runs = bool(sandbox) and _mode(sandbox) == "Running"
        if not runs and name in self.pods:
            await self.pods.pop(name).stop()
        if runs and name not in self.pods and not self.paused:
            pod = Pod(name)
            await pod.start()
            self.pods[name] = pod
        if sandbox and not _is_current(sandbox, runs=name in self.pods):
            self._report(name)

    def _report(self, name: str) -> None:
        pod = self.pods.get(name)

        def change(obj: Object) -> Object:
            addresses = [] if pod is None else [pod.address]
            return {**obj, "status": _status(obj, "True" if addresses else "False", addresses)}

        with contextlib.suppress(ApiError):
            sandbox = self.cluster.objects.update(SANDBOXES, NAMESPACE, name, change)
            owner = next(iter(sandbox["metadata"].get("ownerReferences") or []), None)
            if owner is not None and pod is not None:
                status = {"sandbox": {"name": name, "podIPs": [pod.address]}}
                status["conditions"] = sandbox["status"]["conditions"]
                self.cluster.objects.update(CLAIMS, NAMESPACE, owner["name"], lambda obj: {**obj, "status": status})


def _mode(sandbox: Object) -> str:
    return str((sandbox.get("spec") or {}).get("operatingMode") or "Running")


def _is_current(sandbox: Object, *, runs: bool) -> bool:
    """Whether its status says how it is."""
    status = sandbox.get("status") or {}
    if not status or bool(status["podIPs"]) != runs:
        return False
    observed = status["conditions"][0]["observedGeneration"]
    return bool(observed == sandbox["metadata"]["generation"])


def _status(sandbox: Object, ready: str, addresses: list[str]) -> Object:
    suspended = _mode(sandbox) == "Suspended"
    reason = "DependenciesReady" if ready == "True" else "SandboxSuspended" if suspended else "DependenciesNotReady"
    generation = sandbox["metadata"]["generation"]
    also = {"observedGeneration": generation, "lastTransitionTime": now_text(), "message": ""}
    return {
        "podIPs": addresses,
        "conditions": [
            {"type": "Ready", "status": ready, "reason": reason, **also},
            {"type": "Suspended", "status": str(suspended), "reason": "PodTerminated" if suspended else "No", **also},
        ],
    }


@contextlib.contextmanager
def controlled() -> Iterator[SandboxControllers]:
    """A cluster in a thread, where these controllers serve the namespace `agents`."""
    with in_thread(Cluster) as cluster:
        cluster.call(lambda: cluster.create("namespaces", NAMESPACE))
        controllers = cluster.call(lambda: SandboxControllers(cluster))
        try:
            yield controllers
        finally:
            cluster.await_(controllers.aclose)


def router_flags(controllers: SandboxControllers, folder: Path, tenant: str = "acme") -> list[str]:
    """How a gateway reaches the cluster, as the router of its Sandboxes."""
    config = controllers.cluster.kubeconfig(folder)
    return ["--engine", "kubernetes", "--kubeconfig", str(config), "--kube-router-tenants", f"{NAMESPACE}={tenant}"]
