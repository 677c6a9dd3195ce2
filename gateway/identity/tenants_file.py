"""The operator's file of tenants' limits (--tenants), YAML or TOML. Every problem in it is reported at once."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gateway.core.errors import SettingsError
from gateway.core.identity import is_tenant
from gateway.core.read_file import read_file
from gateway.identity.tenant_limits import OWN, UNLIMITED, TenantLimits, parse_limits


@dataclass(frozen=True, slots=True)
class TenantsFile:
    """What an operator's file says: `defaults` for tenants without an entry, and those with one."""

    defaults: TenantLimits = UNLIMITED
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)


NO_FILE = TenantsFile()  # nothing is limited


def read_tenants_file(path: Path) -> TenantsFile:
    """Read `defaults` and `tenants` from YAML, or from TOML by the file's name. Raises SettingsError, with all that is
    wrong; an empty path: nothing is limited."""
    if path == Path():
        return TenantsFile()
    try:
        text = read_file(path).decode()
        document = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except OSError as error:
        raise SettingsError([f"--tenants {path}: cannot be read: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SettingsError([f"--tenants {path}: {error}"]) from error
    problems = [f"--tenants {path}: {problem}" for problem in _shape_problems(document)]
    if problems:
        raise SettingsError(problems)
    found: dict[str, TenantLimits] = {}
    named = {"": document.get("defaults") or {}, **(document.get("tenants") or {})}
    for name, limits in named.items():
        where = f"tenants.{name}." if name else "defaults."
        try:
            found[name] = parse_limits(limits or {}, where)
        except ValueError as error:
            problems += [f"--tenants {path}: {line}" for line in str(error).splitlines()]
    if problems:
        raise SettingsError(problems)
    return TenantsFile(found.pop(""), found)


def _shape_problems(document: Any) -> Iterator[str]:
    if not isinstance(document, dict):
        yield "expected `defaults:` and `tenants:`"
        return
    for name in document.keys() - {"defaults", "tenants"}:
        yield f"{str(name)[:64]}: unknown field; expected defaults, tenants"
    tenants = document.get("tenants") or {}
    if not isinstance(tenants, dict):
        yield "tenants: expected the name of each tenant with its limits"
        return
    for name in tenants:
        if not isinstance(name, str) or not is_tenant(name) or name == OWN:
            yield f"tenants.{str(name)[:64]}: expected a name of a-z, 0-9 and '-', at most 63 long, other than {OWN}"
