import os
os.kept = open("left.txt", "w")
os.kept.write("flushed at the end")
