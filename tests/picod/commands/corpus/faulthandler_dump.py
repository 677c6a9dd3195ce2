import faulthandler, sys
def f():
    faulthandler.dump_traceback(sys.stdout.fileno(), all_threads=False)
print(faulthandler.is_enabled(), flush=True)
f()
