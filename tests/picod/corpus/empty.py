# raw:
