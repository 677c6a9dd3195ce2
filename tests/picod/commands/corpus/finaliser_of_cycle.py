class Thing:
    def __del__(self): print("del", type(self).__name__, print is not None)
a = Thing()
a.self = a
del a
print("main")
