import sys
pint = 1
print(prnt)
