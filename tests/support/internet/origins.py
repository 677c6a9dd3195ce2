"""The world's hosts, in a network namespace of their own: HTTP on 80 and 8080, HTTPS on 443, a greeting on 22.

Every address answers alike, and tells which it was. /bytes/N is N bytes, /files/ a folder, /redirect?URL a redirect;
/gzip is compressed, /switch changes the protocol and echoes, any other path shows the request. 8443 to 8445 have
certificates that nobody should accept.
"""

from __future__ import annotations

import gzip
import json
import socketserver
import ssl
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE = b"x" * (1 << 20)
_lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait for the client's kernel, 40 ms

    def __init__(self, folder: Path, *args: Any) -> None:
        self.folder = folder
        super().__init__(*args)

    def note(self, **more: Any) -> dict[str, Any]:
        address, port = self.connection.getsockname()[:2]
        seen = {"address": address, "port": port, **more}
        with _lock, open(self.folder / "requests.jsonl", "a") as log:
            log.write(json.dumps(seen) + "\n")
        return seen

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        seen = self.note(
            method=self.command,
            path=self.path,
            headers=[[name.lower(), value] for name, value in self.headers.items()],
            body=len(body),
        )
        if self.path.startswith("/bytes/"):
            self.send_bytes(int(self.path.removeprefix("/bytes/")))
        elif self.path.startswith("/files/"):
            self.send_file(self.path.removeprefix("/files/").partition("?")[0])
        elif self.path.startswith(("/simple/", "/packages/")):
            self.send_file(self.path[1:].partition("?")[0])
        elif self.path.startswith("/redirect?"):
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/gzip":
            self.send(gzip.compress(json.dumps(seen).encode()), "application/json", coding="gzip")
        elif self.path == "/switch":
            self.echo()
        else:
            self.send(json.dumps(seen).encode(), "application/json")
        if self.path == "/" and seen["port"] == 80:
            self.look_for_more()

    def echo(self) -> None:
        """As a WebSocket would, without its frames."""
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        self.end_headers()
        self.close_connection = True
        while data := self.rfile.read1(1 << 16):
            self.wfile.write(data)

    def look_for_more(self) -> None:
        """Note what follows a request that was to be the last one: another server might take it for a request."""
        self.connection.settimeout(0.05)
        try:
            more = self.rfile.read1(65536)
        except TimeoutError:
            more = b""
        if more:
            self.note(method="MORE", path=more.decode("latin-1"), headers=[], body=0)
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815

    def send(self, body: bytes, content_type: str, *, coding: str = "") -> None:
        self.send_response(200)
        if coding:
            self.send_header("Content-Encoding", coding)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_bytes(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(count))
        self.end_headers()
        while count > 0:
            count -= self.connection.send(_PIECE[:count])

    def send_file(self, name: str) -> None:
        path = (self.folder / "files" / name).resolve()
        if (path / "index.html").is_file():
            self.send((path / "index.html").read_bytes(), "text/html")
        elif path.is_dir():
            links = "".join(f'<a href="{each.name}">{each.name}</a>\n' for each in sorted(path.iterdir()))
            self.send(f"<!DOCTYPE html><html><body>{links}</body></html>".encode(), "text/html")
        elif path.is_file():
            kind = "application/json" if path.suffix == ".json" else "application/octet-stream"
            self.send(path.read_bytes(), kind)
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


class Greeting(socketserver.BaseRequestHandler):
    """Speaks first, as SSH and SMTP do, and then echoes."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-origin\r\n")
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_: Any) -> None:
        pass  # clients that leave


class SecureServer(Server):
    def __init__(self, address: Any, handler: Any, context: ssl.SSLContext) -> None:
        super().__init__(address, handler)
        self.context = context

    def finish_request(self, request: Any, client_address: Any) -> None:
        with self.context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)


class GreetingServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def handle_error(self, *_: Any) -> None:
        pass


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def context_of(cert: str, key: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context


def main() -> None:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "internet.json").read_text())
    print("namespace", flush=True)
    assert sys.stdin.readline() == "linked\n"
    run("ip", "link", "set", "lo", "up")
    run("ip", "addr", "add", "192.0.2.1/24", "dev", "world")
    run("ip", "link", "set", "world", "up")
    for address in config["addresses"]:
        run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    handler = partial(Handler, folder)
    context = context_of(config["cert"], config["key"])
    servers: list[socketserver.BaseServer] = [
        Server(("0.0.0.0", 80), handler),
        Server(("0.0.0.0", 8080), handler),
        SecureServer(("0.0.0.0", 443), handler, context),
        *(SecureServer(("0.0.0.0", int(port)), handler, context_of(*pair)) for port, pair in config["wrong"].items()),
        GreetingServer(("0.0.0.0", 22), Greeting),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
