import multiprocessing, os
from multiprocessing import process
print(process.ORIGINAL_DIR == os.getcwd(), multiprocessing.current_process().name, len(multiprocessing.current_process().authkey))
