# as: -m
raise KeyboardInterrupt
