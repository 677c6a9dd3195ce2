"""Skills of a runtime: what their folders must have, and what becomes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import HibernationMode, Mount, RuntimeKey
from gateway.runtimes.files import Files
from gateway.runtimes.manifest import parse_runtime
from gateway.runtimes.skills import read_folder

GOOD = """---
name: invoices
description: Adds up invoices.
license: MIT
---
# Invoices

Run `sum.py` with amounts.
"""


def skill(folder: Path, text: str = GOOD, **scripts: str) -> Path:
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "SKILL.md").write_text(text)
    for name, content in scripts.items():
        (folder / "scripts" / name.replace("_", ".")).write_text(content)
    return folder


def parse(folder: Path, *skills: Any, engine: str = "local", **more: Any) -> tuple[Any, list[str]]:
    problems: list[str] = []
    document = {
        "apiVersion": "runtime.agentcube.volcano.sh/v1alpha1",
        "kind": "CodeInterpreter",
        "metadata": {"name": "main"},
        "spec": {"template": {"image": "x"}, "wakegate": {"skills": list(skills), **more}},
    }
    return parse_runtime(document, "here", problems, engine=engine, files=Files(folder)), problems


def test_skill_is_a_tool_with_a_runtime_of_its_own(tmp_path: Path) -> None:
    """Its description is a model's, its limits and egress are its own, and it sees its folder and nothing else."""
    folder = skill(tmp_path / "invoices", sum_py="print(1)", show_sh="echo")
    entry = {
        "source": "invoices", "kept": True, "limits": {"memory": "256Mi"}, "egress": ["api.example.com"],
        "timeout": "2m",
    }  # fmt: skip
    runtime, problems = parse(tmp_path, entry, mounts=[], egress=["pypi"])
    assert problems == []
    (tool,) = runtime.tools
    assert (tool.name, tool.timeout, tool.ordered) == ("skill_invoices", 120.0, True)
    assert tool.description == "Adds up invoices. Without `script` it answers its instructions."
    assert tool.parameters["properties"]["script"]["enum"] == ["show.sh", "sum.py"]
    assert tool.skill.instructions.startswith("# Invoices")
    (own,) = runtime.skills
    assert own.key == tool.skill.runtime == RuntimeKey("default", "main.skill.invoices")
    assert (own.skill_of, own.egress, own.mounts) == (
        runtime.key, ("api.example.com",), (Mount("/skill", str(folder)),),
    )  # fmt: skip
    assert (own.limits.memory, own.limits.cpus, own.pool.size) == (256 << 20, runtime.limits.cpus, 0)
    assert own.hibernation is HibernationMode.WORKSPACE


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no front matter", "expected front matter between lines of ---"),
        ("---\nname: x\n", "expected front matter between lines of ---"),
        ("---\nname: " + "x" * 9000 + "\n---\n", "of at most 8192 bytes"),
        ("---\n- a list\n---\n", "expected front matter in YAML with name and description"),
        ("---\n" + "[" * 4000 + "\n---\n", "expected front matter in YAML"),
        ("---\nname: !!python/object/apply:os.system [id]\n---\n", "expected front matter in YAML"),
        ("---\nname: Big Name\ndescription: x\n---\n", "name: expected up to 64 of a-z"),
        ("---\nname: 5\ndescription: x\n---\n", "name: expected up to 64 of a-z"),
        ("---\nname: x\ndescription: ''\n---\n", "description: expected text"),
        ("---\nname: x\ndescription: " + "y" * 2000 + "\n---\n", "description: expected text"),
        ("---\nname: x\ndescription: y\n---\n" + "z" * 70_000, "expected at most 65536 bytes"),
    ],
)
def test_folder_that_is_no_skill_is_refused(tmp_path: Path, text: str, says: str) -> None:
    """With what is wrong with its SKILL.md."""
    skill(tmp_path / "x", text)
    runtime, problems = parse(tmp_path, {"source": "x"})
    assert runtime is None
    assert len(problems) == 1
    assert says in problems[0]
    assert len(problems[0]) < 400


def test_reading_a_folder_is_bounded(tmp_path: Path) -> None:
    """In files, in depth, and in kinds of files: a pipe would hold up the start, a link leads anywhere."""
    folder = skill(tmp_path / "x", one_py="")
    (folder / "scripts" / "away.py").symlink_to("/etc/passwd")
    os.mkfifo(folder / "scripts" / "pipe.py")
    assert read_folder(folder).scripts == ("one.py",)
    deep = folder
    for _ in range(9):
        deep /= "d"
        deep.mkdir()
    (deep / "f").write_text("")
    with pytest.raises(ValueError, match="8 folders deep"):
        read_folder(folder)
    wide = skill(tmp_path / "wide")
    for index in range(65):
        (wide / "scripts" / f"{index}.py").write_text("")
    with pytest.raises(ValueError, match="at most 64 files"):
        read_folder(wide)
    (folder / "SKILL.md").unlink()
    (folder / "SKILL.md").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"SKILL\.md|folders deep"):
        read_folder(folder)


def test_only_folders_that_the_operator_allows_are_skills(tmp_path: Path) -> None:
    """As with every folder that a manifest names; what comes from no file, as a custom resource, can name none."""
    skill(tmp_path / "outside")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    for source in ("../outside", "link", "/etc", "missing"):
        runtime, problems = parse(inside, {"source": source})
        assert runtime is None
        assert "spec.wakegate.skills[0].source" in problems[0]
    runtime, problems = parse(tmp_path, {"source": "outside"}, engine="kubernetes")
    assert problems == []
    assert len(runtime.skills) == 1
    assert parse_runtime(runtime.manifest, "here", problems, engine="kubernetes") is None
    assert "only a manifest in a file" in problems[0]
    _, problems = parse(tmp_path, {"source": "outside"}, {"source": "outside"})
    assert "no other tool has" in problems[0]
