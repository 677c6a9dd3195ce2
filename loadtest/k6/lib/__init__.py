"""Code that the k6 scripts share: requests (wakegate.js), and a server to run in a sandbox (echo_server.py)."""
