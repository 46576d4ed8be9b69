"""A threaded HTTPS server of CPython's ssl module, which loads libssl behind itself (RTLD_LOCAL).

usage: https_server.py PORT CERT KEY tls1_2|tls1_3 unwrap|close

The answer tells how the handshake was. Each connection is closed with unwrap() (close_notify) or simply closed. On SIGTERM the server prints
SSLContext.session_stats() as JSON and ends.
"""

import json
import os
import signal
import socket
import ssl
import sys
import threading

port, cert, key, version, ending = sys.argv[1:]

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.options |= ssl.OP_NO_TICKET
context.minimum_version = context.maximum_version = {
    "tls1_2": ssl.TLSVersion.TLSv1_2,
    "tls1_3": ssl.TLSVersion.TLSv1_3,
}[version]


def serve(connection):
    connection.settimeout(10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        tls = context.wrap_socket(connection, server_side=True)
    except (OSError, ssl.SSLError):
        connection.close()  # not a TLS client: someone looked whether the port is open
        return
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        data = tls.recv(4096)
        if not data:
            break
        request += data
    handshake = b"resumed" if tls.session_reused else b"full"
    tls.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + handshake + b" handshake\n")
    try:
        if ending == "unwrap":
            tls = tls.unwrap()
    except (OSError, ssl.SSLError):
        pass  # the client went first
    tls.close()


def end(*_):
    print(json.dumps(context.session_stats()), flush=True)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
