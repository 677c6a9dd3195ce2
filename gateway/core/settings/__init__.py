"""Settings: one frozen dataclass, loaded once at startup by `settings_load`.

Each theme is a dataclass of its own in a module here, and `Settings` inherits from them all. A setting's flag
(`--state-dir`), variable (`WAKEGATE_STATE_DIR`) and TOML key (`state_dir`) follow from its field's name, and the group
in which `--help` and docs/settings.md show it follows from its theme, so a setting is spelled in one place. Imports
`core.errors` only; start with `field`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.core.settings.agents import Tasks
from gateway.core.settings.autoscaler import WarmPools
from gateway.core.settings.egress import Egress
from gateway.core.settings.identity import Access
from gateway.core.settings.kubernetes import Images, Kubernetes
from gateway.core.settings.observability import Audit, Logs
from gateway.core.settings.sandboxes import Sandboxes, Tokens
from gateway.core.settings.serving import Listening, Waiting
from gateway.core.settings.sessions import Hibernation, Records
from gateway.core.settings.state_dir import default_state_dir, make_state_dir, probe_state_dir
from gateway.core.settings.usage import Usage

__all__ = [
    "ENV_PREFIX",
    "THEMES",
    "Settings",
    "default_state_dir",
    "make_state_dir",
    "probe_state_dir",
    "requires_identity",
]

ENV_PREFIX = "WAKEGATE_"
# By the title that an operator reads, in the order of `--help` and docs/settings.md.
THEMES: Mapping[str, type] = {
    "where it listens": Listening,
    "runtimes and sandboxes": Sandboxes,
    "what sandboxes reach": Egress,
    "records, and several gateways": Records,
    "hibernation": Hibernation,
    "warm pools": WarmPools,
    "who may use it": Access,
    "queues and timeouts": Waiting,
    "tasks of agents": Tasks,
    "usage": Usage,
    "tokens": Tokens,
    "Kubernetes": Kubernetes,
    "images of sandboxes on Kubernetes": Images,
    "logs and traces": Logs,
    "audit trail": Audit,
}


# Inherited and not nested (`settings.egress.port`): a flag, a variable and a TOML key are one flat name each, and a
# path would be a second spelling of it at every reader.
@dataclass(frozen=True)
class Settings(
    Listening,
    Sandboxes,
    Egress,
    Records,
    Hibernation,
    WarmPools,
    Access,
    Waiting,
    Tasks,
    Usage,
    Tokens,
    Kubernetes,
    Images,
    Logs,
    Audit,
):
    """All settings with their defaults. Durations are seconds, sizes bytes."""


def requires_identity(settings: Settings) -> bool:
    """Whether requests have to say who they come from."""
    return settings.auth or settings.admin_key_file != Path() or bool(settings.oidc_issuer)
