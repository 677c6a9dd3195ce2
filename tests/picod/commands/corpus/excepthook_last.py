import atexit, sys
def last():
    print(sys.last_type, sys.last_value, sys.last_traceback.tb_lineno)
atexit.register(last)
raise ValueError("x")
