# raw: print(1)
