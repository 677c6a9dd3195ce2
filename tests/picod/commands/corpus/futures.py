from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(2)
print(list(pool.map(lambda x: x * x, range(5))))
pool.submit(lambda: print("left behind"))
