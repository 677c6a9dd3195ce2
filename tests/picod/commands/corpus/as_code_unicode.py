# as: -c
print("é€😀", ascii("ü"))
