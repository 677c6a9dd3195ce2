"""Which runtimes a gateway on one machine serves: the built-in one, those of manifests, or both."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.build import build
from gateway.core.errors import SettingsError
from gateway.core.settings_load import load

MANIFEST = """
apiVersion: runtime.agentcube.volcano.sh/v1alpha1
kind: CodeInterpreter
metadata: {{name: {name}}}
spec: {{template: {{}}, warmPoolSize: 7}}
"""


async def served(folder: Path, *flags: tuple[str, object], name: str = "mine") -> dict[str, int]:
    """Name and warm pool of each."""
    manifest = folder / "mine.yaml"
    manifest.write_text(MANIFEST.format(name=name))
    values = {key: manifest if value == "manifest" else value for key, value in flags}
    settings = load(
        {"state_dir": str(folder / "state"), **{k: [str(v)] if k == "runtime" else str(v) for k, v in values.items()}},
        {},
    )
    gateway = await build(settings)
    return {runtime.key.name: runtime.pool.size for runtime in gateway.catalog.all()}


async def test_manifests_are_served_beside_the_built_in_runtime(tmp_path: Path) -> None:
    """What works without `--runtime` works with it."""
    assert await served(tmp_path) == {"my-interpreter": 3}
    assert await served(tmp_path, ("runtime", "manifest")) == {"mine": 7, "my-interpreter": 3}


async def test_manifest_of_its_name_takes_the_built_in_runtimes_place(tmp_path: Path) -> None:
    """And is no second one of the name."""
    assert await served(tmp_path, ("runtime", "manifest"), name="my-interpreter") == {"my-interpreter": 7}


async def test_no_default_runtime_leaves_it_out(tmp_path: Path) -> None:
    """With nothing else to serve the start ends in a sentence."""
    only = ("no_default_runtime", "true")
    assert await served(tmp_path, ("runtime", "manifest"), only) == {"mine": 7}
    with pytest.raises(SettingsError, match="nothing would be served"):
        await served(tmp_path, only)
