import atexit
atexit.register(print, "end", flush=True)
raise OSError(5, "x")
