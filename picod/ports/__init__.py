"""Servers that code has started in this sandbox, reached through picod.

Imports `http`, `commands`, `compat` and `wire`. Start with `api`.
"""
