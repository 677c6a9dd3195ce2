"""A gateway that asks who its clients are, and keys for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.serve import Server, serve

ADMIN = "a" * 40


@contextmanager
def serve_with_keys(folder: Path, *flags: str) -> Iterator[Server]:
    """A gateway whose admin key is ADMIN."""
    (folder / "admin").write_text(ADMIN)
    with serve(folder / "state", "--admin-key-file", str(folder / "admin"), *flags) as served:
        yield served


def make_key(server: Server, tenant: str = "acme") -> str:
    """A member's key of a tenant."""
    body = {"role": "member", "tenant": tenant}
    reply = server.client.post("/v1/keys", json=body, headers={"authorization": f"Bearer {ADMIN}"})
    assert reply.status_code == 201, reply.text
    return str(reply.json()["key"])
