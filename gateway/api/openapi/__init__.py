"""What this gateway answers, as an OpenAPI 3.1 document at /openapi.json.

    table.py      one line per operation of the gateway's own surfaces
    sandbox.py    the same for what picod answers through it
    schemas.py    the shapes that they share
    document.py   from these to the document

A test holds the table to the routes (tests/test_openapi.py), another sends requests made up from it.
"""
