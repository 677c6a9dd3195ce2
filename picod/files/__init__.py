"""Files of the workspace over HTTP: list, download, upload, change, watch, pack and unpack.

Imports `archive`, `http`, `filesystem` and `compat`. Start with `listing`.
"""
