"""An agent that says $SAYS; where that is `bad`, every answer but the readiness probe's is a 500."""

import http.server
import os

SAYS = os.environ["SAYS"]


class Agent(http.server.BaseHTTPRequestHandler):
    """Answers each GET with what it says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        data = SAYS.encode()
        self.send_response(500 if SAYS == "bad" and self.path != "/ready" else 200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Agent).serve_forever()
