"""Pictures of the console, made with a real gateway and a real Chromium: for the docs, and to look at a change."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.support.browser import chromium
from tests.support.serve import serve


def main() -> int:
    """Write a picture of each page, PAGE.png, into a folder."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "report/console")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as state, serve(Path(state) / "state", "--warm-pool", "3") as server:
        sleeping = server.session()
        server.client.post(f"/v1/sessions/{sleeping}/hibernate")
        session = server.session()
        with chromium() as context:
            page = context.new_page()
            for name, ready in (
                ("overview", "#n-active"),
                ("sessions", f"#s-{session}"),
                ("pools", "#what-if"),
                ("runtimes", "td"),
                ("agents", "h1:has-text('Agents')"),
                ("usage", "#csv"),
                ("tenants", "#new-tenant"),
                ("api", "details"),
            ):
                page.goto(f"{server.url}/#/{name}")
                page.wait_for_selector(ready)
                page.screenshot(path=str(folder / f"{name}.png"))
            page.goto(f"{server.url}/#/session/{session}")
            page.wait_for_selector("#terminal-state:has-text('connected')")
            page.keyboard.type("python3 -c 'print(6 * 7)'; echo do''ne\n")
            page.wait_for_selector(".xterm-rows:has-text('done')")
            page.screenshot(path=str(folder / "session.png"))
            page.set_viewport_size({"width": 1000, "height": 640})
            page.screenshot(path=str(folder / "console.png"))
    with Image.open(folder / "console.png") as picture:  # for README: 64 colours are enough, and a third of the bytes
        picture.quantize(64).save(folder / "console.png", optimize=True)
    print(f"wrote pictures to {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
