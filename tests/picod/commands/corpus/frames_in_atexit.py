import atexit, sys, traceback
def last():
    print(sys._getframe().f_back)
    traceback.print_stack()
atexit.register(last)
