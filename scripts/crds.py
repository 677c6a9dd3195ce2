"""Write manifests/base/crds from the schema of manifests. `--check` fails if a file differs from what would be written.

.venv/bin/python scripts/crds.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "manifests" / "base" / "crds"
# A line for whoever opens the file to change it.
HEAD = "# Made by scripts/crds.py from gateway/runtimes/schema.py. {about}\n"
ABOUT = {
    "CodeInterpreter": "AgentCube's CodeInterpreter, with Wakegate's optional fields under spec.wakegate.",
    "AgentRuntime": "AgentCube's AgentRuntime, with warmPoolSize and Wakegate's optional fields under spec.wakegate.",
}


class _Dumper(yaml.SafeDumper):
    """Writes no anchors: an object that is used twice in Python is written out twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def documents() -> dict[Path, str]:
    """The content of each file, from the schema."""
    sys.path.insert(0, str(ROOT))  # the script runs by its path, without the package installed
    from gateway.core.model import Kind
    from gateway.runtimes.crd import crd

    return {
        FOLDER / f"{kind.value.lower()}s.yaml": HEAD.format(about=ABOUT[kind.value])
        + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        for kind in Kind
    }


def main() -> int:
    """Write the files, or compare them with --check. Returns the exit status, 1 for a difference."""
    status = 0
    for path, wanted in documents().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted)
        # Byte for byte: a test runs this, so that the shipped files never lag behind the schema.
        elif not path.exists() or path.read_text() != wanted:
            print(f"{path.relative_to(ROOT)} does not match the schema; run .venv/bin/python scripts/crds.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
