# env: ADDED=a=b EMPTY=
import os
print([name for name in os.environ], os.environ["ADDED"], os.getenv("EMPTY"), os.getenv("MISSING"))
os.system("env | sort")
os.environ["LATER"] = "1"
del os.environ["ADDED"]
os.system("echo $LATER-$ADDED.")
print(open("/proc/self/environ").read().split("\0"))
