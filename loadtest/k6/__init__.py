"""Scripts for k6; the Python in here runs inside sandboxes."""
