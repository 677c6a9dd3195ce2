import builtins
print(len(dir(builtins)), exit, copyright.__class__, hasattr(builtins, "_"), __debug__)
