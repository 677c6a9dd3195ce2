"""Programs that run on the python3 of user code, started by picod. They import nothing of picod."""
