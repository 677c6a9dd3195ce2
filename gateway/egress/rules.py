"""One thing that a sandbox may reach, and which targets and requests it is for. Pure; `rule_entries` parses them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from gateway.egress.addresses import PRIVATE, Address, Host, Network, is_open, is_within, unmapped

Ports = tuple[tuple[int, int], ...]

# What servers resolve in different ways: a rule for /public/ must not open /public/../private.
_UNCLEAR = re.compile(r"//|/\.{1,2}(?:[/;]|$)|%(?:2e|2f|5c|00)|\\|[^!-~]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that may be reached. Exactly one of `any`, `name` and `network` is set.

    `name` with a leading dot means every name below it. Empty `methods` or `paths`: all of them.
    """

    text: str  # the entry that it is from, for people
    ports: Ports
    any: bool = False
    name: str = ""
    network: Network | None = None
    methods: frozenset[str] = frozenset()
    paths: tuple[str, ...] = ()

    @property
    def limited(self) -> bool:
        """Whether it is for some requests only, so that they have to be seen."""
        return bool(self.methods or self.paths)

    def matches(self, host: Host, port: int) -> bool:
        """Whether a target is of this rule. `any` and wide networks leave private addresses to `names_private`."""
        if not any(first <= port <= last for first, last in self.ports):
            return False
        if self.any:
            return True
        if isinstance(host, str):
            return host == self.name if not self.name.startswith(".") else host.endswith(self.name)
        return self.network is not None and unmapped(host) in self.network

    def admits(self, method: str, path: str) -> bool:
        """Whether a request is of this rule. A path that servers may resolve to another is of no rule with paths."""
        if self.methods and method not in self.methods:
            return False
        if not self.paths:
            return True
        return not _UNCLEAR.search(path.partition("?")[0]) and any(_is_below(path, each) for each in self.paths)

    def names_private(self, address: Address, port: int) -> bool:
        """Whether it opens a private address by naming its network, which 0.0.0.0/0 does not."""
        network = self.network
        return network is not None and is_within(network, PRIVATE) and self.matches(address, port)


def _is_below(path: str, prefix: str) -> bool:
    """Whether a path is `prefix` or below it: /v1 is for /v1, /v1/x and /v1?q, not for /v10."""
    if not path.startswith(prefix):
        return False
    return prefix.endswith("/") or len(path) == len(prefix) or path[len(prefix)] in "/?"


def uncovered(inner: Sequence[Rule], outer: Sequence[Rule]) -> Iterator[str]:
    """The entries of `inner` that allow something which `outer` does not."""
    for rule in inner:
        covering = [each for each in outer if _covers(each, rule)]
        if not _contains([each for cover in covering for each in cover.ports], rule.ports):
            yield rule.text


def _covers(outer: Rule, inner: Rule) -> bool:
    """Whether a rule allows the hosts and requests of another, ports aside."""
    if outer.methods and not (inner.methods and inner.methods <= outer.methods):
        return False
    if outer.paths and not (inner.paths and all(any(_is_below(a, b) for b in outer.paths) for a in inner.paths)):
        return False
    if outer.any:
        # `any` is every public host: a session may not make 10.0.0.0/8 of it.
        return inner.network is None or is_open(inner.network)
    if inner.any:
        return False
    if inner.network is not None:
        return outer.network is not None and is_within(inner.network, (outer.network,))
    if outer.name.startswith("."):
        return inner.name.endswith(outer.name)
    return inner.name == outer.name


def _contains(outer: Iterable[tuple[int, int]], inner: Iterable[tuple[int, int]]) -> bool:
    """Whether the union of `outer` contains each range of `inner`."""
    merged: list[list[int]] = []
    for first, last in sorted(outer):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return all(any(low <= first and last <= high for low, high in merged) for first, last in inner)
