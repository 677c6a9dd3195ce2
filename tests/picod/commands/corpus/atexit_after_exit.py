import atexit, sys
atexit.register(lambda: print("end", "__file__" in globals()))
sys.exit(9)
