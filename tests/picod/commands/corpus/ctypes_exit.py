import atexit, ctypes
ctypes.CDLL(None).puts(b"in C's buffer")
atexit.register(print, "python's")
