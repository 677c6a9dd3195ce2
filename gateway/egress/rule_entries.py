"""Entries of `egress` in manifests, sessions and tenants' limits, parsed to rules. Pure.

An entry is `any`, a preset (`pypi`), a name (`api.example.com`), a wildcard (`*.example.com`: every name below it, not
itself), an address or a CIDR, each with `:PORTS` where the usual ones do not serve (`db.example.com:5432`,
`example.com:80,8000-8100`, `example.com:*`); or a mapping {host, ports, methods, paths}. A name is for 80 and 443, the
rest for every port.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any

from gateway.egress.addresses import Network, is_name, parse_host, unmapped
from gateway.egress.presets import PRESETS
from gateway.egress.rules import Ports, Rule

Entry = str | Mapping[str, Any]

MAX_ENTRIES = 256
# What people write is bounded before it is parsed, as sessions' entries come from any client.
_MAX_TEXT = 300  # characters of an entry: a name has 253
_MAX_LISTED = 32  # methods, paths and ranges of ports of one entry
_WEB: Ports = ((80, 80), (443, 443))
_ALL: Ports = ((1, 65535),)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_METHOD = re.compile(r"[A-Z]{1,32}")
_FIELDS = ("host", "ports", "methods", "paths")
EXPECTED = (
    f"expected any, {', '.join(PRESETS)}, a name such as api.example.com, *.example.com or example.com:8443, an address"
    " or a CIDR such as 10.0.0.0/8, or a mapping with host and some of ports, methods, paths"
)


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
