import ctypes
print(ctypes.sizeof(ctypes.c_int), ctypes.CDLL(None).abs(-3), ctypes.cast(b"abc", ctypes.c_char_p).value)
ctypes.CDLL(None).printf(b"by C %d\n", 5)
