"""Commands, background processes and terminals: started, followed and ended.

Imports `http`, `filesystem`, `config` and `compat`. Start with `execute`; `services` is what its handlers share.
"""
