"""The workspace's paths, resolved and walked in ways that code running in it cannot lead astray.

Imports nothing of picod. Start with `paths`.
"""
