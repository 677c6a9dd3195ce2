import sys
print(sys.path, list(sys.path_importer_cache)[-1:], sys.meta_path, len(sys.path_hooks))
