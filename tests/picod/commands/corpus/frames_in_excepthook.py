import sys
def hook(kind, value, trace):
    print(kind, value, trace.tb_lineno, trace.tb_next)
sys.excepthook = hook
raise LookupError("x")
