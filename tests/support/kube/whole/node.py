"""One node: namespaces with a first process, and in them containerd, kubelet, kube-proxy and kube-router."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.support.kube.whole import network
from tests.support.waiting import wait_until

INIT = Path(__file__).with_name("node-init")
PAUSE = "wakegate.test/pause:1"
SOCKET = "/run/containerd/containerd.sock"
_CTR = ("ctr", "--address", SOCKET, "--namespace", "k8s.io")
_KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "cgroupDriver": "cgroupfs",
    "containerRuntimeEndpoint": f"unix://{SOCKET}",
    "clusterDNS": [network.PLANE],
    "clusterDomain": "cluster.local",
    "failSwapOn": False,
    "failCgroupV1": False,
    "resolvConf": "",
    "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}},
    "authorization": {"mode": "Webhook"},
    "maxPods": 110,
    "oomScoreAdj": 0,
    # Nodes share the machine's disk: one that others fill is no fault of a pod.
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    "imageGCHighThresholdPercent": 100,
}
_CNI = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True,
            "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]},
        },
    ],
}  # fmt: skip
_ABSENT = ", ".join(f'"io.containerd.snapshotter.v1.{name}"' for name in ("aufs", "btrfs", "devmapper", "zfs"))
_CONTAINERD = f"""
version = 2
disabled_plugins = [{_ABSENT}]
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # So that root need not have CAP_SYS_RESOURCE, which a sandbox takes away.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


class Node:
    """`start`, `kill`, and start again: its disk stays, and nothing else."""

    def __init__(self, number: int, folder: Path, programs: Path, group: str) -> None:
        self.number, self.name = number, f"node-{number}"
        self.address = network.node_address(number)
        self._folder, self._programs, self._group = folder / self.name, programs, group
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._first: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._folder.mkdir(parents=True, exist_ok=True)
        self.kubeconfigs = self._folder  # kubelet.kubeconfig, kube-proxy.kubeconfig, kube-router.kubeconfig

    def start(self, ca: Path) -> None:
        """Boot it: namespaces, network, containerd."""
        with open(self._folder / "init.log", "ab") as log:
            self._first = subprocess.Popen(
                ["bash", str(INIT), str(self._folder), self.name, self._group], stdout=log, stderr=log
            )
        process = psutil.Process(self._first.pid)
        wait_until(lambda: process.name() == "unshare" and process.children(), "the node's first process")
        self._pid = process.children()[0].pid
        wait_until(lambda: Path(f"/proc/{self._pid}/root/run/ready").exists(), f"{self.name} boots")
        network.plug(self.number, self._pid, self.inside)
        self._write_configuration(ca)
        self.start_containerd()

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a command in the node."""
        return ("nsenter", "--target", str(self._pid), "--net", "--pid", "--mount", "--ipc", "--uts", "--cgroup", "--")

    def import_images(self, archives: Sequence[Path], unpacked: Path) -> None:
        """Give containerd images from archives, or a copy of the disk of a node that has them unpacked.

        Its layers are never written to, so they are shared by hard links; its databases are copied.
        """
        disk = self._folder / "disk/var/lib/containerd"
        if not unpacked.exists():
            for archive in archives:
                self.call(*_CTR, "images", "import", str(archive), within=300)
            self.stop("containerd")
            _copy_linked(disk, unpacked.with_suffix(".part"))
            unpacked.with_suffix(".part").rename(unpacked)
        else:
            self.stop("containerd")
            _copy_linked(unpacked, disk)
        self.start_containerd()

    def start_kubelet(self) -> None:
        """And once more after `stop("kubelet")`, with what is on the disk."""
        self.run(
            "kubelet", str(self._programs / "kubelet"), f"--config={self._folder / 'kubelet.json'}",
            f"--kubeconfig={self.kubeconfigs / 'kubelet.kubeconfig'}", f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )  # fmt: skip

    def start_network(self) -> None:
        """kube-proxy for Services; kube-router for NetworkPolicies, once the node has pods' addresses of its own."""
        self.run(
            "kube-proxy", str(self._programs / "kube-proxy"), f"--config={self._folder / 'kube-proxy.json'}",
            f"--hostname-override={self.name}",
        )  # fmt: skip
        if (self._programs / "kube-router").exists():
            self.run(
                "kube-router", str(self._programs / "kube-router"), "--run-router=false", "--run-service-proxy=false",
                "--run-firewall=true", f"--kubeconfig={self.kubeconfigs / 'kube-router.kubeconfig'}",
                f"--hostname-override={self.name}", f"--service-cluster-ip-range={network.SERVICES}",
                "--iptables-sync-period=60s", "--health-port=0", "--metrics-port=0",
            )  # fmt: skip

    def run(self, name: str, *argv: str) -> None:
        """Start a program in the node; its output goes into a log, and its process id inside into a file."""
        note = 'echo $$ >/run/programs/"$0"; exec "$@"'
        with open(self._folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [*self.inside, "sh", "-c", note, name, *argv], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/root", "NODE_NAME": self.name},
            )  # fmt: skip

    def stop(self, name: str) -> None:
        """kill -9 a program; its children, such as the shims of containers, stay."""
        process = self._processes.pop(name)
        self.call("sh", "-c", f"kill -9 $(cat /run/programs/{name})")
        process.wait()

    def start_containerd(self) -> None:
        """And once more after `stop("containerd")`."""
        self.run("containerd", "containerd", "--config", str(self._folder / "containerd.toml"))
        wait_until(lambda: self._tried(*_CTR, "version"), "containerd answers", within=60)

    def call(self, *argv: str, within: float = 60) -> str:
        """Run a command in the node. Returns its output; raises AssertionError."""
        done = subprocess.run([*self.inside, *argv], capture_output=True, text=True, timeout=within)
        assert done.returncode == 0, f"{self.name}: {' '.join(argv)}: {done.stdout}{done.stderr}"
        return done.stdout

    def _tried(self, *argv: str) -> bool:
        return subprocess.run([*self.inside, *argv], capture_output=True).returncode == 0

    def ended(self) -> list[str]:
        """Programs that are to run and do not."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def log(self, name: str) -> str:
        """What a program has logged so far."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def kill(self) -> None:
        """The machine is gone from one moment to the next, with all that ran on it."""
        if self._first is None:
            return
        os.kill(self._pid, signal.SIGKILL)
        self._first.wait()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        self._first = None

    def _write_configuration(self, ca: Path) -> None:
        kubelet = {**_KUBELET, "authentication": {**_KUBELET["authentication"], "x509": {"clientCAFile": str(ca)}}}  # type: ignore[dict-item]
        (self._folder / "kubelet.json").write_text(json.dumps(kubelet))
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clusterCIDR": network.PODS,
            "oomScoreAdj": 0,
            "clientConnection": {"kubeconfig": str(self.kubeconfigs / "kube-proxy.kubeconfig")},
            # Not in a network namespace's power.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        (self._folder / "kube-proxy.json").write_text(json.dumps(proxy))
        (self._folder / "containerd.toml").write_text(_CONTAINERD)
        cni = json.loads(json.dumps(_CNI))
        cni["plugins"][0]["ipam"]["subnet"] = network.pods_of(self.number)
        place = self._folder / "disk/etc/cni/net.d"
        place.mkdir(parents=True, exist_ok=True)
        (place / "10-pods.conflist").write_text(json.dumps(cni))


def _copy_linked(source: Path, target: Path) -> None:
    """What is in the target goes; the folder itself stays, for it is mounted."""
    target.mkdir(parents=True, exist_ok=True)
    for each in target.iterdir():
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()
    subprocess.run(["cp", "-al", f"{source}/.", str(target)], check=True)
    for database in source.rglob("*.db"):
        copy = target / database.relative_to(source)
        copy.unlink()
        shutil.copy2(database, copy)
