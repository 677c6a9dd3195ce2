import os, signal
print(signal.getsignal(signal.SIGCHLD))
if os.fork() == 0:
    os._exit(0)
print(os.wait()[1])
