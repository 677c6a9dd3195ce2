"""Tar and zip streams of directories, in and out. Blocking; callers run it in threads.

Imports `filesystem` only. Start with `formats`.
"""
