"""Programs that run on the python3 of user code, started by picod: a context's kernel, the preloaded interpreter.

They import nothing of picod, and of their environment as little as they can; they are loaded by path. picod believes
nothing that they report: they are the session's own code as soon as it takes them over. Start with kernel.py and
forkserver.py.
"""
