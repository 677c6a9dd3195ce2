"""Names of images and lists of registries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.reference import Registries, parse_image

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "repository", "tag", "digest"),
    [
        ("python", "docker.io/library/python", "", ""),
        ("python:3.11", "docker.io/library/python", "3.11", ""),
        ("docker.io/python", "docker.io/library/python", "", ""),
        ("index.docker.io/acme/tool", "docker.io/acme/tool", "", ""),
        ("acme/tool:1", "docker.io/acme/tool", "1", ""),
        ("ghcr.io/acme/a/b:1", "ghcr.io/acme/a/b", "1", ""),
        ("GHCR.io/acme/tool", "ghcr.io/acme/tool", "", ""),
        ("localhost/tool", "localhost/tool", "", ""),
        ("127.0.0.1:5000/tool:1", "127.0.0.1:5000/tool", "1", ""),
        (f"ghcr.io/acme/tool:1@{DIGEST}", "ghcr.io/acme/tool", "1", DIGEST),
    ],
)
def test_names_mean_what_they_mean_to_a_kubelet(name: str, repository: str, tag: str, digest: str) -> None:
    """Defaults are filled in."""
    image = parse_image(name)
    assert (image.repository, image.tag, image.digest) == (repository, tag, digest)


@pytest.mark.parametrize(
    "name",
    ["", "Python", "a/../b", "a//b", "a/b/", "/a", "-a", "a:", "a:b:c", "a@", f"a@{DIGEST}x", "a@md5:1", "a b",
     "ghcr.io/", "ghcr.io/a:t\n", "a" * 600, "http://ghcr.io/a", "évil", "a.b:99/x?y"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own text
        parse_image(name)


@pytest.mark.parametrize(
    ("allowed", "name", "expected"),
    [
        ("ghcr.io", "ghcr.io/any/thing", True),
        ("ghcr.io/acme", "ghcr.io/acme/tool", True),
        ("ghcr.io/acme/", "ghcr.io/acme/tool", True),
        ("ghcr.io/acme", "ghcr.io/acme-evil/tool", False),
        ("ghcr.io/acme", "ghcr.io/acme", True),
        ("ghcr.io", "ghcr.io.evil.example/tool", False),
        ("ghcr.io", "evil.example/ghcr.io/tool", False),
        ("ghcr.io", "ghcr.io:5000/tool", False),
        ("python", "python:3", True),
        ("python", "acme/python", False),
        ("acme/", "acme/python", True),
        ("acme/", "python", False),
        ("docker.io/library", "python", True),
        ("docker.io/acme", "docker.io/acme/x", True),
        ("docker.io", "acme/x", True),
        ("docker.io", "quay.io/x", False),
        ("localhost:5000", "localhost:5000/x", True),
    ],
)
def test_registries_allow_by_whole_parts(allowed: str, name: str, expected: bool) -> None:
    """A prefix of letters is none."""
    assert Registries([allowed]).allow(parse_image(name)) is expected


@pytest.mark.parametrize("entry", ["ghcr.io/Acme", "*", "ghcr.io/a/../b", "https://ghcr.io", "-.x/y", "gh cr.io"])
def test_wrong_entries_are_named(entry: str) -> None:
    """At the start, not at the first image."""
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own text
        Registries([entry])


@given(st.text(alphabet="aA0.:/@-_%\n", max_size=40))
def test_any_text_is_a_name_or_an_error(text: str) -> None:
    """A name that was read is read the same again."""
    try:
        image = parse_image(text)
    except ValueError:
        return
    assert parse_image(image.repository).repository == image.repository
