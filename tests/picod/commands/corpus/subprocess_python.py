import subprocess, sys
done = subprocess.run([sys.executable, "-c", "import sys; print(sys.argv); sys.exit(3)", "x"], capture_output=True, text=True)
print(done.stdout, done.returncode)
print(subprocess.run("echo $0; exit 4", shell=True).returncode)
