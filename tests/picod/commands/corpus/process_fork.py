import multiprocessing
def work(queue):
    queue.put((__name__, multiprocessing.parent_process().name))
if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    print(queue.get(), process.name, multiprocessing.get_start_method())
    process.join()
    print(process.exitcode)
