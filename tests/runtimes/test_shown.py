"""Manifests as they are shown: whole, without credentials wherever people put them."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.runtimes.shown import MASK, shown_manifest

KEY = "sk-proj-0123456789abcdef"


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (
            {"environment": [{"name": "API_KEY", "value": "hunter2"}]},
            {"environment": [{"name": "API_KEY", "value": MASK}]},
        ),
        (
            {"environment": [{"name": "LEVEL", "value": "debug"}]},
            {"environment": [{"name": "LEVEL", "value": "debug"}]},
        ),
        ({"environment": [{"name": "X", "value": KEY}]}, {"environment": [{"name": "X", "value": MASK}]}),
        (
            {"env": [{"name": "DB", "value": "postgres://u:p@h/d"}]},
            {"env": [{"name": "DB", "value": f"postgres://{MASK}@h/d"}]},
        ),
        ({"args": ["--db-password", "hunter2", "--port", "80"]}, {"args": ["--db-password", MASK, "--port", "80"]}),
        ({"args": ["--token=hunter2", "-v"]}, {"args": [f"--token={MASK}", "-v"]}),
        (
            {"command": ["sh", "-c", "AUTH=x run\nexport P_TOKEN=y"]},
            {"command": ["sh", "-c", f"AUTH={MASK} run\nexport P_TOKEN={MASK}"]},
        ),
        (
            {"image": "ghcr.io/acme/agent:1.2.3", "memory": "512Mi"},
            {"image": "ghcr.io/acme/agent:1.2.3", "memory": "512Mi"},
        ),
        (
            {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ),
        ({"warmPoolSize": 2, "auth": None, "ports": [8080]}, {"warmPoolSize": 2, "auth": None, "ports": [8080]}),
    ],
)
def test_credentials_are_masked_and_all_else_is_shown(spec: dict[str, Any], shown: dict[str, Any]) -> None:
    """In variables, arguments, scripts and addresses; names of Secrets, images and sizes stay."""
    assert shown_manifest({"kind": "CodeInterpreter", "spec": spec}) == {"kind": "CodeInterpreter", "spec": shown}


def test_what_an_api_server_adds_is_left_out_and_depth_is_bounded() -> None:
    """The object as it was applied last is in an annotation, whole, and would undo the masks."""
    metadata = {
        "name": "x", "managedFields": [{}],
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": KEY, "team": "a"},
    }  # fmt: skip
    assert shown_manifest({"metadata": metadata}) == {"metadata": {"name": "x", "annotations": {"team": "a"}}}
    deep: Any = KEY
    for _ in range(3000):
        deep = [deep]
    assert KEY not in repr(shown_manifest({"spec": deep}))
