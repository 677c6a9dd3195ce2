import logging
logging.warning("to stderr")
logging.basicConfig(level="DEBUG", format="%(levelname)s %(name)s %(processName)s %(threadName)s %(message)s", force=True)
log = logging.getLogger("x")
log.info("info")
print(0 <= logging.makeLogRecord({}).relativeCreated < 60_000 or logging.makeLogRecord({}).relativeCreated)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("caught")
logging.getLogger().addHandler(logging.FileHandler("log.txt"))
log.error("to the file")
