"""Sends the whole workspace as one stream, while the session's processes are frozen, and restores it from one.

Imports `archive`, `commands`, `http` and `filesystem`. Start with `api`.
"""
