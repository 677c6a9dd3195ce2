import numpy
print(numpy.arange(6).reshape(2, 3) @ numpy.ones((3, 2)), numpy.__name__, numpy.geterr())
print(numpy.linalg.inv(numpy.eye(300) * 2)[0, 0])
numpy.save("a.npy", numpy.zeros(3))
1 / numpy.zeros(1)
