"""Reads `spec.wakegate.secrets`: credentials that requests of sandboxes get outside, which no code in them can read.

Only where a value is kept is read here, never kept: the gateway's own variables, or a file beside the manifest or below
--runtime-sources. That it can be read, and is such as a header can carry, is checked, so that a gateway does not start
with a secret that is none. In a cluster it is a Kubernetes Secret that an operator lends, which is found out when a
sandbox uses it (provider/kubernetes/egress_secrets.py): variables and files are not for whoever may write a runtime.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.core.model import Secret
from gateway.egress.credentials import PLACES, host_rules
from gateway.egress.rule_entries import parse_rules
from gateway.egress.rules import Rule, uncovered
from gateway.egress.values import read_value
from gateway.runtimes.fields import Reader
from gateway.runtimes.files import Files

_PREFIX = "spec.wakegate.secrets"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_USER = re.compile(r"[!-9;-~]{0,256}")  # no colon: it ends the user
# What frames a request, or says where it goes.
_TAKEN = frozenset((
    "host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect", "keep-alive",
    "proxy-connection", "proxy-authorization", "accept-encoding", "range", "if-range",
))  # fmt: skip
# Other programs' own: what the operator gave the gateway is not for whoever writes manifests.
_OWN_VARIABLES = "WAKEGATE_"
_KUBE_SECRET = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
_KUBE_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def read_secrets(
    entries: Sequence[Mapping[str, Any]],
    egress: Sequence[Any],
    files: Files | None,
    reader: Reader,
    *,
    in_cluster: bool,
    agent: bool = False,
) -> tuple[Secret, ...]:
    """The secrets of a runtime. `egress`: what it may reach. What is wrong goes to `reader`."""
    if in_cluster and agent and entries:
        reader.note(_PREFIX, "agents in a cluster do not reach out through the gateway; expected none")
        return ()
    # Which requests it is for does not matter here: an entry with paths is one whose requests get it.
    allowed = [replace(rule, methods=frozenset(), paths=()) for rule in parse_rules(egress)]
    found: dict[str, Secret] = {}
    for index, entry in enumerate(entries):
        place = f"{_PREFIX}[{index}]"
        name = entry.get("name", "")
        if not _NAME.fullmatch(name) or name in found:
            wanted = "expected the name of a variable that sandboxes have, such as API_KEY, and each name once"
            reader.note(f"{place}.name", f"{wanted}; got {name[:64]!r}")
            continue
        hosts = _hosts(entry.get("hosts") or (), allowed, place, reader)
        where = _place(entry, place, reader)
        given = entry.get("from") or {}
        source = _kube_source(given, place, reader) if in_cluster else _source(name, given, place, files, reader)
        if where is not None and source is not None:
            found[name] = Secret(name, hosts, *where, **source)
    return tuple(found.values())


def _hosts(texts: Sequence[Any], allowed: Sequence[Rule], place: str, reader: Reader) -> tuple[str, ...]:
    hosts = []
    if not texts:
        reader.note(f"{place}.hosts", "expected the hosts that get it, such as [api.example.com]")
    for index, text in enumerate(texts):
        try:
            rules = host_rules(str(text))
        except ValueError as error:
            reader.note(f"{place}.hosts[{index}]", str(error))
            continue
        if list(uncovered(rules, allowed)):
            reader.note(f"{place}.hosts[{index}]", f"{text} is not in spec.wakegate.egress: add it there")
        hosts.append(str(text))
    return tuple(hosts)


def _place(entry: Mapping[str, Any], place: str, reader: Reader) -> tuple[str, str] | None:
    named = [each for each in PLACES if each in entry]
    if len(named) > 1:
        reader.note(place, f"expected one of {', '.join(PLACES)}, got {' and '.join(named)}")
        return None
    if not named:
        return "", ""
    (kind,) = named
    value = entry[kind]
    if kind == "bearer":
        if value is not True:
            reader.note(f"{place}.bearer", "expected true: the value goes into `Authorization: Bearer VALUE`")
            return None
        return kind, ""
    if kind == "header" and (not _HEADER.fullmatch(value) or value.lower() in _TAKEN):
        reader.note(f"{place}.header", f"expected the name of a header such as X-Api-Key, got {value[:64]!r}")
        return None
    if kind == "basic" and not _USER.fullmatch(value):
        reader.note(f"{place}.basic", f"expected the user's name, without a colon, got {value[:64]!r}")
        return None
    if kind == "query" and not _NAME.fullmatch(value):
        reader.note(f"{place}.query", f"expected the name of a parameter such as api_key, got {value[:64]!r}")
        return None
    return kind, value


def _source(
    name: str, entry: Mapping[str, Any], place: str, files: Files | None, reader: Reader
) -> dict[str, str] | None:
    variable, file = entry.get("env", ""), entry.get("file", "")
    if "secret" in entry:
        reader.note(f"{place}.from.secret", "Kubernetes Secrets are of a cluster only; expected env or file")
        return None
    if bool(variable) == bool(file):
        reader.note(f"{place}.from", "expected one of env (a variable of the gateway) and file")
        return None
    if variable.startswith(_OWN_VARIABLES):
        reader.note(f"{place}.from.env", f"variables that begin with {_OWN_VARIABLES} are settings of the gateway")
        return None
    try:
        if file:
            file = _file(file, files)
        read_value(Secret(name, (), env=variable, file=file))
    except (OSError, ValueError) as error:
        reader.note(f"{place}.from.{'env' if variable else 'file'}", str(error))
        return None
    return {"env": variable, "file": file}


def _kube_source(entry: Mapping[str, Any], place: str, reader: Reader) -> dict[str, str] | None:
    if "env" in entry or "file" in entry or "secret" not in entry:
        wanted = "expected secret (the name of a Kubernetes Secret beside the gateways) and key (its field)"
        reader.note(f"{place}.from", f"{wanted}; env and file are of the local engine only")
        return None
    name, key = entry["secret"], entry.get("key", "")
    if not _KUBE_SECRET.fullmatch(name):
        reader.note(f"{place}.from.secret", f"expected the name of a Kubernetes Secret, got {name[:64]!r}")
        return None
    if not _KUBE_KEY.fullmatch(key):
        reader.note(f"{place}.from.key", f"expected the field of the Secret that has the value, got {key[:64]!r}")
        return None
    return {"secret": name, "key": key}


def _file(name: str, files: Files | None) -> str:
    """Raises ValueError, OSError."""
    if files is None:
        raise ValueError("a manifest that comes from no file can name no file of this machine")
    path = files.resolve(name)
    if any(path.is_relative_to(each) for each in files.private_folders):
        raise ValueError("expected a file outside of the gateway's own state")
    return str(path)
