"""Calls of the HTTP API with PyPI's cent, one for each line of standard input.

Argument: {"url": "http://127.0.0.1:9000/api", "key": "..."}
A line: {"method": "publish", "arguments": {...}}; its answer: {"event": "answer", "result": {...}} or, with the code of
an error or the name of an exception, {"event": "answer", "error": 102}.
"""

import json
import sys

import cent

ORDERS = json.loads(sys.argv[1])
CLIENT = cent.Client(ORDERS["url"], api_key=ORDERS["key"])

REQUESTS = {
    "publish": cent.PublishRequest,
    "broadcast": cent.BroadcastRequest,
    "subscribe": cent.SubscribeRequest,
    "unsubscribe": cent.UnsubscribeRequest,
    "disconnect": cent.DisconnectRequest,
    "refresh": cent.RefreshRequest,
    "presence": cent.PresenceRequest,
    "presence_stats": cent.PresenceStatsRequest,
    "history": cent.HistoryRequest,
    "history_remove": cent.HistoryRemoveRequest,
    "channels": cent.ChannelsRequest,
    "info": cent.InfoRequest,
}


def request(order):
    return REQUESTS[order["method"]](**order["arguments"])


def call(order):
    if order["method"] == "batch":
        requests = [request(part) for part in order["arguments"]["requests"]]
        parallel = order["arguments"].get("parallel")
        result = CLIENT.batch(cent.BatchRequest(requests=requests, parallel=parallel))
        return [reply.model_dump() for reply in result.replies]
    return getattr(CLIENT, order["method"])(request(order)).model_dump()


for line in sys.stdin:
    try:
        answer = {"result": call(json.loads(line))}
    except cent.CentApiResponseError as error:
        answer = {"error": error.code}
    except cent.CentError as error:
        answer = {"error": type(error).__name__}
    print(json.dumps({"event": "answer", **answer}), flush=True)
