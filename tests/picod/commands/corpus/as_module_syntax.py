# as: -m
x = = 1
