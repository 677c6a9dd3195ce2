"""Matplotlib's list of fonts: from the environment of user code to the sandbox's own copy."""

from __future__ import annotations

import os
from pathlib import Path

from picod.interpreter.fonts import PLACE, put_fonts


def test_list_of_fonts_is_copied_where_user_code_looks(tmp_path: Path) -> None:
    """What the environment brings along, and nothing over what is there."""
    source, target = tmp_path / "env" / PLACE, tmp_path / "tmp" / "matplotlib"
    source.mkdir(parents=True)
    (source / "fontlist.json").write_text("fonts")
    python, env = os.fsencode(tmp_path / "env" / "bin" / "python3"), {"MPLCONFIGDIR": str(target)}
    put_fonts(python, env)
    assert (target / "fontlist.json").read_text() == "fonts"
    (target / "fontlist.json").write_text("own")
    put_fonts(python, env)
    assert (target / "fontlist.json").read_text() == "own"


def test_absent_list_of_fonts_is_ignored(tmp_path: Path) -> None:
    """Without a list, a python3 or a variable nothing is made."""
    put_fonts(os.fsencode(tmp_path / "bin" / "python3"), {"MPLCONFIGDIR": str(tmp_path / "made")})
    put_fonts(None, {"MPLCONFIGDIR": str(tmp_path / "made")})
    put_fonts(os.fsencode(tmp_path / "bin" / "python3"), {})
    assert list(tmp_path.iterdir()) == []
