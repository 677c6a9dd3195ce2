import sys
sys.exit("this is why")
