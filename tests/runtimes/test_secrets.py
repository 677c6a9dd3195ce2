"""What a manifest may say of credentials that are put in outside of sandboxes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.core.errors import SettingsError
from gateway.core.model import Kind, Runtime, Secret
from gateway.runtimes.manifest import load_runtimes, parse_runtime

VALUE = "sk-0123456789"


@pytest.fixture(autouse=True)
def _kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the operator keeps values."""
    monkeypatch.setenv("TEST_API_KEY", VALUE)
    monkeypatch.setenv("WAKEGATE_STORE", "redis://user:password@host/0")
    monkeypatch.setenv("TEST_SHORT", "short")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "key").write_text(VALUE + "\n")
    (tmp_path / "outside").write_text(VALUE)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "a" / "state").mkdir()
    (tmp_path / "a" / "state" / "key").write_text(VALUE)


def _document(*secrets: Any) -> dict[str, Any]:
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": str(Kind.CODE_INTERPRETER),
        "metadata": {"name": "small"},
        "spec": {
            "template": {},
            "wakegate": {
                "egress": ["api.example.com", {"host": "*.example.net", "paths": ["/v1/"]}],
                "secrets": list(secrets),
            },
        },
    }


def _load(folder: Path, *secrets: Any) -> Runtime:
    (folder / "a" / "runtime.yaml").write_text(yaml.safe_dump(_document(*secrets)))
    [runtime] = load_runtimes([folder / "a" / "runtime.yaml"], private=[folder / "a" / "state"])
    return runtime


def test_secrets_are_read_without_their_values(tmp_path: Path) -> None:
    """From a variable of the gateway and from a file; four places, or where code writes the placeholder."""
    runtime = _load(
        tmp_path,
        {"name": "A", "hosts": ["api.example.com"], "bearer": True, "from": {"env": "TEST_API_KEY"}},
        {"name": "B", "hosts": ["a.example.net"], "header": "X-Key", "from": {"file": "key"}},
        {"name": "C", "hosts": ["*.example.net"], "basic": "me", "from": {"file": "key"}},
        {"name": "D", "hosts": ["api.example.com:443"], "query": "key", "from": {"file": "key"}},
        {"name": "E", "hosts": ["api.example.com"], "from": {"file": "key"}},
    )
    file = str(tmp_path / "a" / "key")
    assert runtime.secrets == (
        Secret("A", ("api.example.com",), "bearer", env="TEST_API_KEY"),
        Secret("B", ("a.example.net",), "header", "X-Key", file=file),
        Secret("C", ("*.example.net",), "basic", "me", file=file),
        Secret("D", ("api.example.com:443",), "query", "key", file=file),
        Secret("E", ("api.example.com",), file=file),
    )
    assert VALUE not in repr(runtime)


GOOD = {"name": "A", "hosts": ["api.example.com"], "bearer": True, "from": {"env": "TEST_API_KEY"}}


@pytest.mark.parametrize(("change", "where", "what"), [
    ({"name": "a b"}, ".name", "name of a variable"),
    ({"hosts": []}, ".hosts", "hosts that get it"),
    ({"hosts": ["other.example.com"]}, ".hosts[0]", "add it there"),
    ({"hosts": ["api.example.com:8443"]}, ".hosts[0]", "add it there"),
    ({"hosts": ["any"]}, ".hosts[0]", "name of a host"),
    ({"hosts": ["10.0.0.1"]}, ".hosts[0]", "name of a host"),
    ({"header": "X-Key"}, "", "one of header"),
    ({"bearer": False}, ".bearer", "expected true"),
    ({"bearer": None, "header": "Host"}, ".header", "name of a header"),
    ({"bearer": None, "header": "a b"}, ".header", "name of a header"),
    ({"bearer": None, "basic": "a:b"}, ".basic", "colon"),
    ({"bearer": None, "query": "a&b"}, ".query", "parameter"),
    ({"from": {}}, ".from", "one of env"),
    ({"from": {"env": "TEST_API_KEY", "file": "key"}}, ".from", "one of env"),
    ({"from": {"env": "TEST_UNSET"}}, ".from.env", "is not set"),
    ({"from": {"env": "TEST_SHORT"}}, ".from.env", "8 to 4096"),
    ({"from": {"env": "WAKEGATE_STORE"}}, ".from.env", "settings of the gateway"),
    ({"from": {"file": "missing"}}, ".from.file", "cannot be read"),
    ({"from": {"file": "link"}}, ".from.file", "below the manifest's folder"),
    ({"from": {"file": "../outside"}}, ".from.file", "below the manifest's folder"),
    ({"from": {"file": "/etc/hostname"}}, ".from.file", "below the manifest's folder"),
    ({"from": {"file": "state/key"}}, ".from.file", "own state"),
    ({"unknown": 1}, "", "unknown"),
])  # fmt: skip
def test_mistake_in_a_secret_says_where_it_is(tmp_path: Path, change: dict[str, Any], where: str, what: str) -> None:
    """Nothing starts; the text has the field, and never the value."""
    entry = {name: value for name, value in {**GOOD, **change}.items() if value is not None}
    with pytest.raises(SettingsError, match=re.escape(f"spec.wakegate.secrets[0]{where}")) as caught:
        _load(tmp_path, entry)
    assert what in str(caught.value)
    assert VALUE not in str(caught.value)


def test_name_is_used_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="each name once"):
        _load(tmp_path, GOOD, GOOD)


LENT = {"name": "A", "hosts": ["api.example.com"], "bearer": True, "from": {"secret": "keys", "key": "api"}}


def test_cluster_has_kubernetes_secrets_alone() -> None:
    """A manifest there is of whoever may write one: variables and files of the gateway are not for them."""
    problems: list[str] = []
    runtime = parse_runtime(_document(LENT), "cluster", problems, engine="kubernetes")
    assert runtime is not None
    assert runtime.secrets == (Secret("A", ("api.example.com",), "bearer", secret="keys", key="api"),)


@pytest.mark.parametrize(("source", "where", "what"), [
    ({"env": "TEST_API_KEY"}, ".from", "local engine only"),
    ({"file": "key"}, ".from", "local engine only"),
    ({"secret": "keys", "key": "api", "env": "TEST_API_KEY"}, ".from", "local engine only"),
    ({"secret": "keys"}, ".from.key", "field of the Secret"),
    ({"secret": "keys", "key": "a/b"}, ".from.key", "field of the Secret"),
    ({"secret": "../other", "key": "api"}, ".from.secret", "name of a Kubernetes Secret"),
    ({"secret": "", "key": "api"}, ".from.secret", "name of a Kubernetes Secret"),
])  # fmt: skip
def test_mistake_in_a_clusters_secret_says_where_it_is(source: dict[str, str], where: str, what: str) -> None:
    """A name that could leave its place in a URL is none."""
    problems: list[str] = []
    assert parse_runtime(_document({**LENT, "from": source}), "cluster", problems, engine="kubernetes") is None
    assert f"spec.wakegate.secrets[0]{where}: " in problems[0]
    assert what in problems[0]


def test_kubernetes_secret_needs_a_cluster_and_picod(tmp_path: Path) -> None:
    """Not on this machine, and not for agents, whose pods have no way to the egress service."""
    with pytest.raises(SettingsError, match="of a cluster only"):
        _load(tmp_path, LENT)
    document = {**_document(LENT), "kind": str(Kind.AGENT_RUNTIME)}
    document["spec"] |= {"targetPort": [{"port": 8080, "protocol": "HTTP"}],
                         "podTemplate": {"spec": {"containers": [{"name": "a", "image": "a:1"}]}}}  # fmt: skip
    del document["spec"]["template"]
    problems: list[str] = []
    assert parse_runtime(document, "cluster", problems, engine="kubernetes") is None
    assert "agents in a cluster" in problems[0]
