# raw: import sys\r\nprint(1)\r\nif sys:\r\n    raise ValueError\r\n
