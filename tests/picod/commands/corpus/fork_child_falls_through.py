import os, sys
pid = os.fork()
if pid:
    os.waitpid(pid, 0)
print("child" if pid == 0 else "parent")
sys.exit(2 if pid == 0 else 1)
