# as: -c
# args: a -b
import sys
print(sys.argv, repr(sys.path[0]), list(globals()), __name__, __loader__)
def f():
    return sys._getframe().f_code.co_filename
print(f())
