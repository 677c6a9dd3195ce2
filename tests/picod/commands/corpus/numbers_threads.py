import numpy, threading
def work():
    a = numpy.random.rand(200, 200)
    (a @ a).sum()
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
print("done")
