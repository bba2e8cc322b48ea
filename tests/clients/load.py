"""Requests of all kinds at once, by httpx in HTTP/1.1 and HTTP/2: as load.mjs.

Argument: as of load.mjs.
Out: as of load.mjs.
"""

import asyncio
import hashlib
import json
import os
import random
import ssl
import sys
import time

import httpx

FAILURES_MAX = 20
PATIENCE = 30
KINDS = ("get", "length", "chunked", "trickle", "abort", "slow", "left")


class GivenUp(Exception):
    """Not to the end, on purpose."""


class Load:
    """The workers, and what they found."""

    def __init__(self, settings):
        self.settings = settings
        self.end = time.monotonic() + settings["seconds"]
        self.kinds, self.failures, self.count = {}, [], 0

    async def run(self):
        trusting = ssl.create_default_context(cafile=self.settings["ca"])
        limits = httpx.Limits(max_connections=self.settings["workers"])
        plain = httpx.AsyncClient(limits=limits, timeout=PATIENCE)

        def tls():
            return httpx.AsyncClient(http1=False, http2=True, verify=trusting, timeout=PATIENCE)

        async with plain:
            workers = []
            for _ in range(self.settings["workers"]):
                workers.append(self.worker("http1", lambda: plain, f"http://{self.settings['plain']}"))
                workers.append(self.worker("http2", tls, f"https://{self.settings['tls']}"))
            await asyncio.gather(*workers)
        print(json.dumps({"kinds": self.kinds, "failures": self.failures}))

    async def worker(self, protocol, connect, url):
        client = connect()
        while time.monotonic() < self.end and len(self.failures) < FAILURES_MAX:
            kind = random.choice(KINDS)
            size = 0 if kind == "get" else random.randrange(random.choice((3_000, 3_000, 300_000)))
            body = os.urandom(size)
            try:
                await asyncio.wait_for(self.ask(kind, client, url, body), PATIENCE)
            except GivenUp:
                # httpx neither resets the stream nor gives back its part of the connection's window: another connection.
                if protocol == "http2":
                    await client.aclose()
                    client = connect()
            except Exception as error:  # Whatever it is, it should not be.
                self.failures.append(f"{protocol} {kind} of {size} bytes: {error!r}")
            key = f"{protocol} {kind}"
            self.kinds[key] = self.kinds.get(key, 0) + 1
            await asyncio.sleep(random.random() / 100)
        if protocol == "http2":
            await client.aclose()

    async def ask(self, kind, client, url, body):
        self.count += 1
        identity = f"python-{os.getpid()}-{self.count}"
        total = hashlib.sha256(body).hexdigest()
        answer = 400_000 if kind in ("slow", "left") else random.randrange(2_000)
        headers = {"x-id": identity, "x-sum": total, "x-response": str(answer)}
        if random.random() < 0.5:
            headers["x-chunked"] = "1"
        content = {"get": None, "length": body, "slow": body}.get(kind, pieces(kind, body))
        method = "GET" if kind == "get" else "POST"
        extensions = {"sni_hostname": self.settings["name"]}
        stream = client.stream(
            method, f"{url}/load", headers=headers, content=content, extensions=extensions
        )
        got = b""
        async with stream as response:
            async for piece in response.aiter_raw():
                got += piece
                if kind == "left" and 50_000 < len(got):
                    raise GivenUp
                if kind == "slow" and len(got) < 200_000:
                    await asyncio.sleep(0.01)
        first = f"{identity} {len(body)} {total}\n".encode()
        assert response.status_code == 200, f"status {response.status_code}: {got[:80]}"
        assert response.headers["x-id"] == identity, f"the response of {response.headers['x-id']}"
        assert got.startswith(first), f"the body {got[:80]}"
        assert len(got) == len(first) + answer, f"{len(got)} bytes"


async def pieces(kind, body):
    """A body of no known length; given up midway if its kind says so."""
    at, number = 0, 0
    while at < len(body):
        if kind == "abort" and len(body) / 2 <= at:
            raise GivenUp
        size = 1 + random.randrange(len(body) // 3 + 1)
        yield body[at : at + size]
        at += size
        number += 1
        if kind == "trickle" and number < 5:
            await asyncio.sleep(0.01)
    if kind == "abort":
        raise GivenUp


asyncio.run(Load(json.loads(sys.argv[1])).run())
