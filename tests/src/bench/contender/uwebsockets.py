"""uWebSockets as a relay: `/echo` sends each message back, every other path is a topic to publish on."""

import json
import os
import sys

from socketify import App, AppListenOptions, AppOptions, CompressOptions, OpCode

BACKPRESSURE = 256 * 1024


def upgrade(response, request, context):
    url = request.get_url()
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        url,
    )


def app_with(options):
    app = App(options)

    def opened(socket):
        if socket.get_user_data() != "/echo":
            socket.subscribe(socket.get_user_data())

    def heard(socket, message, opcode):
        url = socket.get_user_data()
        if url == "/echo":
            socket.send(message, opcode)
        else:
            app.publish(url, message, opcode)

    app.ws(
        "/*",
        {
            "compression": CompressOptions.DISABLED,
            "max_payload_length": 1024 * 1024,
            "idle_timeout": 0,
            "max_backpressure": BACKPRESSURE,
            "close_on_backpressure_limit": True,
            "upgrade": upgrade,
            "open": opened,
            "message": heard,
        },
    )
    return app


def announce(listener, port):
    fields = {"message": "listening", "listener": listener, "address": f"127.0.0.1:{port}"}
    print(json.dumps({"fields": fields}), file=sys.stderr, flush=True)


certificate = os.environ.get("CERTIFICATE")
options = None
if certificate:
    options = AppOptions(key_file_name=os.environ["KEY"], cert_file_name=certificate)
server = app_with(options)
port = int(os.environ["PORT"])
where = AppListenOptions(port=port, host="127.0.0.1")
server.listen(where, lambda config: announce("bench", port))
if certificate:
    announce("bench-tls", port)
# The loop below asyncio's: that one never sleeps while there is work, and would count as used what it only waits.
server.loop.uv_loop.run()
