class Thing:
    def __del__(self): raise ValueError("in del")
a = Thing()
