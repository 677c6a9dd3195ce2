import json
def nested(n):
    value = []
    for _ in range(n):
        value = [value]
    return value
for n in range(960, 1010):
    try:
        json.dumps(nested(n))
    except RecursionError:
        print(n)
        break
