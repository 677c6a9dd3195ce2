from __future__ import annotations
def f(x: Unknown) -> Other: ...
print(f.__annotations__)
exec("def g(x: 1 + 1): ...")
print(g.__annotations__, compile("1", "x", "eval").co_flags)
