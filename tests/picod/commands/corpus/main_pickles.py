import pickle
class Thing:
    def __init__(self): self.x = 1
print(pickle.loads(pickle.dumps(Thing())).x, Thing.__module__, Thing)
