"""Write docs/settings.md from the settings' metadata. `--check` fails if the file differs from what would be written.

.venv/bin/python scripts/settings_doc.py [--check]
"""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "settings.md"
HEAD = """# Settings

Each setting is a flag of `wakegate serve`, a `WAKEGATE_*` variable, and a key of the TOML file that `--config` names;
flags win over variables, variables over the file. Durations are written as `30s`, `1m30s` or seconds, sizes as `512Mi`
or `4Gi`. A wrong value stops the start, and all wrong ones are named at once.

This page is made by `scripts/settings_doc.py`.
"""
COLUMNS = """
| flag | variable | TOML key | default | what it sets |
|---|---|---|---|---|
"""


def document() -> str:
    """The page's content."""
    sys.path.insert(0, str(ROOT))
    from gateway.cli.flags import readable_default
    from gateway.core.settings import ENV_PREFIX, THEMES

    parts = [HEAD]
    for title, theme in THEMES.items():
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n{COLUMNS}")
        for field in fields(theme):
            name = field.name
            # An empty default is left blank: `""` in a table says nothing to a reader.
            default = "" if field.default in ("", (), Path()) else readable_default(field)
            # A bar in the text would begin another column.
            text = " ".join(field.metadata["help"].split()).replace("|", "\\|")
            if choices := field.metadata["choices"]:
                text += f" ({', '.join(choices)})"
            flag = "--" + name.replace("_", "-")
            parts.append(f"| `{flag}` | `{ENV_PREFIX}{name.upper()}` | `{name}` | {default} | {text} |\n")
    return "".join(parts)


def main() -> int:
    """Write the page, or compare it with --check. Returns the exit status, 1 for a difference."""
    wanted = document()
    if "--check" in sys.argv[1:]:
        if not TARGET.exists() or TARGET.read_text() != wanted:
            print("docs/settings.md does not match the settings; run .venv/bin/python scripts/settings_doc.py")
            return 1
        return 0
    TARGET.write_text(wanted)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
