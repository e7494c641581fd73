"""Servers on localhost that fail on command."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from textrl_env import Episode


class FaultyServer:
    """Answers each POST with `answer(body)`, after the faults that stand in `faults`, one a request.

    A fault is a status, "drop" (the connection is closed), "garbage" (no JSON), a number of seconds as `("stall", 1.0)`, or
    `(status, headers)`.
    """

    def __init__(self, answer, faults=(), port=0, delay=0.0):
        self.answer, self.faults, self.delay = answer, list(faults), delay
        self.bodies, self.times, self.headers = [], [], []
        self.under_way = self.most = 0
        self.closed = False
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.bodies.append(body)
                    owner.times.append(time.monotonic())
                    owner.headers.append(dict(self.headers))
                    owner.under_way += 1
                    owner.most = max(owner.most, owner.under_way)
                    fault = owner.faults.pop(0) if owner.faults else None
                try:
                    time.sleep(owner.delay)
                    owner.respond(self, fault, body)
                except OSError:
                    pass  # the client has gone
                finally:
                    with owner.lock:
                        owner.under_way -= 1

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False  # stalled handlers must not hold up the test
            request_queue_size = 64  # of 5, the default, a sixth connection may have to be asked for again a second later

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/score"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def respond(self, handler, fault, body):
        if fault == "drop" or self.closed:
            handler.close_connection = True
            return
        if isinstance(fault, tuple) and fault[0] == "stall":
            time.sleep(fault[1])
            fault = None
        status, headers = (fault, {}) if isinstance(fault, int) else fault if isinstance(fault, tuple) else (200, {})
        content = b"<html>" if fault == "garbage" else json.dumps(self.answer(body) if status == 200 else {"error": "no luck"}).encode()
        handler.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    def close(self):
        """Stop listening, and drop the connections that are open."""
        self.closed = True
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def lengths(body):
    """The score of an episode is the length of its response."""
    return {"scores": [float(len(item["response"])) for item in body["episodes"]]}


def episodes(n, prompt="p"):
    return [Episode.from_text(prompt, "x" * i) for i in range(n)]
