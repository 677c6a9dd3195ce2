"""Forwards requests to servers that code has started in this sandbox, and to an agent that picod starts.

Imports `commands`, `http`, `config`, `compat` and `wire`. Start with `api`; `heads` rewrites headers.
"""
