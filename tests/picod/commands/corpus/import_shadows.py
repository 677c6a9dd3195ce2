open("colorsys.py", "w").write("mine = True\n")
import colorsys
print(colorsys.mine)
