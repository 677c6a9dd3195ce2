"""Scripts for k6, one for each scenario of loadtest/scenarios.py; the Python in lib/ runs inside sandboxes."""
