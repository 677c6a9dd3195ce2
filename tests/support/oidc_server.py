"""An OpenID provider for tests: oidc-provider-mock in a process of its own, so that its warnings are not ours.

`python -m tests.support.oidc_server PORT` runs it; POST /rotate puts a new key in the place of the present one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

LIMIT_S = 30.0
AUDIENCE = "wakegate"
_BACK = "http://localhost/back"


class Provider:
    """A running provider. `issuer` is its URL."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.issuer = f"http://localhost:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(trust_env=False, timeout=LIMIT_S)

    def start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.oidc_server", str(self.port)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        )
        end = time.monotonic() + LIMIT_S
        while True:
            try:
                socket.create_connection(("localhost", self.port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "the provider ended"
                assert time.monotonic() < end, "the provider does not listen"
                threading.Event().wait(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._client.close()

    def rotate(self) -> None:
        assert self._client.post(self.issuer + "/rotate").status_code == 204

    def token(self, person: str = "ann", audience: str = AUDIENCE, **claims: Any) -> str:
        """An ID token, as a person gets it by logging in: the authorization code flow."""
        user = {"sub": person, "claims": claims}
        self._client.put(f"{self.issuer}/users/{person}", json=user["claims"]).raise_for_status()
        query = {"client_id": audience, "redirect_uri": _BACK, "response_type": "code", "scope": "openid"}
        answer = self._client.post(f"{self.issuer}/oauth2/authorize", params=query, data={"sub": person})
        code = httpx.URL(answer.headers["location"]).params["code"]
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": _BACK}
        form |= {"client_id": audience, "client_secret": "any"}
        answer = self._client.post(f"{self.issuer}/oauth2/token", data=form)
        return str(json.loads(answer.content)["id_token"])


@contextmanager
def provider() -> Iterator[Provider]:
    """A provider on a free port, ended with the block."""
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    made = Provider(port)
    try:
        made.start()
        yield made
    finally:
        made.close()


def _main(port: int) -> None:
    import flask
    import oidc_provider_mock
    from authlib import jose

    app = oidc_provider_mock.app()

    def rotate() -> tuple[str, int]:
        flask.g.oidc_provider_mock_storage.jwk = jose.RSAKey.generate_key(is_private=True)
        return "", 204

    app.add_url_rule("/rotate", view_func=rotate, methods=["POST"])
    app.run("localhost", port, threaded=True, debug=False, use_reloader=False)  # it would be a second process


if __name__ == "__main__":
    _main(int(sys.argv[1]))
