"""Usage metering: what each tenant, runtime and session has used, and what that costs.

`meter` adds up intervals and counts (pure), `recorder` feeds it and writes to the store, `report` groups what was
stored and prices it with `prices` (pure). Imports `core` only. docs/usage.md explains the quantities.
"""
