import weakref
class Thing: pass
a = Thing()
r = weakref.ref(a, lambda _: print("callback"))
