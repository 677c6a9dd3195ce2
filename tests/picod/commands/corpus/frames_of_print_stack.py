import traceback
def f():
    traceback.print_stack()
f()
print(sys := [summary.name for summary in traceback.extract_stack()])
