# as: -m
import warnings
warnings.warn("x")
def f():
    1 / 0
f()
