import resource
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, resource.getrusage(resource.RUSAGE_SELF).ru_utime < 5)
