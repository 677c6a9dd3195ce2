async def f(): pass
f()
g = f()
