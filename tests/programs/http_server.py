"""Python's http.server behind an SSLContext with its defaults: it closes connections without unwrap() (close_notify).

usage: http_server.py PORT CERT KEY
"""

import http.server
import os
import ssl
import sys

port, cert, key = sys.argv[1:]


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"worker %d\n" % os.getpid())

    def log_message(self, *_):
        pass


context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
