"""What runs pods where no kubelet does: each gets an address of this machine's loopback, a server there, and is Ready.

For pods whose images are beside the point, of controllers that are real.
"""

from __future__ import annotations

import itertools
import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_LOOK_S = 0.1
_ADDRESSES = itertools.count(2)


class PodServers:
    """Follows the pods of a namespace, from `start` to `stop`. Each server answers the name of its pod, and its UID."""

    def __init__(self, client: httpx.Client, namespace: str, port: int) -> None:
        self._client, self._path, self._port = client, f"/api/v1/namespaces/{namespace}/pods", port
        self._servers: dict[str, ThreadingHTTPServer] = {}  # by UID
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="pods")

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """End all servers."""
        self._stop.set()
        self._thread.join()
        for uid in list(self._servers):
            self._end(uid)

    def _follow(self) -> None:
        while not self._stop.wait(_LOOK_S):
            with suppress(httpx.HTTPError):
                pods = {pod["metadata"]["uid"]: pod for pod in self._client.get(self._path).json()["items"]}
                for uid in self._servers.keys() - pods.keys():
                    self._end(uid)
                for uid in pods.keys() - self._servers.keys():
                    self._begin(uid, pods[uid]["metadata"]["name"])

    def _begin(self, uid: str, name: str) -> None:
        number = next(_ADDRESSES)
        address = f"127.{os.getpid() % 250 + 2}.{250 - number // 250}.{number % 250 + 2}"
        said = f"{name} {uid}".encode()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        server = self._servers[uid] = ThreadingHTTPServer((address, self._port), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        kinds = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
        status = {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": kind, "status": "True"} for kind in kinds],
        }  # fmt: skip
        headers = {"content-type": "application/merge-patch+json"}
        self._client.patch(f"{self._path}/{name}/status", json={"status": status}, headers=headers)

    def _end(self, uid: str) -> None:
        server = self._servers.pop(uid)
        server.shutdown()
        server.server_close()
