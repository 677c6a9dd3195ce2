class OwnError(Exception):
    """With a note."""
try:
    try:
        {}["missing"]
    except KeyError as error:
        raise OwnError("second") from error
except OwnError as error:
    error.add_note("a note")
    raise ValueError("third")
