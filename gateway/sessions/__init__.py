"""The life of a session: create, open, hibernate, wake, recover, end.

Imports `core` only; stores, engines and snapshots are passed in as the Protocols of `core.interfaces`.
Start with `transitions`, which has the states and what a crash leaves in each; then `build`, which wires the parts.
"""
