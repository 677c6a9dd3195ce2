"""E2B's code interpreter: variables, values, errors."""

import os

from e2b_code_interpreter import Sandbox

options = {"api_key": os.environ["WG_KEY"], "api_url": os.environ["WG_URL"], "sandbox_url": os.environ["WG_URL"]}
sandbox = Sandbox.create(timeout=120, **options)
try:
    sandbox.run_code("x = 41")
    assert sandbox.run_code("print('hi')\nx + 1").text == "42"
    failed = sandbox.run_code("1 / 0").error
    assert failed is not None
    assert failed.name == "ZeroDivisionError"
finally:
    sandbox.kill()
