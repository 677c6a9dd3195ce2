"""Sandboxes on this machine: bubblewrap, control groups, warm pools.

Imports `core` and `picod.wire`. Start with `provider`, which joins the parts, then `sandbox_factory`, the work on one.
"""

from __future__ import annotations

from gateway.provider.local.isolation import Isolation, IsolationReport, probe_isolation
from gateway.provider.local.provider import LocalProvider
from gateway.provider.local.state_dir import owner_name

__all__ = ["Isolation", "IsolationReport", "LocalProvider", "owner_name", "probe_isolation"]
