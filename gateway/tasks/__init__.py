"""Invocations of agents that nobody waits for: kept in the store, run by any gateway at least once, and answered later.

docs/agents.md says what clients see, docs/adr/0022-tasks.md why it is done this way.
"""
