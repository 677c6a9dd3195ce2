"""Agents in images: the Dockerfile of a folder, with what `wakegate deploy` would run there. Built elsewhere.

The image runs what a bundle does, by the same program; so an agent is the same whichever way it was deployed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from gateway.cli.deploy.pack import SKIPPED, PackError, ignored

HEAD = "# Made by `wakegate deploy --dockerfile`, which writes it anew."
BASE = "python:3.11-slim"


def dockerfile_of(command: Sequence[str], port: int, requirements: str) -> str:
    """The Dockerfile. `requirements`: the file's name in the folder; empty: there are none."""
    lines = [
        HEAD,
        "# docker build -t REGISTRY/NAME:TAG . && docker push REGISTRY/NAME:TAG",
        "# wakegate deploy --image REGISTRY/NAME:TAG",
        f"FROM {BASE}",
        "WORKDIR /app",
    ]
    if requirements:
        # Before the code: a change of that alone then installs nothing.
        lines += [
            f"COPY {json.dumps([requirements, '/tmp/requirements.txt'])}",  # noqa: S108 - in the image
            "RUN pip install --no-cache-dir -r /tmp/requirements.txt",
        ]
    lines += [
        "COPY . .",
        "USER 1000:1000",
        f"ENV AGENT_HOST=0.0.0.0 PORT={port} PYTHONUNBUFFERED=1",
        f"EXPOSE {port}",
        f"CMD {json.dumps(list(command))}",
    ]
    return "\n".join(lines) + "\n"


def write_dockerfile(folder: Path, text: str, runner: tuple[str, bytes]) -> list[Path]:
    """Write it, and what it copies besides the folder's own files. Returns what was written.

    Raises PackError for a Dockerfile that somebody wrote.
    """
    path, ignore = folder / "Dockerfile", folder / ".dockerignore"
    for each in (path, ignore, folder / runner[0]):
        if each.is_symlink():
            raise PackError(f"{each.name}: is a link; it would be written somewhere else")
    if path.exists() and not path.read_text(errors="replace").startswith(HEAD):
        raise PackError("Dockerfile: is there already, and is not one of `wakegate deploy`; build that one")
    name, content = runner
    written = [path, folder / name]
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    path.write_text(text)
    # What a bundle leaves out an image must too: .env has secrets, and an image is pushed to a registry.
    if not ignore.exists() or ignore.read_text(errors="replace").startswith(HEAD):
        patterns = [f"**/{each}" for each in (*SKIPPED, *ignored(folder))]
        ignore.write_text("\n".join([HEAD, *patterns]) + "\n")
        written.append(ignore)
    return written


def name_in(image: str) -> str:
    """The name of an agent for an image: `registry.example:5000/team/Greeter:1.2` is `greeter`; may be empty."""
    last = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:63].strip("-")
