# as: -m
raise SystemExit(5)
