"""The workspace's paths, resolved and walked so that code running in it cannot redirect them outside.

Imports nothing of picod. Start with `paths`.
"""
