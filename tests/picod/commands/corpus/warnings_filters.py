import sys, warnings
print(sys.warnoptions)
print([(f[0], f[2].__name__) for f in warnings.filters if f[1] is None and f[3] is None][-4:])
open("/dev/null")
warnings.simplefilter("always")
open("/dev/null")
