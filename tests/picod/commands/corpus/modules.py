import sys
ours = [name for name in sys.modules if "wakegate" in name or "forkserver" in name or name in ("script", "picod")]
print(ours, sys.modules["__main__"].__name__)
print([m.__name__ for m in (__import__("gc"), __import__("_ctypes"), __import__("_socket"), __import__("atexit"))])
