"""Wakegate's gateway: routes by session, wakes what sleeps, keeps pools warm. docs/architecture.md draws the house."""

__version__ = "0.1.0"
