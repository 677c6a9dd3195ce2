"""Files and folders that a manifest may name: those below its own folder, or below one that the operator listed.

A manifest is often someone else's, and a gateway may run as root: `source: ../../../etc` would show /etc/shadow to
sandboxes. Symbolic links are followed before a path is judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Files:
    """`folder` is the manifest's own, which relative paths start from."""

    folder: Path
    allowed: tuple[Path, ...] = ()

    def resolve(self, name: str) -> Path:
        """The absolute path, without symbolic links. Raises ValueError where it is outside; OSError."""
        path = (self.folder / name).resolve()
        if not any(path.is_relative_to(each.resolve()) for each in (self.folder, *self.allowed)):
            raise ValueError(
                f"expected a path below the manifest's folder, or below one that --runtime-sources lists; {path} is not"
            )
        return path
