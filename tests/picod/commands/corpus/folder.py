import os
print(os.getcwd() == os.path.dirname(os.path.abspath(__file__)), os.listdir())
open("relative", "w").write("x")
os.chdir("/")
print(os.path.basename(__file__), os.path.isabs(__file__))
