import inspect
def f():
    """Of f."""
    return 1
print(inspect.getsource(f), inspect.getmodule(f).__name__, inspect.getfile(f) == __file__)
