"""Clients made with Python's websockets: the commands and the events of clients.mjs.

Argument: {"url": "http://127.0.0.1:8080", "each": 4, "messages": 10}
"""

import asyncio
import json
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

PAUSE_SECONDS = 0.1
# A busy machine is no reason to give a connection up.
PATIENCE_SECONDS = 60

ORDERS = json.loads(sys.argv[1])
URL = ORDERS["url"].replace("http", "ws", 1)


class Client:
    def __init__(self):
        self.opened = 0
        self.processes = set()
        self.cookie = None
        self.socket = None

    async def open(self):
        headers = {"Cookie": self.cookie} if self.cookie else {}
        while True:
            try:
                self.socket = await connect(
                    URL,
                    additional_headers=headers,
                    open_timeout=PATIENCE_SECONDS,
                    ping_timeout=PATIENCE_SECONDS,
                    proxy=None,
                )
                break
            except (OSError, EOFError, InvalidHandshake, TimeoutError):
                await asyncio.sleep(PAUSE_SECONDS)
        self.opened += 1
        bound = self.socket.response.headers.get_all("Set-Cookie")
        if bound:
            self.cookie = bound[0].split(";")[0]

    async def say(self, text):
        while True:
            try:
                await self.socket.send(text)
                answer = json.loads(await self.socket.recv())
            except ConnectionClosed:
                await self.open()
                continue
            assert answer["text"] == text, f"said {text}, heard {answer}"
            self.processes.add(answer["process"])
            return

    async def round(self, number):
        self.processes.clear()
        if self.opened == 0:
            await self.open()
        for count in range(ORDERS["messages"]):
            await self.say(f"{number}-{count}")

    async def reopen(self):
        await self.socket.close()
        await self.open()

    def report(self):
        return {"wire": "websocket", "opened": self.opened, "processes": list(self.processes)}


async def main():
    clients = [Client() for _ in range(ORDERS["each"])]
    rounds = 0
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        command = line.strip()
        if command == "round":
            rounds += 1
            await asyncio.gather(*(client.round(rounds) for client in clients))
        else:
            await asyncio.gather(*(client.reopen() for client in clients))
        event = {"event": command, "clients": [client.report() for client in clients]}
        print(json.dumps(event), flush=True)


asyncio.run(main())
