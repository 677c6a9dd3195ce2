f = open("left.txt", "w")
f.write("flushed at the end")
raise ValueError
