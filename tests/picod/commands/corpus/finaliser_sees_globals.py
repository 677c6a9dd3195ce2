import sys
other = "still here"
class Thing:
    def __del__(self): print(other, sys is not None)
_thing = Thing()
