import os, signal, threading, time
print(threading.get_native_id() == os.getpid(), threading.main_thread() is threading.current_thread())
signal.signal(signal.SIGUSR1, lambda *_: print("came"))
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
seen = []
thread = threading.Thread(target=lambda: seen.append(threading.get_native_id() in map(int, os.listdir("/proc/self/task"))))
thread.start()
thread.join()
print(seen, flush=True)
if not os.fork():
    print(threading.get_native_id() == os.getpid(), flush=True)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.wait()[1]))
