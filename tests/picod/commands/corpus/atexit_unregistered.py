import atexit
atexit.register(print, "never")
atexit.unregister(print)
