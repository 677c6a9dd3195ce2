import time
t = time.process_time()
time.sleep(0.02)
print(time.process_time() - t < 0.02, time.process_time() < 5)
