# as: -c
open("helper.py", "w").write("print(__name__)")
import helper
