import sys, threading
print(len(sys._current_frames()), threading.active_count(), threading.enumerate()[0].name)
print(threading.current_thread() is threading.main_thread(), threading.main_thread().name)
print(threading.get_ident() == threading.main_thread().ident, threading.get_native_id() == __import__("os").getpid())
