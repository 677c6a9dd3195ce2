# as: -m
# args: a -b
import sys
print(sys.argv[1:], sys.argv[0] == __file__, sys.path[0], __name__, __spec__.name, __package__ == "", list(globals()))
print(sys._getframe().f_back.f_code.co_name, sys._getframe().f_back.f_back.f_code.co_name, sys._getframe(2).f_back)
