"""A TLS server of CPython's ssl module that asks for client certificates, one connection after another.

usage: verify_server.py PORT CERT KEY [OPTION=VALUE...]

| option | |
|---|---|
| ca, crl | files of what is trusted and what is revoked |
| mode | none, optional or required (default) |
| flags | of X509_VERIFY_PARAM, as a number |
| ciphers | of TLS 1.2 |
| min, max | TLSv1_2 or TLSv1_3 |
| later | a file that is trusted, too, after the first connection |
| revoke | a file that is read once it is there: what is revoked from then on |
| capath | a folder of hashed certificates and lists of revoked ones |

The answer tells how the handshake was, and the common name of the client.
"""

import os
import socket
import ssl
import sys

port, cert, key = sys.argv[1:4]
options = dict(option.split("=", 1) for option in sys.argv[4:])

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(cert, key)
context.options |= ssl.OP_NO_TICKET
for option in "ca", "crl":
    if option in options:
        context.load_verify_locations(options[option])
if "capath" in options:
    context.load_verify_locations(capath=options["capath"])
context.verify_mode = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}[options.get("mode", "required")]
if "crl" in options:
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
if "flags" in options:
    context.verify_flags |= int(options["flags"], 0)
if "ciphers" in options:
    context.set_ciphers(options["ciphers"])
context.minimum_version = ssl.TLSVersion[options.get("min", "TLSv1_2")]
context.maximum_version = ssl.TLSVersion[options.get("max", "TLSv1_3")]


def serve(connection):
    connection.settimeout(10)
    tls = context.wrap_socket(connection, server_side=True)
    subject = dict(pair[0] for pair in (tls.getpeercert() or {}).get("subject", ()))
    handshake = "resumed" if tls.session_reused else "full"
    tls.sendall(f"{handshake} {subject.get('commonName', 'nobody')}\n".encode())
    while tls.recv(4096):
        pass
    tls.unwrap()


listener = socket.create_server(("127.0.0.1", int(port)), backlog=64)
while True:
    connection = listener.accept()[0]
    if os.path.exists(options.get("revoke", "")):
        context.load_verify_locations(options.pop("revoke"))
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    try:
        serve(connection)
        if "later" in options:
            context.load_verify_locations(options.pop("later"))
    except (OSError, ssl.SSLError):
        pass  # a client that went away, or that was refused
    finally:
        connection.close()
