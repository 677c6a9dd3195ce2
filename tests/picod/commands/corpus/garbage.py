import gc
print(gc.isenabled(), gc.get_threshold(), gc.get_debug(), gc.callbacks, gc.garbage)
class Thing: pass
a = Thing()
a.a = a
del a
print(gc.collect() > 0)
