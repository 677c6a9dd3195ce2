"""Notations of AgentCube's Go executor that its clients rely on.

Imports nothing of picod. `go_format` has durations, times and file modes.
"""
