import sys
print(list(globals()), __name__, __spec__, __package__, __doc__, __cached__, type(__loader__).__name__, __builtins__)
print(sys.modules["__main__"].__dict__ is globals(), __loader__.name, __loader__.get_filename("__main__") == __file__)
print(repr(sys.modules["__main__"])[:17], list(sys.modules).index("__main__"))
