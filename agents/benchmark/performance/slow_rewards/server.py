"""A reward server that takes its time: `python -m agents.benchmark.performance.slow_rewards.server SECONDS` prints its port.

Each text takes so many seconds, those of one request one after another, requests side by side; its score is the share of even numbers in
it.  It ends when its standard input does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        texts = [item["response"].split() for item in json.loads(self.rfile.read(int(self.headers["Content-Length"])))["episodes"]]
        time.sleep(float(sys.argv[1]) * len(texts))
        body = json.dumps({"scores": [sum(int(word) % 2 == 0 for word in text) / max(len(text), 1) for text in texts]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    server = _Server(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_address[1], flush=True)
    sys.stdin.read()
