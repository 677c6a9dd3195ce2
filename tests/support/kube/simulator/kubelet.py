"""Scheduler and kubelet: pods get a node, an address in 127/8, and a real picod that is probed.

Containers run in bubblewrap on the machine's own files, so that the mounts of the pod's spec are real: emptyDirs,
ConfigMaps, the workspace. A container without `command` runs what our image's entry point is: picod on all addresses,
which here is the pod's.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
import signal
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gateway.core.units import parse_quantity
from gateway.provider.local import consumption, process_tree
from gateway.provider.local.bwrap import find_bwrap
from gateway.provider.local.cgroups import Cgroup
from tests.support.kube.simulator.objects import BY_PLURAL, PODS, ApiError, Change, Kind, Object, Objects, now_text

ROOT = Path(__file__).resolve().parents[4]
_HIDDEN = {"proc", "dev", "tmp", "workspace", "sys", "etc", "run", "var", "lost+found"}
_CLUSTERS = itertools.count()  # clusters of one process, and of processes side by side, keep apart


@dataclass
class _Running:
    """A pod that this kubelet looks after."""

    task: asyncio.Task[None]
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)


class Kubelet:
    """One kubelet for all nodes. `hollow`: pods get ready without a process, after `start_time` seconds. `schedules`:
    it is the scheduler, too; else pods are taken up once somebody has bound them to a node."""

    def __init__(self, objects: Objects, *, hollow: bool = False, schedules: bool = True) -> None:
        self.objects = objects
        self.hollow = hollow
        self._schedules = schedules
        self.start_time = 0.02
        self.probe_time = 0.0  # until the first probe of readiness; really up to a second after picod is ready
        self.notice_time = 0.05  # from a container's end until anybody is told, or it is started again; really a second
        self.sync_time = 0.2  # until a changed ConfigMap or Secret is in running pods; a real kubelet's is a minute
        self._mounted: dict[Path, tuple[str, str, str]] = {}  # volume -> plural, namespace, name
        self.bad_images: set[str] = set()
        self.resize_time = 0.05  # until a resize is done, or put off; really a second
        self.most_memory = float("inf")  # bytes that a container can be resized to on these nodes
        self.full = False  # no resize is done as long as it is so: others have the room
        self._sizes: dict[str, dict[str, Object]] = {}  # uid -> container -> the resources that it has
        self._running: dict[str, _Running] = {}
        self._lost: set[str] = set()  # on machines that are gone
        self._silent: list[socket.socket] = []  # see `silence`
        self._addresses = itertools.count(2)
        self._subnet = os.getpid() // 250 + 37 * next(_CLUSTERS)
        self._folder = Path(tempfile.mkdtemp(prefix="kubelet-"))
        objects.listen(self._note)

    def metrics(self, uid: str) -> tuple[float, float] | None:
        """Seconds of CPU since the start, and bytes, of a pod's processes. None for one that does not run."""
        running = self._running.get(uid)
        if running is None:
            return None
        pids = [pid for process in running.processes for pid in process_tree.descendants(process.pid)]
        cpu = sum(consumption.cpu_s(Cgroup({}), process.pid) for process in running.processes)
        return cpu, sum(map(_resident_bytes, pids))

    def kill(self, uid: str, number: int = signal.SIGKILL) -> None:
        """End a pod's processes from outside, as the kernel does when memory is short."""
        for process in self._running[uid].processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def evict_for_volume(self, pod: Object, name: str) -> None:
        """End a pod as for an emptyDir beyond its limit: containers end well, and only an event gives the reason."""
        self.lose(pod["metadata"]["uid"])
        present, limit = self._present(pod), "256Mi"
        self.objects.create(
            BY_PLURAL["events"],
            pod["metadata"]["namespace"],
            {
                "metadata": {"name": f"{pod['metadata']['name']}.evicted"},
                "involvedObject": {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
                "type": "Warning",
                "reason": "Evicted",
                "message": f'Usage of EmptyDir volume "{name}" exceeds the limit "{limit}". ',
                "lastTimestamp": now_text(),
            },
        )
        self._containers(present, {"terminated": {"reason": "Completed", "exitCode": 0}}, 0)
        self._set(present, phase="Succeeded")

    def volume(self, uid: str, name: str) -> Path:
        """Where a pod's volume lies on the machine."""
        return self._folder / uid / name

    def volumes(self, name: str) -> list[Path]:
        """Where the volumes of that name of all pods lie."""
        return [path for path in self._folder.glob(f"*/{name}") if path.is_dir()]

    def lose(self, uid: str) -> None:
        """The pod's machine has failed: its processes end, and the kubelet no longer manages it."""
        self._lost.add(uid)
        self._running[uid].task.cancel()

    async def silence(self, uid: str, address: str, port: int) -> None:
        """Like `lose`, and connections to the pod are not refused but never accepted, as on a machine that is off.

        The kernel drops a SYN to a listener whose queue is full (tcp(7), listen(2)).
        """
        task = self._running[uid].task
        self.lose(uid)
        await asyncio.gather(task, return_exceptions=True)
        listener = None
        while listener is None:
            try:
                listener = socket.create_server((address, port), backlog=0)
            except OSError:  # bubblewrap is dead, and what runs in its namespace a moment later
                await asyncio.sleep(0.01)
        self._silent.append(listener)
        for _ in range(2):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
            self._silent.append(waiting)

    async def aclose(self) -> None:
        """End every pod's process and delete their volumes."""
        tasks = [running.task for running in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in self._silent:
            each.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _note(self, kind: Kind, change: Change) -> None:
        if kind is not PODS:
            if kind.plural in ("configmaps", "secrets") and change.type == "MODIFIED":
                asyncio.get_running_loop().call_later(self.sync_time, self._sync, kind.plural)
            if kind.plural == "nodes":
                for pod in self.objects.all(PODS):
                    if not pod["spec"].get("nodeName"):
                        asyncio.get_running_loop().call_soon(self._schedule, pod)
            return
        pod = change.new
        uid = pod["metadata"]["uid"]
        running = self._running.get(uid)
        if self._schedules and change.type == "ADDED":
            asyncio.get_running_loop().call_later(0.002, self._schedule, pod)
        elif (
            not self._schedules
            and running is None
            and change.type != "DELETED"
            and is_due(pod)
            and uid not in self._lost
        ):
            running = self._take_up(pod)
        if running is not None and (change.type == "DELETED" or "deletionTimestamp" in pod["metadata"]):
            running.ending.set()
        elif running is not None and uid in self._sizes and self._sizes[uid] != _sizes_of(pod):
            asyncio.get_running_loop().call_later(self.resize_time, self._resize, pod)

    def _schedule(self, pod: Object) -> None:
        uid, selector = pod["metadata"]["uid"], pod["spec"].get("nodeSelector") or {}
        if uid in self._running:
            return
        nodes = [
            n for n in self.objects.all(BY_PLURAL["nodes"])
            if selector.items() <= n["metadata"].get("labels", {}).items()
            and not n.get("spec", {}).get("unschedulable")
        ]  # fmt: skip
        if not nodes:
            message = f"0/{len(self.objects.all(BY_PLURAL['nodes']))} nodes are available"
            self._set(pod, conditions=[_condition("PodScheduled", False, "Unschedulable", message)])
            return
        node = nodes[hash(uid) % len(nodes)]["metadata"]["name"]

        def bind(present: Object) -> Object:
            present["spec"]["nodeName"] = node
            present["status"] |= {"conditions": [_condition("PodScheduled", True)]}
            return present

        with suppress(ApiError):
            bound = self.objects.update(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], bind)
            self._take_up(bound)

    def _resize(self, seen: Object) -> None:
        """Give a pod's containers the resources of its spec, or say why not."""
        uid = seen["metadata"]["uid"]
        with suppress(ApiError):
            pod = self._present(seen)
            wanted = _sizes_of(pod)
            if uid not in self._running or pod["metadata"]["uid"] != uid:
                return
            said = _condition("PodResizePending", False)
            if any(parse_quantity(each["limits"]["memory"]) > self.most_memory for each in wanted.values()):
                said = _condition("PodResizePending", True, "Infeasible", "Node didn't have enough capacity: memory")
            elif self.full and wanted != self._sizes[uid]:
                said = _condition("PodResizePending", True, "Deferred", "Node didn't have enough resource: memory")
                asyncio.get_running_loop().call_later(0.2, self._resize, seen)
            else:
                self._sizes[uid] = wanted
            statuses = [
                {**each, "resources": self._sizes[uid][each["name"]]} for each in pod["status"]["containerStatuses"]
            ]
            rest = [each for each in pod["status"].get("conditions", []) if each["type"] != said["type"]]
            self._set(pod, containerStatuses=statuses, conditions=[*rest, said])

    def _take_up(self, pod: Object) -> _Running:
        running = _Running(asyncio.get_running_loop().create_task(self._look_after(pod)))
        self._running[pod["metadata"]["uid"]] = running
        return running

    async def _look_after(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        await asyncio.sleep(0)
        running = self._running[uid]
        try:
            await self._live(pod, running)
        except ApiError:
            pass  # the pod was taken away meanwhile
        except Exception:
            traceback.print_exc()
        finally:
            for process in running.processes:
                _kill(process)
            await asyncio.gather(*(process.wait() for process in running.processes))
            del self._running[uid]
            self._sizes.pop(uid, None)
            shutil.rmtree(self._folder / uid, ignore_errors=True)

    async def _live(self, pod: Object, running: _Running) -> None:
        images = {container["image"] for container in pod["spec"]["containers"]}
        n = next(self._addresses)
        address = f"127.{os.getpid() % 250 + 2}.{(self._subnet + n // 250) % 256}.{n % 250 + 2}"
        self._set(pod, podIP=address, hostIP="127.0.0.1", startTime=now_text())
        if bad := images & self.bad_images:
            for reason in ("ErrImagePull", "ImagePullBackOff"):
                waiting = {"reason": reason, "message": f'failed to pull image "{bad.pop() if bad else ""}"'}
                self._containers(pod, {"waiting": waiting}, 0)
                await asyncio.sleep(0.05)
            await running.ending.wait()
        restarts = 0
        while not running.ending.is_set():
            how = await self._run_once(pod, running, address, restarts)
            if how is None:
                break
            restarts += 1
            if how == "DeadlineExceeded" or pod["spec"]["restartPolicy"] == "Never":
                self._failed(pod, how, restarts)
                return
            self._containers(pod, {"waiting": {"reason": "CrashLoopBackOff", "message": how}}, restarts, last=how)
            # The first restart is at once, later ones wait; a real kubelet's pauses are 10 s and more.
            await _first(running.ending.wait(), asyncio.sleep(0.05 * (restarts - 1)))
        await self._end(pod, running)

    async def _run_once(self, pod: Object, running: _Running, address: str, restarts: int) -> str | None:
        """Start the containers and wait until one ends (returns how) or the pod is to end (None)."""
        running.processes.clear()
        if self.hollow:
            await _first(asyncio.sleep(self.start_time), running.ending.wait())
            self._ready(pod, True, restarts)
            await running.ending.wait()
            return None
        for container in pod["spec"].get("initContainers") or ():
            how = await self._initialise(pod, container, running, address)
            if how is None or how:
                return how
        for container in pod["spec"]["containers"]:
            running.processes.append(await self._start(pod, container, address))
        ended = [asyncio.ensure_future(process.wait()) for process in running.processes]
        probes = asyncio.ensure_future(self._probe(pod, address, restarts))
        stop = asyncio.ensure_future(running.ending.wait())
        try:
            done, _ = await asyncio.wait({*ended, stop, probes}, return_when="FIRST_COMPLETED")
            if probes in done:
                return probes.result() or None
            if stop in done:
                return None
            status = next(task.result() for task in ended if task.done())
            await _first(asyncio.sleep(self.notice_time), running.ending.wait())
            return "OOMKilled" if status == -signal.SIGKILL else f"Error {status}"
        finally:
            for task in (*ended, probes, stop):
                task.cancel()
            if running.ending.is_set() is False:
                for process in running.processes:
                    _kill(process)

    async def _initialise(self, pod: Object, container: Object, running: _Running, address: str) -> str | None:
        """Run an init container to its end. Returns "" if that was well, else how; None: the pod is to end."""
        process = await self._start(pod, container, address)
        running.processes.append(process)
        self._init(pod, container, {"running": {"startedAt": now_text()}})
        ended = asyncio.ensure_future(process.wait())
        try:
            await _first(asyncio.shield(ended), running.ending.wait())
            if not ended.done():
                return None
        finally:
            _kill(process)
            await ended
        running.processes.remove(process)
        status = ended.result()
        self._init(pod, container, {"terminated": {"exitCode": status, "reason": "Error" if status else "Completed"}})
        return f"Error {status}" if status else ""

    def _init(self, pod: Object, container: Object, state: Object) -> None:
        known = self._present(pod)["status"].get("initContainerStatuses") or []
        entry = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
        entry |= {"ready": "terminated" in state, "state": state}
        self._set(pod, initContainerStatuses=[*(each for each in known if each["name"] != entry["name"]), entry])

    async def _probe(self, pod: Object, address: str, restarts: int) -> str:
        """Readiness, and the deadline. Returns DeadlineExceeded when that is over, nothing when the pod is gone."""
        with suppress(ApiError):
            return await self._probe_on(pod, address, restarts)
        return ""

    async def _probe_on(self, pod: Object, address: str, restarts: int) -> str:
        container = pod["spec"]["containers"][0]
        probe = container.get("readinessProbe", {})
        target = probe.get("httpGet") or probe.get("tcpSocket")
        was = False
        await asyncio.sleep(self.probe_time)
        while True:
            ready = target is None or await _answers(
                address, target["port"], target.get("path", "/"), any_answer="tcpSocket" in probe
            )
            if ready != was:
                self._ready(pod, ready, restarts)
                was = ready
            present = self.objects.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            limit = present["spec"].get("activeDeadlineSeconds")
            if limit is not None and _age(present["status"]["startTime"]) > limit:
                return "DeadlineExceeded"
            await asyncio.sleep(0.02 if not was else 0.2)

    async def _end(self, pod: Object, running: _Running) -> None:
        with suppress(ApiError):
            present = self.objects.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])
            grace = present["metadata"].get("deletionGracePeriodSeconds") or 0
            ends = asyncio.get_running_loop().time() + grace
            for container in present["spec"]["containers"]:
                hook = container.get("lifecycle", {}).get("preStop", {}).get("exec")
                if hook and running.processes:
                    await self._hook(present, container, hook["command"], grace)
            grace = max(0.0, ends - asyncio.get_running_loop().time())
            for process in running.processes:
                _terminate(process)
            if running.processes:
                await _first(asyncio.gather(*(process.wait() for process in running.processes)), asyncio.sleep(grace))
            self.objects.remove(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])

    async def _start(self, pod: Object, container: Object, address: str) -> asyncio.subprocess.Process:
        args = self._mounts(pod, container)
        command = [*container.get("command", []), *container.get("args", [])]
        if not container.get("command"):
            port = container["ports"][0]["containerPort"]
            # Pods share the machine's loopback, where 127.0.0.1:3128 could be one pod's only.
            hosts = ["--host", address, "--egress-host", address]
            command = [sys.executable, "-m", "picod", *hosts, "--port", str(port), *command]
        environ = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        for variable in container.get("env", []):
            environ[variable["name"]] = self._value(pod, variable, address).replace("127.0.0.1:3128", f"{address}:3128")
        bwrap = find_bwrap()
        assert bwrap is not None
        workdir = container.get("workingDir", "/")
        log = open(self._folder / f"{pod['metadata']['name']}.log", "ab")  # noqa: SIM115 - the process has it
        try:
            spawn = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    str(bwrap), *args, "--chdir", workdir, "--", *command,
                    env=environ, stdout=log, stderr=log, start_new_session=True,
                )
            )  # fmt: skip
            try:
                return await asyncio.shield(spawn)
            except asyncio.CancelledError:
                _kill(await spawn)
                raise
        finally:
            log.close()

    async def _hook(self, pod: Object, container: Object, command: list[str], grace: float) -> None:
        """Run a preStop hook on the container's mounts, for as long as the grace lasts or is not made shorter."""
        bwrap = find_bwrap()
        assert bwrap is not None
        hook = await asyncio.create_subprocess_exec(str(bwrap), *self._mounts(pod, container), "--", *command)
        ended = asyncio.ensure_future(hook.wait())
        began = asyncio.get_running_loop().time()
        try:
            while not ended.done():
                left = self._present(pod)["metadata"]["deletionGracePeriodSeconds"]
                if asyncio.get_running_loop().time() - began > left:
                    return
                await asyncio.wait({ended}, timeout=0.05)
        finally:
            with suppress(ProcessLookupError):
                hook.kill()
            await ended

    def _mounts(self, pod: Object, container: Object) -> list[str]:
        """bwrap's arguments for a container's view of the machine."""
        folder, args = self._folder / pod["metadata"]["uid"], _view()
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for mount in sorted(container.get("volumeMounts", []), key=lambda each: str(each["mountPath"])):
            source = self._volume(folder, pod, volumes[mount["name"]])
            args += ["--ro-bind" if mount.get("readOnly") else "--bind", str(source), mount["mountPath"]]
        for path in (str(ROOT), os.path.realpath(sys.prefix)):  # last: a checkout may lie below a mount, such as /tmp
            args += ["--ro-bind", path, path]
        return args

    def _volume(self, folder: Path, pod: Object, volume: Object) -> Path:
        path: Path = folder / volume["name"]
        path.mkdir(parents=True, exist_ok=True)
        for source, plural in (("configMap", "configmaps"), ("secret", "secrets")):
            if source in volume:
                name = volume[source].get("name") or volume[source]["secretName"]
                try:
                    obj = self.objects.get(BY_PLURAL[plural], pod["metadata"]["namespace"], name)
                except ApiError:
                    if volume[source].get("optional"):
                        continue
                    raise
                self._mounted[path] = (plural, pod["metadata"]["namespace"], name)
                _show(path, obj, secret=source == "secret")
        return path

    def _sync(self, plural: str) -> None:
        """Bring the volumes of running pods up to date."""
        for path, (kind, namespace, name) in list(self._mounted.items()):
            if not path.exists():
                del self._mounted[path]
            elif kind == plural:
                with suppress(ApiError):
                    _show(path, self.objects.get(BY_PLURAL[plural], namespace, name), secret=plural == "secrets")

    def _value(self, pod: Object, variable: Object, address: str) -> str:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            known = {
                "metadata.uid": pod["metadata"]["uid"],
                "metadata.name": pod["metadata"]["name"],
                "metadata.namespace": pod["metadata"]["namespace"],
                "status.podIP": address,
            }
            return str(known[source["fieldRef"]["fieldPath"]])
        return str(variable.get("value", ""))

    # Status.

    def _set(self, pod: Object, **status: Any) -> None:
        def change(present: Object) -> Object:
            return {**present, "status": {**present["status"], **status}}

        with suppress(ApiError):
            self.objects.update(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"], change)

    def _containers(self, pod: Object, state: Object, restarts: int, *, ready: bool = False, last: str = "") -> None:
        entry: Object = {"name": "", "ready": ready, "restartCount": restarts, "state": state}
        if last:
            entry["lastState"] = {"terminated": {"reason": "OOMKilled" if last == "OOMKilled" else "Error",
                                                 "exitCode": 137 if last == "OOMKilled" else 1}}  # fmt: skip
            if any(
                each.get("terminationMessagePolicy") == "FallbackToLogsOnError" for each in pod["spec"]["containers"]
            ):
                log = self._folder / f"{pod['metadata']['name']}.log"
                entry["lastState"]["terminated"]["message"] = log.read_text(errors="replace")[-2048:]
        sizes = self._sizes.setdefault(pod["metadata"]["uid"], _sizes_of(pod))
        statuses = [
            {
                **entry, "name": container["name"], "image": container["image"], "imageID": "",
                "resources": sizes[container["name"]],
            }
            for container in pod["spec"]["containers"]
        ]  # fmt: skip
        kept = [c for c in self._present(pod)["status"].get("conditions", []) if c["type"] == "PodScheduled"]
        both = [_condition(kind, ready) for kind in ("Ready", "ContainersReady")]
        self._set(pod, containerStatuses=statuses, conditions=[*kept, *both])

    def _ready(self, pod: Object, ready: bool, restarts: int) -> None:
        self._set(pod, phase="Running")
        self._containers(pod, {"running": {"startedAt": now_text()}}, restarts, ready=ready)

    def _failed(self, pod: Object, how: str, restarts: int) -> None:
        terminated = {"reason": how.split()[0], "exitCode": 137 if how == "OOMKilled" else 1}
        self._containers(pod, {"terminated": terminated}, restarts - 1)
        extra = {"reason": how} if how == "DeadlineExceeded" else {}
        self._set(pod, phase="Failed", **extra)

    def _present(self, pod: Object) -> Object:
        return self.objects.get(PODS, pod["metadata"]["namespace"], pod["metadata"]["name"])


def is_due(pod: Object) -> bool:
    """Whether a kubelet has to look after it: on a node, and not ended."""
    return bool(pod["spec"].get("nodeName")) and pod["status"].get("phase") not in ("Succeeded", "Failed")


def _sizes_of(pod: Object) -> dict[str, Object]:
    """The resources of a pod's containers by its spec."""
    return {each["name"]: each.get("resources") or {} for each in pod["spec"]["containers"]}


def hollow_pod(runtime: str, index: int) -> Object:
    """A claimed, ready pod of a runtime, as large as real ones are; made in place of running."""
    from gateway.core.model import Runtime, RuntimeKey
    from gateway.provider.kubernetes.build import make_cold_pod
    from gateway.provider.kubernetes.template import PodDefaults, make_template

    template = make_template(Runtime(RuntimeKey("default", runtime)), PodDefaults("wakegate/picod:0.1.0"))
    owner = Runtime(RuntimeKey("default", runtime))
    pod = make_cold_pod(owner, template, f"{runtime}-{index:06d}", str(uuid.uuid4()), uuid.uuid4().hex)
    pod["metadata"] |= {"uid": str(uuid.uuid4()), "creationTimestamp": now_text()}
    pod["spec"]["nodeName"] = f"node-{index % 100}"
    running = {"running": {"startedAt": now_text()}}
    pod["status"] = {
        "phase": "Running",
        "podIP": f"127.0.{index // 250 % 250}.{index % 250 + 2}",
        "startTime": now_text(),
        "conditions": [_condition(kind, True) for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")],
        "containerStatuses": [
            {"name": "picod", "ready": True, "restartCount": 0, "state": running, "image": "x", "imageID": ""}
        ],
    }
    return pod


def _show(volume: Path, obj: Object, *, secret: bool) -> None:
    """Files as a kubelet writes them, all at once: a folder of this moment, `..data` to it, and a link for each key."""
    data = {key: base64.b64decode(text) if secret else text.encode() for key, text in obj.get("data", {}).items()}
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=volume))
    fresh.chmod(0o755)
    for key, content in data.items():
        (fresh / key).write_bytes(content)
    old = (volume / "..data").resolve() if (volume / "..data").exists() else None
    (volume / "..data_tmp").symlink_to(fresh.name)
    (volume / "..data_tmp").rename(volume / "..data")
    for link in volume.iterdir():
        if link.is_symlink() and not link.name.startswith("..") and link.name not in data:
            link.unlink()
    for key in data:
        if not (volume / key).is_symlink():
            (volume / key).symlink_to(f"..data/{key}")
    if old is not None:
        shutil.rmtree(old)


def _view() -> list[str]:
    """bwrap's arguments for the machine's own files, with what a container has of its own."""
    args = ["--unshare-user", "--unshare-pid", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
    args += ["--tmpfs", "/tmp", "--dir", "/workspace", "--dir", "/run"]
    for name in sorted(set(os.listdir("/")) - _HIDDEN):
        path = f"/{name}"
        if os.path.islink(path):
            args += ["--symlink", os.readlink(path), path]
        elif name == "opt":  # where images and agents have folders of their own
            for each in sorted(os.listdir(path)):
                args += ["--ro-bind", f"{path}/{each}", f"{path}/{each}"]
        elif os.path.isdir(path):
            args += ["--ro-bind", path, path]
    return [*args, "--ro-bind", "/etc", "/etc"]


async def _answers(address: str, port: int, path: str, *, any_answer: bool) -> bool:
    try:
        reader, writer = await asyncio.open_connection(address, port)
    except OSError:
        return False
    try:
        if any_answer:
            return True
        writer.write(f"GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n".encode())
        line = await asyncio.wait_for(reader.readline(), 1.0)
        return b" 200" in line
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill its process group: bwrap's child gets its parent's death signal only after it has asked for it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _terminate(process: asyncio.subprocess.Process) -> None:
    """SIGTERM to the container's own process, as a runtime sends it; bubblewrap around it would end at once."""
    for pid in process_tree.descendants(process.pid):
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() != "bwrap":
                os.kill(pid, signal.SIGTERM)
                return
    with suppress(ProcessLookupError):
        process.terminate()


async def _first(*awaitables: Any) -> None:
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Object:
    said: Object = {"type": kind, "status": "True" if holds else "False", "lastTransitionTime": now_text()}
    return said | ({"reason": reason, "message": message} if reason else {})


def _age(text: str) -> float:
    return (datetime.now(UTC) - datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)).total_seconds()


Listener = Callable[[Kind, Change], None]


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # it ended meanwhile
