import sys
print(sys.stdout.buffer.raw, sys.stdout.isatty(), sys.stdout.seekable(), sys.stdin.readable(), sys.stdout.buffer.raw.closefd)
print(sys.stdout is sys.__stdout__, sys.stdout.newlines, sys.stdout.buffer.raw.mode, sys.stdin.buffer.seekable())
