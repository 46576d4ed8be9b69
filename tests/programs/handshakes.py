"""A program that does handshakes with itself, in forked processes too.

usage: handshakes.py FORKS PARENT CHILD

PARENT resumed handshakes on one context; then FORKS children, one after another, that each do CHILD more on the context
they inherited and end without a word (_exit). Prints the statistics that the first child sees as JSON, and waits for its
input to end. The certificate is in cert.pem and key.pem.
"""

import json
import os
import ssl
import sys

forks, parent, child = map(int, sys.argv[1:])

server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain("cert.pem", "key.pem")
server.options |= ssl.OP_NO_TICKET
server.maximum_version = ssl.TLSVersion.TLSv1_2
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname = False
client.verify_mode = ssl.CERT_NONE


def handshake(session=None):
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, session=session),
        server.wrap_bio(there, back, server_side=True),
    ]
    done = [False, False]
    while not all(done):
        for i, end in enumerate(ends):
            try:
                end.do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
    session, reused = ends[0].session, ends[0].session_reused
    for _ in range(2):  # close_notify both ways: else the session is lost
        for end in ends:
            try:
                end.unwrap()
            except ssl.SSLWantReadError:
                pass
    return session, reused


session, _ = handshake()
for _ in range(parent):
    assert handshake(session)[1]
for number in range(forks):
    process = os.fork()
    if process == 0:
        for _ in range(child):
            assert handshake(session)[1]
        if number == 0:
            print(json.dumps(server.session_stats()), flush=True)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
print("done", flush=True)
sys.stdin.read()
