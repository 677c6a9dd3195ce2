import atexit
atexit.register(print, "first registered")
@atexit.register
def second():
    print("second", "__file__" in globals())
print("main")
