import weakref
class Thing: pass
things = [Thing(), Thing()]
kept = weakref.WeakSet(things)
names = weakref.WeakValueDictionary(a=things[0])
print(len(kept), len(names))
