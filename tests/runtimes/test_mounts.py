"""Which data a manifest may put before its sandboxes, on one machine and in a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.core.errors import SettingsError
from gateway.core.model import Kind, Mount, Runtime
from gateway.runtimes.manifest import load_runtimes, parse_runtime


def _document(*mounts: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": str(Kind.CODE_INTERPRETER),
        "metadata": {"name": "small"},
        "spec": {"template": {}, "wakegate": {"mounts": list(mounts)}},
    }


def _load(folder: Path, *mounts: dict[str, Any], **options: Any) -> Runtime:
    folder.mkdir(exist_ok=True)
    (folder / "runtime.yaml").write_text(yaml.safe_dump(_document(*mounts)))
    [runtime] = load_runtimes([folder / "runtime.yaml"], **options)
    return runtime


def test_folder_beside_the_manifest_or_listed_by_the_operator_is_mounted(tmp_path: Path) -> None:
    """Read-only, without symbolic links in its name."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    (tmp_path / "listed").mkdir()
    (tmp_path / "a" / "link").symlink_to("data")
    runtime = _load(
        tmp_path / "a",
        {"source": "link", "target": "/data/"},
        {"source": str(tmp_path / "listed"), "target": "/mnt/more", "readOnly": True},
        sources=[tmp_path / "listed"],
    )
    assert runtime.mounts == (
        Mount("/data", source=str(tmp_path / "a" / "data")),
        Mount("/mnt/more", source=str(tmp_path / "listed")),
    )


@pytest.mark.parametrize("source", ["..", "../other", "/etc", "link", "missing", "file", "/", ""])
def test_other_folders_of_the_machine_are_refused(tmp_path: Path, source: str) -> None:
    """Neither a path up, an absolute one nor a link leads out; a file is not a folder."""
    (tmp_path / "a").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "a" / "file").write_text("")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "other")
    with pytest.raises(SettingsError, match=r"spec\.wakegate\.mounts\[0\]\.source: "):
        _load(tmp_path / "a", {"source": source, "target": "/data"})


@pytest.mark.parametrize(
    "target",
    ["data", "/", "//data", "/usr/x", "/workspace/data", "/home/user", "/etc", "/tmp", "/data/../etc", "/opt", "/a\0b"],
)
def test_targets_that_hide_a_part_of_the_sandbox_are_refused(tmp_path: Path, target: str) -> None:
    """What sandboxes are made of, what hibernates, and what is no absolute path."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"target|NUL|yaml|character"):
        _load(tmp_path / "a", {"source": "data", "target": target})


def test_mounts_one_in_the_other_are_refused(tmp_path: Path) -> None:
    """The inner one would be hidden, or need a folder in a read-only one."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    with pytest.raises(SettingsError, match="lie apart"):
        _load(tmp_path / "a", {"source": "data", "target": "/d"}, {"source": "data", "target": "/d/e"})


def test_folder_of_this_machine_is_never_writable(tmp_path: Path) -> None:
    """Sessions would meet in it."""
    (tmp_path / "a" / "data").mkdir(parents=True)
    with pytest.raises(SettingsError, match="read-only"):
        _load(tmp_path / "a", {"source": "data", "target": "/d", "readOnly": False})


def test_cluster_takes_claims_and_config_maps_and_no_folder() -> None:
    """One manifest may name both; the engine takes what is its own."""
    problems: list[str] = []
    document = _document(
        {"source": "data", "claim": "models", "target": "/models", "readOnly": False},
        {"configMap": "prompts", "target": "/prompts"},
    )
    runtime = parse_runtime(document, "cluster", problems, engine="kubernetes")
    assert problems == []
    assert runtime is not None
    assert runtime.mounts == (
        Mount("/models", claim="models", read_only=False),
        Mount("/prompts", config_map="prompts"),
    )
    for wrong in (
        {"source": "data", "target": "/d"},
        {"claim": "a", "configMap": "b", "target": "/d"},
        {"claim": "../a", "target": "/d"},
        {"configMap": "b", "target": "/d", "readOnly": False},
    ):
        problems = []
        assert parse_runtime(_document(wrong), "cluster", problems, engine="kubernetes") is None
        assert "spec.wakegate.mounts[0]" in problems[0]
