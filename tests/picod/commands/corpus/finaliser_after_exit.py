import sys
class Thing:
    def __del__(self): print("del")
a = Thing()
sys.exit(4)
