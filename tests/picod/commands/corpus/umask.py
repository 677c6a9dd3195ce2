import os
old = os.umask(0)
os.umask(old)
print(oct(old))
open("made", "w").close()
print(oct(os.stat("made").st_mode))
