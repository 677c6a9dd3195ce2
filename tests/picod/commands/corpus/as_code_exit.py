# as: -c
import sys, atexit
atexit.register(print, "end")
sys.exit("why")
