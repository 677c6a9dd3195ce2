"""Wakegate's gateway: routes by session, wakes hibernated sessions, keeps pools warm.

It imports `picod.wire` and nothing else of picod. docs/architecture.md is the map; start with `app`, which wires the
parts, or with `cli`, which starts one.
"""

__version__ = "0.1.0"
