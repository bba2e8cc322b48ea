"""centrifuge-python, as PyPI has it, as one that only listens.

Argument: {"url": "ws://127.0.0.1:8080/connection/websocket", "codec": "json", "channels": ["chat:a"]}
Out: {"subscribed": "chat:a"} for each channel, then {"channel": "chat:a", "data": ...} for each publication, bytes as
{"base64": "..."}; after a publication of "the end" the process ends.
"""

import asyncio
import base64
import json
import sys

from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler


def say(line):
    print(json.dumps(line), flush=True)


def shown(data):
    if not isinstance(data, bytes):
        return data
    try:
        return json.loads(data)
    except ValueError:
        return {"base64": base64.b64encode(data).decode()}


class Channel(SubscriptionEventHandler):
    """Says what is said in a channel."""

    def __init__(self, name, end):
        self.name = name
        self.end = end

    async def on_subscribed(self, ctx):
        say({"subscribed": self.name})

    async def on_publication(self, ctx):
        data = shown(ctx.pub.data)
        say({"channel": self.name, "data": data})
        if data == "the end":
            self.end.set()


async def main():
    orders = json.loads(sys.argv[1])
    end = asyncio.Event()
    protobuf = orders["codec"] == "protobuf"
    client = Client(
        orders["url"], events=ClientEventHandler(), use_protobuf=protobuf, proxy=None
    )
    await client.connect()
    for name in orders["channels"]:
        subscription = client.new_subscription(name, events=Channel(name, end))
        await subscription.subscribe()
    await end.wait()
    await client.disconnect()


asyncio.run(main())
