# as: -m
import multiprocessing
def work():
    print("in", __name__, flush=True)
if __name__ == "__main__":
    p = multiprocessing.get_context("spawn").Process(target=work)
    p.start(); p.join(); print(p.exitcode)
