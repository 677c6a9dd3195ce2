"""Resolves and walks paths of the workspace so that code running in it cannot redirect them outside.

Imports nothing of picod. Start with `paths`, which resolves the path of a request; `safe_walk` walks whole trees.
"""
