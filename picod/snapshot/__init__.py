"""The whole workspace as one stream, and back, with the session's processes frozen.

Imports `archive`, `commands`, `http` and `filesystem`. Start with `api`.
"""
