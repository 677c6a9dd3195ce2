"""Wakegate's gateway: routes by session, wakes what sleeps, keeps pools warm. docs/architecture.md is the map."""

__version__ = "0.1.0"
