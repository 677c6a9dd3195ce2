"""Code contexts: Python kernels and bash shells that keep their state from one run to the next.

Imports `commands`, `http`, `filesystem` and `compat`. Start with `api`; `registry` holds the contexts of a sandbox.
"""
