import warnings
warnings.warn("plain")
def f():
    warnings.warn("of the caller", stacklevel=2)
f()
warnings.warn("old", DeprecationWarning)
warnings.warn("too far", stacklevel=9)
for _ in range(2):
    warnings.warn("once")
