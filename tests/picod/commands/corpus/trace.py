import sys
seen = []
def tracer(frame, event, arg):
    seen.append((frame.f_code.co_name, event))
    return tracer
sys.settrace(tracer)
def f():
    return 1
f()
sys.settrace(None)
print(seen)
