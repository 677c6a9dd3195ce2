"""Tar and zip streams: pack a directory into one, unpack one into a directory. Blocking; callers use threads.

Imports `filesystem` only. Start with `formats`; `pack` and `unpack` do the work on files.
"""
