"""A manifest as people are shown it: whole, with whatever looks like a credential masked. Pure.

Manifests are where keys end up that belong into Secrets: in variables, in arguments, in addresses. What an API server
adds to an object (who wrote which field, the object as it was applied last) says nothing more, and repeats them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
_SECRET_WORDS = (
    "key",
    "token",
    "secret",
    "pass",
    "pwd",
    "credential",
    "auth",
    "private",
    "cookie",
    "dsn",
    "salt",
    "cert",
)
# How well-known kinds of keys begin: of this gateway, OpenAI and others, GitHub, GitLab, Slack, AWS, Google, JWTs.
_SECRET_STARTS = ("wk_", "e2b_", "sk-", "ghp_", "gho_", "github_pat_", "glpat-", "xox", "AKIA", "AIza", "hf_", "eyJ")
_LEAST_RANDOM = 20  # characters of a word of letters and digits that is taken for a key
_LEFT_OUT = frozenset({"managedFields", "kubectl.kubernetes.io/last-applied-configuration"})
_MAX_DEPTH = 50


def shown_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for people. A manifest that was read is as deep as its schema allows at most."""
    return {name: _shown(value, 1) for name, value in manifest.items() if name not in _LEFT_OUT}


def _shown(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return MASK
    if isinstance(value, Mapping):
        name = value.get("name")
        masked = "value" in value and isinstance(name, str) and is_secret(name)  # a variable of an environment
        return {
            key: MASK if masked and key == "value" else _shown(each, depth + 1)
            for key, each in value.items()
            if key not in _LEFT_OUT
        }
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _words([_shown(each, depth + 1) for each in value])
    return _text(value) if isinstance(value, str) else value


def _words(found: list[Any]) -> list[Any]:
    """Of a command line also the word behind `--password`."""
    flags = [isinstance(each, str) and each.startswith("-") and "=" not in each and is_secret(each) for each in found]
    return [
        MASK if behind and isinstance(each, str) else each for behind, each in zip([False, *flags], found, strict=False)
    ]


def is_secret(name: str) -> bool:
    """Whether a variable or a flag of that name has a value that nobody should see."""
    small = name.lower()
    return any(word in small for word in _SECRET_WORDS)


def _text(text: str) -> str:
    """A text without its credentials, word by word: NAME=VALUE, addresses with a user, keys by their looks."""
    return "\n".join(" ".join(map(_word, line.split(" "))) for line in text.split("\n"))


def _word(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals and value and is_secret(name):
        return f"{name}={MASK}"
    before, scheme, rest = word.partition("://")
    place, slash, path = rest.partition("/")
    if scheme and "@" in place:
        return f"{before}://{MASK}@{place.rpartition('@')[2]}{slash}{path}"
    bare = (value if equals else word).strip("'\",;")
    random = (
        len(bare) >= _LEAST_RANDOM
        and bare.replace("-", "").replace("_", "").isalnum()
        and any(each.isdigit() for each in bare)
        and any(each.isalpha() for each in bare)
    )
    if random or bare.startswith(_SECRET_STARTS):
        return f"{name}={MASK}" if equals else MASK
    return word
