"""centrifuge-python, as PyPI has it: two clients in a room, in each codec.

Argument: {"url": "ws://127.0.0.1:8080/connection/websocket", "secret": "..."}
Out: one JSON line for each codec: {"codec": "json", "seen": {...}}
"""

import asyncio
import json
import sys
import time

import jwt
from centrifuge import (
    CentrifugeError,
    Client,
    ClientEventHandler,
    ReplyError,
    SubscriptionEventHandler,
)

DEADLINE = 20


class Room(SubscriptionEventHandler):
    """Hands on what is said in a room, and who comes."""

    def __init__(self):
        self.publications = asyncio.Queue()
        self.joins = asyncio.Queue()

    async def on_publication(self, ctx):
        await self.publications.put(ctx.pub)

    async def on_join(self, ctx):
        await self.joins.put(ctx.info)


def token(secret, user):
    claims = {"sub": user, "exp": int(time.time()) + 600}
    return jwt.encode(claims, secret, algorithm="HS256")


async def within(what):
    return await asyncio.wait_for(what, DEADLINE)


async def tour(url, secret, codec):
    protobuf = codec == "protobuf"

    def encode(value):
        return json.dumps(value).encode() if protobuf else value

    def decode(data):
        return json.loads(data) if protobuf else data

    channel = f"chat:python-{codec}"
    clients, subscriptions, rooms = [], [], []
    for user in ("ann", "bob"):
        client = Client(
            url,
            events=ClientEventHandler(),
            token=token(secret, user),
            use_protobuf=protobuf,
            proxy=None,
        )
        room = Room()
        subscription = client.new_subscription(
            channel, events=room, recoverable=True, positioned=True, join_leave=True
        )
        await client.connect()
        await within(client.ready())
        await subscription.subscribe()
        await within(subscription.ready())
        clients.append(client)
        subscriptions.append(subscription)
        rooms.append(room)
    ann, bob = subscriptions
    seen = {}
    joined = await within(rooms[0].joins.get())
    while joined.user != "bob":
        joined = await within(rooms[0].joins.get())
    seen["joined"] = joined.user
    await within(ann.publish(encode({"number": 1})))
    publication = await within(rooms[1].publications.get())
    seen["heard"] = decode(publication.data)
    history = await within(bob.history(limit=10))
    seen["history"] = [decode(one.data) for one in history.publications]
    presence = await within(bob.presence())
    seen["presence"] = sorted(one.user for one in presence.clients.values())
    stats = await within(bob.presence_stats())
    seen["presence_stats"] = [stats.num_clients, stats.num_users]
    try:
        await within(clients[0].rpc("method", encode({})))
    except ReplyError as error:
        seen["rpc"] = error.code
    # Away and back: what was missed comes once, in order.
    await clients[1].disconnect()
    for number in (2, 3):
        await within(ann.publish(encode({"number": number})))
    await clients[1].connect()
    missed = [await within(rooms[1].publications.get()) for _ in range(2)]
    seen["missed"] = [decode(one.data) for one in missed]
    for client in clients:
        await client.disconnect()
    return seen


async def main():
    orders = json.loads(sys.argv[1])
    for codec in ("json", "protobuf"):
        try:
            seen = await tour(orders["url"], orders["secret"], codec)
        except (CentrifugeError, asyncio.TimeoutError) as error:
            seen = {"failed": repr(error)}
        print(json.dumps({"codec": codec, "seen": seen}), flush=True)


asyncio.run(main())
