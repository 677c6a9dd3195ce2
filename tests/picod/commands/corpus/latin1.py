# raw: # -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n
