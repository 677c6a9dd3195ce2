"""Commands, background processes and terminals: started, followed and ended.

Imports `http`, `filesystem` and `compat`. Start with `execute`.
"""
