import os, sys
print("first", flush=True)
os.execv(sys.executable, [sys.executable, "-c", "import sys; print('second', sys.argv)", "x"])
