"""What gunicorn (app:wsgi) and uvicorn (app:asgi) serve in the tests: a line that names the process."""

import os


def wsgi(environ, start_response):
    body = b"worker %d\n" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b"worker %d\n" % os.getpid()
    headers = [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
