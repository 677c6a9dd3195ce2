import sys
print("é€😀")
print(ascii(sys.stdout.errors))
print("\ud800")
