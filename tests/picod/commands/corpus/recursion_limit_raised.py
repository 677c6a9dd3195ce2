import sys
sys.setrecursionlimit(20000)
def f(n):
    return n and 1 + f(n - 1)
print(f(15000))
