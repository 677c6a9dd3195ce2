"""Names of images, and of the registries that they may come from. Pure.

Source of the grammar: distribution/reference, `[DOMAIN/]PATH[:TAG][@DIGEST]`. As there, a first part is a domain if it
has a dot or a colon or is `localhost`; without one the image is Docker Hub's, in `library/` if it has no folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

DEFAULT_REGISTRY = "docker.io"
_HUB = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
_MAX_NAME = 512  # of a path the registries take 255 characters
_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?::[0-9]{1,5})?", re.ASCII)
# Each repetition has an end or begins with what the one before cannot contain, so none takes more than linear time.
_PART = re.compile(r"[a-z0-9]+(?:(?:\.|_{1,2}|-{1,64})[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Image:
    """A parsed name. `tag` and `digest` (`sha256:HEX`) are empty where it has none."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """Registry and path, without tag and digest."""
        return f"{self.registry}/{self.path}"

    def at(self, digest: str) -> str:
        """The whole name of the image with that digest; the tag stays, for people: with a digest it decides nothing."""
        return self.repository + (f":{self.tag}" if self.tag else "") + f"@{digest}"


def parse_image(name: str) -> Image:
    """Parse a name as the kubelet would. Raises ValueError with what is wrong."""
    if len(name) > _MAX_NAME:
        raise ValueError(f"the name of an image has at most {_MAX_NAME} characters")
    rest, at, digest = name.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError("expected @sha256: and 64 hexadecimal digits after the name")
    folder, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")  # behind the last slash: before it a colon is a registry's port
    if colon and not _TAG.fullmatch(tag):
        raise ValueError("expected a tag of letters, digits, dots and hyphens after the colon")
    registry, path = _split(folder + slash + last)
    return Image(registry, path, tag, digest)


def is_digest(text: str) -> bool:
    """Whether it is `sha256:` and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


class Registries:
    """A list of registries and folders of them; empty allows any."""

    def __init__(self, entries: Iterable[str]) -> None:
        """`entries`: `ghcr.io`, `ghcr.io/acme`, `python` (docker.io/library/python). Raises ValueError."""
        # As parts and not as text with a prefix, see `allow`.
        self._allowed: list[tuple[str, Sequence[str]]] = []
        for entry in entries:
            registry, path = _split(entry, folder=True)
            self._allowed.append((registry, path.split("/") if path else []))

    def __bool__(self) -> bool:
        return bool(self._allowed)

    @property
    def names(self) -> list[str]:
        """The registries without folders, each once, in their order."""
        return list(dict.fromkeys(registry for registry, _ in self._allowed))

    def allow(self, image: Image) -> bool:
        """Whether the image is in one of them. Whole parts count: ghcr.io/acme does not allow ghcr.io/acme-evil."""
        parts = image.path.split("/")
        return not self._allowed or any(
            image.registry == registry and parts[: len(folder)] == list(folder) for registry, folder in self._allowed
        )

    def __str__(self) -> str:
        return ", ".join("/".join((registry, *folder)) for registry, folder in self._allowed)


def _is_domain(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"


def _split(name: str, *, folder: bool = False) -> tuple[str, str]:
    """Registry and path. `folder`: a registry alone will do; `acme/` and `docker.io/acme` are folders."""
    first, slash, rest = name.partition("/")
    explicit = _is_domain(first) and bool(slash or folder)
    registry, path = (first.lower(), rest) if explicit else (DEFAULT_REGISTRY, name)
    if not _DOMAIN.fullmatch(registry):
        raise ValueError(f"{registry[:80]!r} is no registry")
    if registry in _HUB:
        registry = DEFAULT_REGISTRY  # one name for all of them, or a rule for docker.io would miss index.docker.io
        if path and "/" not in path and not (folder and explicit):
            path = f"library/{path}"
    if folder:
        path = path.rstrip("/")
    if not (path or folder) or (path and not all(_PART.fullmatch(part) for part in path.split("/"))):
        raise ValueError("expected a name such as registry.example/folder/image:tag, in lower case")
    return registry, path
