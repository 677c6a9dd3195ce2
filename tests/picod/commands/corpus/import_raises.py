open("bad.py", "w").write("def f():\n    raise ValueError('at import')\nf()\n")
import bad
