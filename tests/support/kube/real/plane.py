"""The processes of a control plane, with certificates, tokens and RBAC as a cluster has them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import httpx
import yaml

from tests.support.kube.real.certificates import Authority

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
SCHEDULERS = ("default-scheduler", "agent-scheduler", "volcano")
_START_S = 90.0

# What each client is, as a token of the API server: user and groups.
_CLIENTS = {
    "admin": ("admin", "system:masters"),
    "kubelet": ("kubelet", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
}
_NO_CLIENTS: Mapping[str, tuple[str, str]] = MappingProxyType({})
_NO_FLAGS: Mapping[str, Sequence[str]] = MappingProxyType({})


class Plane:
    """A control plane's processes. Logs and data are in `folder`.

    `address` and `port`: where its API is; `hosts`: further names for its certificate. `clients`: further users, as
    `_CLIENTS` has them. `flags`: further flags of a program.
    """

    def __init__(
        self,
        programs: Path,
        folder: Path,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        hosts: Sequence[str] = (),
        clients: Mapping[str, tuple[str, str]] = _NO_CLIENTS,
        flags: Mapping[str, Sequence[str]] = _NO_FLAGS,
    ) -> None:
        self._programs, self._folder, self._address, self._more = programs, folder, address, flags
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd, self._peer, free = _free_ports(3)
        self.port = port or free
        self._clients = {**_CLIENTS, **clients}
        self.tokens = {name: secrets.token_hex(16) for name in self._clients}
        folder.mkdir(parents=True, exist_ok=True)
        authority = Authority(folder)
        self.ca = authority.certificate
        authority.sign("server", "kube-apiserver", hosts=("127.0.0.1", "localhost", *hosts))
        authority.sign("kubelet-client", "kube-apiserver", group="system:masters")
        authority.make_account_key()

    @property
    def url(self) -> str:
        """The URL of the API server."""
        return f"https://{self._address}:{self.port}"

    def kubeconfig(self, token: str, path: Path) -> Path:
        """A kubeconfig file for whoever has that token."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "real", "cluster": cluster}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [{"name": "real", "context": {"cluster": "real", "user": "tester"}}],
            "current-context": "real",
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def log(self, name: str) -> str:
        """What a program has logged so far."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def start(self) -> None:
        """Everything, until the API server is ready and the default service account is there."""
        rows = [f'{self.tokens[name]},{user},{name},"{group}"' for name, (user, group) in self._clients.items()]
        (self._folder / "tokens.csv").write_text("\n".join(rows) + "\n")
        self.start_etcd()
        self.start_api()
        for name in ("controller-manager", "scheduler"):
            config = self.kubeconfig(self.tokens[name], self._folder / f"{name}.kubeconfig")
            self._run(
                f"kube-{name}", f"--kubeconfig={config}", "--leader-elect=false", "--bind-address=127.0.0.1",
                "--secure-port=0", *self._flags(name),
            )  # fmt: skip
        self.wait_for("/api/v1/namespaces/default/serviceaccounts/default")

    def start_etcd(self) -> None:
        """The data are those of before, if there were any."""
        here = f"http://127.0.0.1:{self._etcd}"
        peer = f"http://127.0.0.1:{self._peer}"
        self._run(
            "etcd", f"--data-dir={self._folder / 'etcd'}", f"--listen-client-urls={here}",
            f"--advertise-client-urls={here}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}", "--unsafe-no-fsync", "--log-level=warn",
        )  # fmt: skip

    def start_api(self) -> None:
        """On the same port as before, and wait until it is ready."""
        folder = self._folder
        self._run(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            f"--tls-cert-file={folder / 'server.crt'}",
            f"--tls-private-key-file={folder / 'server.key'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={folder / 'accounts.key'}",
            f"--service-account-signing-key-file={folder / 'accounts.key'}",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--profiling=false",
        )
        self.wait_for("/readyz")

    def stop_api(self) -> None:
        """kill -9, as a machine that fails."""
        self._stop("kube-apiserver")

    def compact(self) -> None:
        """Have etcd forget its history, as it does every five minutes."""
        base = f"http://127.0.0.1:{self._etcd}/v3/kv"
        head = httpx.post(f"{base}/range", json={"key": "YQ=="}).json()["header"]["revision"]
        httpx.post(f"{base}/compaction", json={"revision": head, "physical": True}).raise_for_status()

    def stop(self) -> None:
        """Stop all programs, the last started first."""
        for name in reversed(list(self._processes)):
            self._stop(name)

    def client(self, name: str = "admin") -> httpx.Client:
        """An HTTP client that is that one of the static users."""
        headers = {"authorization": f"Bearer {self.tokens[name]}"}
        return httpx.Client(
            base_url=self.url, headers=headers, verify=ssl.create_default_context(cafile=str(self.ca)), timeout=30
        )

    def _flags(self, name: str) -> list[str]:
        if name == "scheduler":
            return [f"--config={self._scheduler_config()}"]
        return [
            f"--service-account-private-key-file={self._folder / 'accounts.key'}",
            f"--root-ca-file={self.ca}",
            "--use-service-account-credentials=true",
            # A node that says nothing is lost after seconds here, and its pods go at once after their tolerations.
            "--node-monitor-grace-period=8s",
            "--node-monitor-period=1s",
            "--node-startup-grace-period=10s",
        ]

    def _scheduler_config(self) -> Path:
        """One scheduler that answers to several names, as pods may ask for one by its name."""
        path = self._folder / "scheduler.json"
        config = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self._folder / "scheduler.kubeconfig")},
            "leaderElection": {"leaderElect": False},
            "profiles": [{"schedulerName": name} for name in SCHEDULERS],
        }
        path.write_text(json.dumps(config))
        return path

    def _run(self, name: str, *flags: str) -> None:
        with open(self._folder / f"{name}.log", "ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self._programs / name), *flags, *self._more.get(name, ())],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env={"PATH": os.environ.get("PATH", ""), "HOME": str(self._folder), "GOMAXPROCS": "2"},
                start_new_session=True,
            )  # fmt: skip

    def _stop(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.kill()
            process.wait()

    def wait_for(self, path: str) -> None:
        """Until the server answers 200 there."""
        deadline = time.monotonic() + _START_S
        while not self._answers(path):
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended: {self.log(name)[-3000:]}"
            assert time.monotonic() < deadline, f"no {path} in {_START_S:g} s: {self.log('kube-apiserver')[-3000:]}"
            time.sleep(0.1)

    def _answers(self, path: str) -> bool:
        """By hand: httpx loses sight of a socket whose handshake a starting server breaks off."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection(self._address, self.port, timeout=10, context=context)
        try:
            connection.request("GET", path, headers={"authorization": f"Bearer {self.tokens['admin']}"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def missing(programs: Path) -> list[str]:
    """Of the programs of a control plane those that are not in the folder."""
    return [name for name in PROGRAMS if not os.access(programs / name, os.X_OK)]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def running(programs: Path, folder: Path) -> Iterator[Plane]:
    """Run a control plane for the length of a block."""
    plane = Plane(programs, folder)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
