import signal, time
def ring(number, frame):
    raise TimeoutError("alarm")
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.02)
time.sleep(10)
