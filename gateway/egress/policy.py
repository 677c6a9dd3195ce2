"""What a sandbox may reach: entries are parsed to rules, and rules decide. Pure.

An entry is `any`, a preset (`pypi`), a name (`api.example.com`), a wildcard (`*.example.com`: every name below it, not
itself), an address or a CIDR, each with `:PORTS` where the usual ones do not serve (`db.example.com:5432`,
`example.com:80,8000-8100`, `example.com:*`); or a mapping {host, ports, methods, paths}. A name is for 80 and 443, the
rest for every port. Layers (runtime, session, tenant) must all allow a target: each can only take away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from gateway.egress.addresses import (
    PRIVATE,
    Address,
    Host,
    Network,
    is_name,
    is_open,
    is_within,
    parse_host,
    unmapped,
)
from gateway.egress.presets import PRESETS

Ports = tuple[tuple[int, int], ...]
Entry = str | Mapping[str, Any]

MAX_ENTRIES = 256
_MAX_TEXT = 300  # characters of an entry: a name has 253
_MAX_LISTED = 32  # methods, paths and ranges of ports of one entry
_WEB: Ports = ((80, 80), (443, 443))
_ALL: Ports = ((1, 65535),)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_METHOD = re.compile(r"[A-Z]{1,32}")
# What servers resolve in different ways: a rule for /public/ must not open /public/../private.
_UNCLEAR = re.compile(r"//|/\.{1,2}(?:[/;]|$)|%(?:2e|2f|5c|00)|\\|[^!-~]", re.IGNORECASE)
_FIELDS = ("host", "ports", "methods", "paths")
EXPECTED = (
    f"expected any, {', '.join(PRESETS)}, a name such as api.example.com, *.example.com or example.com:8443, an address"
    " or a CIDR such as 10.0.0.0/8, or a mapping with host and some of ports, methods, paths"
)


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


@dataclass(frozen=True, slots=True)
class Layer:
    """The rules of one place, and where that is: "spec.wakegate.egress of ...", for people."""

    setting: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for. `visible`: its requests will be seen; with a `method`, this is one of them."""

    host: Host
    port: int
    visible: bool = False
    method: str = ""
    path: str = ""

    def __str__(self) -> str:
        host = self.host
        return f"{host}:{self.port}" if isinstance(host, str) or host.version == 4 else f"[{host}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`rule`: the entry that allows it, of the first layer. Refused: `reason`, and `setting`, which would allow it."""

    allowed: bool
    rule: str = ""
    reason: str = ""
    setting: str = ""

    @property
    def text(self) -> str:
        """A refusal for people: what was wrong, and what to do."""
        return f"{self.reason}; {self.setting}" if self.setting else self.reason


def parse_rules(entries: Iterable[Entry]) -> tuple[Rule, ...]:
    """The rules of a list of entries. Raises ValueError with every problem, a line each: `[INDEX]: PROBLEM`."""
    rules: list[Rule] = []
    problems: list[str] = []
    for index, entry in enumerate(entries):
        if index >= MAX_ENTRIES:
            problems.append(f"[{index}]: expected at most {MAX_ENTRIES} entries")
            break
        try:
            rules += parse_entry(entry)
        except ValueError as error:
            problems.append(f"[{index}]: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return tuple(rules)


def parse_entry(entry: Any) -> tuple[Rule, ...]:
    """The rules of one entry. Raises ValueError."""
    if isinstance(entry, str):
        return _parse_text(entry)
    if isinstance(entry, Mapping):
        return _parse_mapping(entry)
    raise ValueError(f"{EXPECTED}; got {_shown(entry)}")


@lru_cache(maxsize=1024)
def _parse_text(text: str) -> tuple[Rule, ...]:
    if len(text) > _MAX_TEXT:
        raise ValueError(f"expected at most {_MAX_TEXT} characters")
    if text in PRESETS:
        return tuple(replace(rule, text=text) for each in PRESETS[text] for rule in _parse_text(each))
    host, ports = _split_ports(text)
    if host == "any":
        return (Rule(text, _ports(ports, _ALL), any=True),)
    if (network := _network(host)) is not None:
        return (Rule(text, _ports(ports, _ALL), network=network),)
    name = host.removeprefix("*")
    if host.startswith("*") and not (name.startswith(".") and is_name(name[1:])):
        raise ValueError(f"{_shown(text)}: a wildcard is *. and a name, such as *.example.com")
    name = name.lower()
    if not is_name(name.removeprefix(".")) or "." not in name:  # a preset's name with a typing error is no host
        raise ValueError(f"{EXPECTED}; got {_shown(text)}")
    if not isinstance(parse_host(name.removeprefix(".")), str):
        raise ValueError(f"{_shown(text)}: a wildcard is *. and a name, such as *.example.com")
    return (Rule(text, _ports(ports, _WEB), name=name),)


def _parse_mapping(entry: Mapping[str, Any]) -> tuple[Rule, ...]:
    for name in entry:
        if name not in _FIELDS:
            raise ValueError(f"{str(name)[:64]}: unknown field; expected {', '.join(_FIELDS)}")
    host = entry.get("host")
    if not isinstance(host, str) or host in PRESETS:
        raise ValueError(f"host: expected a name, an address, a CIDR or any, got {_shown(host)}")
    rules = _parse_text(host)
    if (ports := entry.get("ports")) is not None:
        listed = _listed("ports", ports, (int, str))
        rules = tuple(replace(rule, ports=_ports(",".join(map(str, listed)), _ALL)) for rule in rules)
    methods = tuple(str(each).upper() for each in _listed("methods", entry.get("methods") or [], (str,)))
    if not all(map(_METHOD.fullmatch, methods)):
        raise ValueError(f"methods: expected methods such as GET, got {_shown(entry['methods'])}")
    paths = tuple(str(each) for each in _listed("paths", entry.get("paths") or [], (str,)))
    if not all(each.startswith("/") and len(each) <= _MAX_TEXT and each.isascii() for each in paths):
        raise ValueError(f"paths: expected prefixes of paths such as /v1/, got {_shown(entry['paths'])}")
    return tuple(
        replace(rule, text=_mapping_text(host, rule, methods, paths), methods=frozenset(methods), paths=paths)
        for rule in rules
    )


def _mapping_text(host: str, rule: Rule, methods: Sequence[str], paths: Sequence[str]) -> str:
    return " ".join(filter(None, (",".join(methods), host, ",".join(paths))))


def _listed(name: str, value: Any, types: tuple[type, ...]) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) > _MAX_LISTED:
        raise ValueError(f"{name}: expected a list of at most {_MAX_LISTED} entries, got {_shown(value)}")
    if not all(isinstance(each, types) and not isinstance(each, bool) for each in value):
        raise ValueError(f"{name}: expected {' or '.join(each.__name__ for each in types)}, got {_shown(value)}")
    return list(value)


def _split_ports(text: str) -> tuple[str, str | None]:
    """The host of an entry, and its ports. An IPv6 address has brackets where ports follow."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if "/" in rest:  # [2001:db8::]/32:443
            length, colon, ports = rest.partition(":")
            return host + length, ports if colon else None
        if bracket and (not rest or rest.startswith(":")):
            return host, rest[1:] if rest else None
        raise ValueError(f"{EXPECTED}; got {_shown(text)}")
    if text.count(":") > 1:
        return text, None
    host, colon, ports = text.partition(":")
    return host, ports if colon else None


def _ports(text: str | None, usual: Ports) -> Ports:
    if text is None:
        return usual
    if text == "*":
        return _ALL
    found: list[tuple[int, int]] = []
    for each in text.split(","):
        match = _PORTS.fullmatch(each)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if not 1 <= first <= last <= 65535 or len(found) >= _MAX_LISTED:
            raise ValueError(f"ports: expected ports such as 443 or 8000-8100, or *, got {_shown(text)}")
        found.append((first, last))
    return tuple(found)


def _network(text: str) -> Network | None:
    if "%" in text:
        raise ValueError(f"{_shown(text)}: an address with a zone (%) cannot be reached")
    try:
        if "/" in text:
            return ip_network(text)
        host = ip_address(text)
    except ValueError as error:
        if "/" in text:
            raise ValueError(f"{_shown(text)}: {error}") from None
        return None
    return ip_network(unmapped(host))


def _shown(value: Any) -> str:
    return "nothing" if value is None else repr(value)[:80]


def _is_below(path: str, prefix: str) -> bool:
    """Whether a path is `prefix` or below it: /v1 is for /v1, /v1/x and /v1?q, not for /v10."""
    if not path.startswith(prefix):
        return False
    return prefix.endswith("/") or len(path) == len(prefix) or path[len(prefix)] in "/?"


def decide(layers: Sequence[Layer], target: Target) -> Verdict:
    """Whether every layer allows a target, before it is resolved. No layer at all allows nothing."""
    if not layers:
        return Verdict(False, reason=f"{target} is not allowed", setting="this sandbox has no egress")
    rule = ""
    for layer in layers:
        matching = [each for each in layer.rules if each.matches(target.host, target.port)]
        found = next((each for each in matching if _admits(each, target)), None)
        if found is None:
            return _refused(layer, target, matching)
        rule = rule or found.text
    return Verdict(True, rule)


def _admits(rule: Rule, target: Target) -> bool:
    if not rule.limited:
        return True
    return target.visible and (not target.method or rule.admits(target.method, target.path))


def _refused(layer: Layer, target: Target, matching: Sequence[Rule]) -> Verdict:
    if matching and target.method:
        reason = f"{target.method} {target.path[:80]} of {target} is not allowed"
        return Verdict(False, reason=reason, setting=f"its methods and paths are in {layer.setting}")
    if matching:
        reason = f"{target} is allowed for some methods and paths only, and its requests are encrypted"
        return Verdict(False, reason=reason, setting=f"drop methods and paths from its entry in {layer.setting}")
    entry = f"{target.host}" if not isinstance(target.host, str) or target.port in (80, 443) else f"{target}"
    return Verdict(False, reason=f"{target} is not allowed", setting=f"to allow it, add {entry} to {layer.setting}")


def may_reach_private(layers: Sequence[Layer], address: Address, port: int) -> Layer | None:
    """The first layer that does not open a private address by naming its network; None: all do."""
    for layer in layers:
        if not any(rule.names_private(address, port) for rule in layer.rules):
            return layer
    return None


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


@dataclass(frozen=True, slots=True)
class Limits:
    """What one session may use of its egress. 0: no limit. `rate`: bytes per second, both directions together."""

    connections: int = 512
    bytes: int = 0
    rate: int = 0
