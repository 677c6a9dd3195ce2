# The C library has each of its threads change its user: it must know of no thread that is not there.
import os, threading
release = threading.Event()
thread = threading.Thread(target=release.wait)
os.setresuid(*os.getresuid())
thread.start()
os.setresuid(*os.getresuid())
release.set()
thread.join()
os.setresgid(*os.getresgid())
print(os.getuid() == os.geteuid())
