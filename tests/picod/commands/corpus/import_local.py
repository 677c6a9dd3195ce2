open("helper.py", "w").write("print('helper', __name__, __file__)\nvalue = 7\n")
import helper
print(helper.value)
