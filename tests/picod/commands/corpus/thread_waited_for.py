import threading, time
def work():
    time.sleep(0.05)
    print("thread done", flush=True)
threading.Thread(target=work).start()
print("main done", flush=True)
