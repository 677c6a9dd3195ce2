"""Names of what package managers and tools reach, as one word of a policy each. Data."""

from __future__ import annotations

from collections.abc import Mapping

# Hosts of presets whose files never change once they are there, so that they may be kept for the next sandbox.
PYPI = "pypi"
CACHED = ("files.pythonhosted.org",)
PRESETS: Mapping[str, tuple[str, ...]] = {
    "pypi": ("pypi.org", "files.pythonhosted.org"),
    "npm": ("registry.npmjs.org",),
    # codeload and api are below github.com; releases and raw files below githubusercontent.com.
    "github": ("github.com:80,443,22", "*.github.com", "*.githubusercontent.com"),
    "debian": ("deb.debian.org", "security.debian.org", "ftp.debian.org"),
}
