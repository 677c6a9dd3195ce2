"""A gateway: its parts wired (`gateway`), their settings (`parts`), and its start, loops and end (`lifespan`).

Imports everything but the command line, the server and `build`, which chooses store and engine. Start with `gateway`.
"""
