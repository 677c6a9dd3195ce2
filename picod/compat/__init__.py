"""Notations of AgentCube's Go executor that its clients parse and send.

Imports nothing of picod. Start with `go_format`: durations, times and file modes.
"""
