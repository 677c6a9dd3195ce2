import locale, sys
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.name, stream.mode)
print(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), sys.getdefaultencoding())
print(locale.setlocale(locale.LC_ALL), locale.getpreferredencoding(), locale.getencoding())
