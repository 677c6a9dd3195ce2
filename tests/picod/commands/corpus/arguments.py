# args: one -c --two= ""
import sys
print(sys.argv, sys.orig_argv[1:])
