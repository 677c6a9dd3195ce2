"""Write the table of roles in docs/security.md from the permissions. `--check` fails if the file differs.

.venv/bin/python scripts/roles_doc.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- roles: made by scripts/roles_doc.py -->\n", "<!-- end of roles -->\n"


def table() -> str:
    """A row per operation, a column per role."""
    sys.path.insert(0, str(ROOT))
    # Here and not at the top: the path is set only now.
    from gateway.api.openapi.table import CONTROL
    from gateway.api.permissions import PERMISSIONS
    from gateway.core.identity import ROLES, Permission

    rows = ["| operation | " + " | ".join(ROLES) + " |\n|---|" + "---|" * len(ROLES) + "\n"]
    for name, operation in CONTROL.items():
        permission = PERMISSIONS[name]
        # Public operations are answered without a credential, so a role makes no difference.
        public = permission is Permission.PUBLIC
        marks = ["public" if public else "yes" if permission in granted else "" for granted in ROLES.values()]
        rows.append(f"| `{operation.method} {operation.path}` | " + " | ".join(marks) + " |\n")
    # Requests into sandboxes are no operations of the table: any path may be one.
    marks = ["yes" if Permission.USE_SESSIONS in granted else "" for granted in ROLES.values()]
    rows.append("| requests into a sandbox: code, commands, files, ports, terminals | " + " | ".join(marks) + " |\n")
    return "".join(rows)


def main() -> int:
    """Write the table, or compare it with --check. Returns the exit status, 1 for a difference."""
    # Only what lies between the two comments is written; the rest of the page is prose.
    before, _, rest = TARGET.read_text().partition(BEGIN)
    old, end, after = rest.partition(END)
    wanted = "\n" + table() + "\n"
    if not end:
        print(f"{TARGET.name} lacks the comments that enclose the table of roles")
        return 1
    if "--check" in sys.argv[1:]:
        if old != wanted:
            print("docs/security.md does not match the permissions; run .venv/bin/python scripts/roles_doc.py")
        return int(old != wanted)
    TARGET.write_text(before + BEGIN + wanted + END + after)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
