import atexit
atexit.register(print, "end")
raise KeyboardInterrupt("by hand")
