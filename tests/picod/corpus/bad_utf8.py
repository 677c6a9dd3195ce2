# raw: print('\xff')\n
