"""Agents: AgentRuntimes that one creates through the API, changes by numbered revisions, rolls out and undoes.

`model` has the records, `rollout` decides (pure), `catalog` makes runtimes of them, `directory` keeps them in the
store, `keeper` carries rollouts out. Start with `rollout`.
"""
