import os
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if b"process_name_seen.py" in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\0"):
            found.append(int(pid) == os.getpid())
    except OSError:
        pass
print(found)
