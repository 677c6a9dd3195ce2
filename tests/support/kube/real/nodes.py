"""Nodes as a kubelet registers them and keeps them alive: a Lease, renewed, and the condition Ready.

The node controller takes Ready away when a lease grows old, as after a time without the API server, and leaves it to
the kubelet to say again that it is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import MappingProxyType

from tests.support.kube.real.objects import Store, path_of
from tests.support.kube.simulator.objects import BY_PLURAL, ApiError, Object, now_text

NODES, LEASES = BY_PLURAL["nodes"], BY_PLURAL["leases"]
_BEAT_S = 2.0
_SPACE = "kube-node-lease"
_NONE: Mapping[str, str] = MappingProxyType({})
_ROOM = {"cpu": "64", "memory": "64Gi", "pods": "500", "ephemeral-storage": "100Gi"}


class Nodes:
    """Some nodes, from `start` to `stop`; `lost` are those whose machine is gone."""

    def __init__(self, store: Store, count: int) -> None:
        self._store = store
        self.names = [f"node-{index}" for index in range(count)]
        self.lost: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="nodes")

    def start(self) -> None:
        """Register all, and begin to renew their leases."""
        for name in self.names:
            self.register(name)
        self._thread.start()

    def stop(self) -> None:
        """Take them out of the cluster."""
        self._stop.set()
        self._thread.join()
        for name in self.names:
            with suppress(ApiError):
                self._store.delete(NODES, "", name)
            with suppress(ApiError):
                self._store.delete(LEASES, _SPACE, name)

    def add(self, name: str, labels: Mapping[str, str], room: Mapping[str, str]) -> None:
        """One more, with labels and resources besides the usual ones."""
        self.register(name, labels, room)
        self.names.append(name)

    def register(self, name: str, more: Mapping[str, str] = _NONE, room: Mapping[str, str] = _NONE) -> None:
        """Register a node, as a starting kubelet does."""
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": "z",
            **more,
        }
        has = {**_ROOM, **room}
        with suppress(ApiError):
            self._store.create(NODES, "", {"metadata": {"name": name, "labels": labels}})
        self._renew(name)

        def with_room(present: Object) -> Object:
            return {**present, "status": {**present.get("status", {}), "capacity": has, "allocatable": has}}

        self._store.update(NODES, "", name, with_room)
        self._say_ready(name)

    def _say_ready(self, name: str) -> None:
        def ready(present: Object) -> Object:
            now = now_text()
            condition = {
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }  # fmt: skip
            return {**present, "status": {**present["status"], "conditions": [condition]}}

        said = self._store.get(NODES, "", name)["status"].get("conditions", [])
        if not any(each["type"] == "Ready" and each["status"] == "True" for each in said):
            self._store.update(NODES, "", name, ready)

    def _beat(self) -> None:
        while not self._stop.wait(_BEAT_S):
            for name in self.names:
                if name not in self.lost:
                    with suppress(Exception):  # the server may be away, which the next beat may find back
                        self._renew(name)
                        self._say_ready(name)

    def _renew(self, name: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now}
        try:
            patch = {"spec": spec}
            self._store.ask("PATCH", path_of(LEASES, _SPACE, name), patch, "application/merge-patch+json")
        except ApiError as error:
            if error.status != 404:
                raise
            self._store.create(LEASES, _SPACE, {"metadata": {"name": name}, "spec": spec})
