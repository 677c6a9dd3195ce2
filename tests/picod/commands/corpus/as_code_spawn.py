# as: -c
import multiprocessing, os
if __name__ == "__main__":
    p = multiprocessing.get_context("spawn").Process(target=os.getcwd)
    p.start(); p.join(); print(p.exitcode)
