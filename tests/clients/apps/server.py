"""One process of somebody's app: an echo server made with Python's websockets as PyPI has it.

Argument: {"name": "a"}. It answers each message with {"process": "a", "text": ...}.
"""

import asyncio
import json
import sys

from websockets.asyncio.server import serve

# A busy machine is no reason to give a client up.
PATIENCE_SECONDS = 60

NAME = json.loads(sys.argv[1])["name"]


async def echo(client):
    async for text in client:
        await client.send(json.dumps({"process": NAME, "text": text}))


async def main():
    async with serve(echo, "127.0.0.1", 0, ping_timeout=PATIENCE_SECONDS) as server:
        address, port = server.sockets[0].getsockname()
        fields = {"message": "listening", "listener": "app", "address": f"{address}:{port}"}
        print(json.dumps({"fields": fields}), file=sys.stderr, flush=True)
        await server.serve_forever()


asyncio.run(main())
