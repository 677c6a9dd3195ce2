import subprocess
p = subprocess.Popen(["true"])
