import sys
try:
    quit(3)
except SystemExit as error:
    print(error.code, sys.stdin.closed)
