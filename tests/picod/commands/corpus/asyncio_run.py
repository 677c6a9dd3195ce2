import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("echo", "from a child")
    await process.wait()
    await asyncio.gather(*(asyncio.sleep(0.001) for _ in range(5)))
    print(await asyncio.to_thread(lambda: "thread"))
asyncio.run(main())
