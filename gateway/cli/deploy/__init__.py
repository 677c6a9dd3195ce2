"""`wakegate deploy` and `wakegate rollout`: code on this machine becomes an agent of a gateway.

`entry` finds what to run (pure), `pack` makes the bundle, `serve_agent` runs it in the sandbox, `deploy` and `rollout`
are the commands.
"""
