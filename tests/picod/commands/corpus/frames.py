import inspect, sys
print(sys._getframe().f_back, sys._getframe().f_code.co_name, sys._getframe().f_lineno)
print([(frame.function, frame.lineno) for frame in inspect.stack()])
def f():
    return sys._getframe(1).f_back, sys._getframe().f_globals is globals()
print(f())
try:
    sys._getframe(1)
except ValueError as error:
    print(error)
