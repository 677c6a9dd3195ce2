"""Make docs/autoscaler-report.md of what scripts/replay has written to build/replay.

.venv/bin/python scripts/replay_doc.py
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "replay"
LEADS = ("0.25", "1", "60")
HEAD = """# The replay report, as printed

All of it was printed by one run of `scripts/replay`. At other leads than 10 s, Twitter's trace is cut to 14 days.
"""


def section(path: Path, level: int) -> str:
    """A report without its title and pictures, its headings `level` deeper."""
    text = re.sub(r"\A# .*\n+", "", path.read_text())
    text = re.sub(r"^!\[.*\n+", "", text, flags=re.MULTILINE)
    return re.sub(r"^(#+) ", lambda found: "#" * level + f"{found[1]} ", text, flags=re.MULTILINE).strip()


def main() -> None:
    """Write the document. Raises FileNotFoundError where scripts/replay did not end."""
    parts = [HEAD, section(BUILT / "report.md", 0)]
    for lead in LEADS:
        parts += [f"## Lead time {lead} s", section(BUILT / f"lead-{lead}" / "report.md", 1)]
    parts += [section(BUILT / "scenarios.md", 0), "## Idle gaps of sessions", (BUILT / "gaps.md").read_text().strip()]
    (ROOT / "docs" / "autoscaler-report.md").write_text("\n\n".join(part.strip() for part in parts) + "\n")


if __name__ == "__main__":
    main()
