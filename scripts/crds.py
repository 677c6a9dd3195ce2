"""Write manifests/base/crds from the schema of manifests. `--check` fails where a file is not what it would write.

.venv/bin/python scripts/crds.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "manifests" / "base" / "crds"
HEAD = "# Made by scripts/crds.py from gateway/runtimes/schema.py. {about}\n"
ABOUT = {
    "CodeInterpreter": "AgentCube's CodeInterpreter, with Wakegate's optional fields under spec.wakegate.",
    "AgentRuntime": "AgentCube's AgentRuntime, with warmPoolSize and Wakegate's optional fields under spec.wakegate.",
}


class _Dumper(yaml.SafeDumper):
    """Without anchors: what is the same object in Python is written out in each place."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def documents() -> dict[Path, str]:
    """The files as they should be."""
    sys.path.insert(0, str(ROOT))
    from gateway.core.model import Kind
    from gateway.runtimes.schema import crd

    return {
        FOLDER / f"{kind.value.lower()}s.yaml": HEAD.format(about=ABOUT[kind.value])
        + yaml.dump(crd(kind), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
        for kind in Kind
    }


def main() -> int:
    """Write or compare; the exit status is 1 where --check finds a difference."""
    status = 0
    for path, wanted in documents().items():
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted)
        elif not path.exists() or path.read_text() != wanted:
            print(f"{path.relative_to(ROOT)} is not what the schema says; run .venv/bin/python scripts/crds.py")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
