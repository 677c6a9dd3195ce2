# raw: print(1)\x00\n
