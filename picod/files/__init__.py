"""Files of the workspace over HTTP: list, download, upload, change, watch, pack and unpack.

Imports `archive`, `http`, `filesystem`, `config` and `compat`. Start with `listing`.
"""
