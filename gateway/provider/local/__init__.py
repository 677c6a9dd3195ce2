"""Sandboxes on this machine: bubblewrap, control groups, warm pools. provider.py is the way in."""

from __future__ import annotations

from gateway.provider.local.isolation import Isolation, IsolationReport, probe_isolation
from gateway.provider.local.provider import LocalProvider
from gateway.provider.local.state_dir import owner_name

__all__ = ["Isolation", "IsolationReport", "LocalProvider", "owner_name", "probe_isolation"]
