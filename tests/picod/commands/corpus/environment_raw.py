# env: ODD=é
import os
print(os.environb[b"ODD"], ascii(os.environ["ODD"]))
