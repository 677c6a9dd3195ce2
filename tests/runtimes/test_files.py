"""What a manifest may show to sandboxes of the machine that the gateway runs on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.core.errors import SettingsError
from gateway.core.model import Runtime
from gateway.runtimes.files import Files, is_private
from gateway.runtimes.manifest import load_runtimes, parse_runtime
from gateway.runtimes.sections import is_reserved

INTERPRETER = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {name: small}
spec: {template: {}, wakegate: {python: %s}}
"""


def environment(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python3").symlink_to(sys.executable)
    return folder


def load(folder: Path, python: object, **options: object) -> Runtime:
    folder.mkdir(exist_ok=True)
    (folder / "runtime.yaml").write_text(INTERPRETER % python)
    [runtime] = load_runtimes([folder / "runtime.yaml"], **options)  # type: ignore[arg-type]  # as each test names them
    return runtime


@pytest.mark.parametrize(
    "name",
    [
        "/",
        "//",
        "/etc",
        "/etc/",
        "/usr/../etc",
        "/root",
        "/home",
        "/home/ada",
        "/var",
        "/proc",
        "/proc/1/root",
        "/sys",
        "/dev",
        "/tmp",
    ],
)
def test_folders_of_the_machine_are_private(name: str) -> None:
    """The root, system folders and homes, however they are written."""
    assert is_private(Path(name))


@pytest.mark.parametrize(
    "name", ["/opt/env", "/usr", "/usr/local", "/etc/wakegate/runtimes", "/root/env", "/home/ada/env"]
)
def test_folders_below_those_may_be_shown(name: str) -> None:
    """An operator's manifests and environments are often there."""
    assert not is_private(Path(name))


def test_what_is_in_a_listed_private_folder_is_private_too(tmp_path: Path) -> None:
    """The gateway's state has its signing keys: nothing in it is shown."""
    state = tmp_path / "state"
    (state / "keys").mkdir(parents=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "link").symlink_to(state)
    for each in (state, state / "keys", tmp_path / "link"):
        assert is_private(each, [state])
    assert not is_private(tmp_path / "files", [state])


def test_source_may_not_be_a_private_folder(tmp_path: Path) -> None:
    """`source: .` in a home folder would show its SSH keys, `source: state/keys` the gateway's."""
    state = tmp_path / "state"
    state.mkdir()
    with pytest.raises(ValueError, match="private"):
        Files(tmp_path, private=(state,)).resolve_folder("state")
    with pytest.raises(ValueError, match="private"):
        Files(Path("/root")).resolve_folder(".")


def test_environment_below_the_manifests_folder_is_taken(tmp_path: Path) -> None:
    """A relative path starts there; an absolute one may lead there."""
    made = environment(tmp_path / "a" / "env")
    for name in ("env", made):
        runtime = load(tmp_path / "a", name)
        assert (runtime.python, runtime.python_roots) == (str(made), (str(tmp_path / "a"),))


def test_environment_elsewhere_needs_the_operator(tmp_path: Path) -> None:
    """Neither a path up, an absolute one nor a symbolic link leads out, but to what the operator listed or uses."""
    outside = environment(tmp_path / "outside" / "env")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "link").symlink_to(outside)
    for name in ("../outside/env", outside, "link", "/usr"):
        with pytest.raises(SettingsError, match=r"spec.wakegate.python: .*--runtime-sources"):
            load(tmp_path / "a", name)
    assert load(tmp_path / "a", outside, sources=[tmp_path / "outside"]).python == str(outside)
    assert load(tmp_path / "a", outside, environment=outside).python == str(outside)


def test_folder_without_python3_is_no_environment(tmp_path: Path) -> None:
    """Found when the manifest is read, not at the first claim."""
    (tmp_path / "a" / "empty").mkdir(parents=True)
    for name in ("empty", "missing"):
        with pytest.raises(SettingsError, match=r"spec.wakegate.python"):
            load(tmp_path / "a", name)


@pytest.mark.parametrize("kind", ["CodeInterpreter", "AgentRuntime"])
@pytest.mark.parametrize("field", ["labels", "annotations"])
def test_reserved_labels_and_annotations_are_refused(kind: str, field: str) -> None:
    """A pod that is born with `wakegate.io/session` would pass for one that a session has claimed."""
    notes = {"wakegate.io/session": "s", "runtime.agentcube.io/session-id": "s", "app": "mine"}
    template = {field: notes, "spec": {"containers": [{"name": "x", "image": "x", "command": ["x"]}]}}
    own = {"template": {field: notes}}
    agent = {"podTemplate": template, "targetPort": [{"port": 80}], "sessionTimeout": "1m", "maxSessionDuration": "1h"}
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": kind,
        "metadata": {"name": "x"},
        "spec": agent if kind == "AgentRuntime" else own,
    }
    problems: list[str] = []
    assert parse_runtime(document, "x", problems, engine="kubernetes") is None
    assert len(problems) == 2
    assert all(f".{field}." in line for line in problems)


def test_reserved_names_are_those_that_gateways_write() -> None:
    """By domain, subdomains too; another's name that merely ends alike is free."""
    for key in (
        "wakegate.io/pool", "x.wakegate.io/pool", "runtime.agentcube.io/sandbox-name", "agentcube.volcano.sh/x",
        "runtime.agentcube.volcano.sh/x", "app.kubernetes.io/managed-by", "controller.kubernetes.io/pod-deletion-cost",
    ):  # fmt: skip
        assert is_reserved(key)
    for key in ("app", "app.kubernetes.io/name", "notwakegate.io/pool", "wakegate.io.example/pool", "wakegate.io"):
        assert not is_reserved(key)
