import resource
for name in sorted(dir(resource)):
    if name.startswith("RLIMIT_"):
        soft, hard = resource.getrlimit(getattr(resource, name))
        print(name, soft > 1 << 50 if name == "RLIMIT_RTTIME" else soft, hard)
