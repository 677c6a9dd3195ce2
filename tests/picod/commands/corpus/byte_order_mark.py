# raw: \xef\xbb\xbfprint('after the mark')\n
