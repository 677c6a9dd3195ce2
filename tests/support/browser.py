"""A real Chromium, where one is installed. Its own sandbox is off: root has none, and the pages are ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str:
    """The path of a browser. Skips the test where none is, or where playwright is not installed."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed (scripts/install dev)")
    named = os.environ.get("CHROMIUM") or next((path for name in _NAMES if (path := shutil.which(name))), None)
    if named is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or CHROMIUM=/path/to/one)")
    return named


def axe() -> str:
    """The program that looks for what keeps people from using a page, as the package of axe for Python brings it."""
    return (files("axe_playwright_python") / "axe.min.js").read_text("utf-8")


@contextmanager
def chromium(**options: Any) -> Iterator[Any]:
    """A context of one, with `options` of playwright's new_context."""
    path = find_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser.new_context(viewport={"width": 1280, "height": 900}, **options)
        finally:
            browser.close()
