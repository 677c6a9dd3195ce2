# as: -c
print(1
