"""The documentation's code blocks: what stands behind a `<!-- runnable -->` mark runs as it stands.

A reader's gateway is at http://127.0.0.1:8080; here the block is sent to one on a free port, and nothing else of it is
changed. A YAML block so marked is served as a runtime. Shell blocks of the README must all be marked.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.runtimes.manifest import load_runtimes
from tests.support.serve import Server, serve

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "<!-- runnable -->"
ADDRESS = "http://127.0.0.1:8080"
BLOCK = re.compile(r"(<!-- runnable -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: where it is, its language, its text."""

    page: str
    line: int
    language: str
    text: str
    marked: bool


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text()
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start(3)) + 1
            yield Block(str(page.relative_to(ROOT)), line, found[2], found[3], found[1] is not None)


RUNNABLE = [block for block in blocks() if block.marked]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    agent = ROOT / "examples" / "agent_runtime" / "agent.yaml"  # docs/runtimes.md talks to it
    with serve(tmp_path_factory.mktemp("docs") / "state", f"--runtime={agent}") as served:
        yield served


@pytest.mark.parametrize(
    "block", [b for b in RUNNABLE if b.language in ("bash", "python")], ids=lambda b: f"{b.page}:{b.line}"
)
def test_marked_block_runs_as_it_stands(server: Server, block: Block, tmp_path: Path) -> None:
    """Its exit status is 0, and it prints something that is no error."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    program = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail", "-s"]
    run = subprocess.run(
        program,
        input=block.text.replace(ADDRESS, server.url),
        cwd=tmp_path,
        env={**os.environ, "WAKEGATE_URL": server.url},  # what the command line takes for the default address
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    assert not re.search(r'"error": ?"[^"]', run.stdout), run.stdout


@pytest.mark.parametrize("block", [b for b in RUNNABLE if b.language == "yaml"], ids=lambda b: f"{b.page}:{b.line}")
def test_marked_manifest_is_served_as_it_stands(block: Block, tmp_path: Path) -> None:
    """It needs no file that the page does not show."""
    manifest = tmp_path / "runtime.yaml"
    manifest.write_text(block.text)

    assert load_runtimes((manifest,), engine="local")


def test_readme_has_no_shell_or_python_block_that_is_not_run() -> None:
    """A newcomer copies from the README first."""
    assert [
        b
        for b in blocks()
        if b.page == "README.md" and b.language in ("bash", "python") and not b.marked and b.text != "scripts/run\n"
    ] == []
    assert sum(b.page == "README.md" for b in RUNNABLE) >= 3


def test_code_blocks_are_fenced_so_that_they_can_be_marked_and_copied() -> None:
    """An indented line that begins with a command is a block that no test runs."""
    command = re.compile(r"^    (curl|wakegate|scripts/|\.venv/|kubectl|python|pip|git|echo) ?", re.MULTILINE)
    found = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        found += [f"{page.name}: {line[0]}" for line in command.finditer(prose)]
    assert found == []


def test_pages_name_scripts_and_benchmarks_that_exist() -> None:
    """`scripts/NAME`, `scripts/bench NAME` and `.venv/bin/python PATH` of every page can be typed as they are."""
    missing = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text()
        missing += [name for name in re.findall(r"scripts/[\w.-]*\w", text) if not (ROOT / name).exists()]
        missing += [
            name
            for name in re.findall(r"scripts/bench ([a-z]\w+)", text)
            if not (ROOT / f"loadtest/{name}.py").exists()
        ]
        missing += re.findall(r"(?:^|[` ])python3? -m loadtest\S*", text)
    assert missing == []


def test_pages_name_only_files_that_exist() -> None:
    """Links between pages, and to files of the project, lead somewhere."""
    broken = []
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / "AGENTS.md"]:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert broken == []
