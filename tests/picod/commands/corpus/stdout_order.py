import os, sys
print("buffered")
os.write(1, b"direct\n")
print("to stderr", file=sys.stderr)
os.write(2, b"direct\n")
