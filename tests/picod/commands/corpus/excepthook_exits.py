import sys
def hook(*a):
    sys.exit(8)
sys.excepthook = hook
raise ValueError("original")
