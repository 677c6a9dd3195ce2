import weakref
class Thing: pass
a = Thing()
weakref.finalize(a, print, "finalized")
