"""Servers that code has started in this sandbox, reached through picod.

Imports `commands`, `http`, `config`, `compat` and `wire`. Start with `api`.
"""
