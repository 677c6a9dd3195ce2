"""The Protocols through which routing, autoscaler, api and sessions reach stores, engines and sandboxes.

Stores, providers, keepers and snapshot stores each have one contract suite under tests/contract. It runs against every
implementation, including the fakes that ship in gateway/testing.py. Import them from here, whichever module has them.
"""

from __future__ import annotations

from gateway.core.interfaces.engine import (
    EngineMeter,
    LoadReader,
    LossCounter,
    MachineBookings,
    RuntimeCatalog,
    SandboxProvider,
    SandboxResizer,
    UnreachableWatcher,
)
from gateway.core.interfaces.keeper import SnapshotStore, WorkspaceKeeper
from gateway.core.interfaces.routed import RoutedSandboxes
from gateway.core.interfaces.sandbox import Executor, SandboxCaller
from gateway.core.interfaces.store import SessionStore

__all__ = [
    "EngineMeter",
    "Executor",
    "LoadReader",
    "LossCounter",
    "MachineBookings",
    "RoutedSandboxes",
    "RuntimeCatalog",
    "SandboxCaller",
    "SandboxProvider",
    "SandboxResizer",
    "SessionStore",
    "SnapshotStore",
    "UnreachableWatcher",
    "WorkspaceKeeper",
]
