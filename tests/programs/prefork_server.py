"""A prefork HTTPS server of CPython's ssl module: processes that each have a listening socket and an SSLContext of
their own, and close connections as most Python servers do, without unwrap() (close_notify).

usage: prefork_server.py PORT CERT KEY WORKERS tls1_2|tls1_3 [no_ticket] [context_per_connection]

With context_per_connection each connection even gets an SSLContext of its own, as gunicorn does it. It listens on
127.0.0.1 (PORT 0: on a free port, which it prints). Each request is answered by a line that names the process. SIGTERM
ends all of them.
"""

import os
import signal
import socket
import ssl
import sys

port, cert, key, workers, version, *options = sys.argv[1:]


def make_context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if "no_ticket" in options:
        context.options |= ssl.OP_NO_TICKET
    context.minimum_version = context.maximum_version = {
        "tls1_2": ssl.TLSVersion.TLSv1_2,
        "tls1_3": ssl.TLSVersion.TLSv1_3,
    }[version]
    return context


def serve(context, connection):
    connection.settimeout(5)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(connection, server_side=True) as tls:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            data = tls.recv(4096)
            if not data:
                return
            request += data
        handshake = "resumed" if tls.session_reused else "full"
        tls.sendall(b"HTTP/1.0 200 OK\r\n\r\nworker %d, %s handshake\n" % (os.getpid(), handshake.encode()))


def work(listener):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    context = make_context()
    while True:
        connection, _ = listener.accept()
        try:
            serve(make_context() if "context_per_connection" in options else context, connection)
        except OSError:
            pass  # a client that leaves early, or speaks no TLS
        finally:
            connection.close()


listeners = []
for _ in range(int(workers)):
    listeners.append(socket.create_server(("127.0.0.1", int(port)), reuse_port=True, backlog=128))
    port = listeners[0].getsockname()[1]
children = []
for listener in listeners:
    child = os.fork()
    if child == 0:
        work(listener)
    children.append(child)
for listener in listeners:
    listener.close()


def end(*_):
    for child in children:
        os.kill(child, signal.SIGTERM)


signal.signal(signal.SIGTERM, end)
print(f"listening on 127.0.0.1:{port}", flush=True)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
