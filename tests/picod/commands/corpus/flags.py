import sys
print(sys.flags, sys.warnoptions, sys._xoptions, sys.dont_write_bytecode, sys.pycache_prefix)
print(sys.executable, sys.prefix, sys.base_prefix, sys._base_executable, sys.implementation.cache_tag)
print(sys.getswitchinterval(), sys.platlibdir, sys.hash_info.algorithm, sys.gettrace(), sys.getprofile())
