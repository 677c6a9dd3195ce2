import os
pid = os.fork()
if pid == 0:
    print("child")
    os._exit(6)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
try:
    os.wait()
except ChildProcessError as error:
    print(error)
