"""cryptofeed's Deribit feed against the embedded one: a raw book, whose chain of change ids it checks. Over TLS, which it
insists on. When the chain is broken on purpose, it must complain.

usage: cryptofeed_deribit.py wss://localhost:PORT/ws/api/v2 COMMANDS
COMMANDS is a file (a pipe to the server's stdin) that takes `break INSTRUMENT`.
"""

import asyncio
import logging
import sys

from cryptofeed import FeedHandler
from cryptofeed.connection import RestEndpoint, Routes, WebsocketEndpoint
from cryptofeed.defines import L2_BOOK, ORDER_INFO, TRADES
from cryptofeed.exchanges import Deribit

url, commands = sys.argv[1], sys.argv[2]
rest = "https" + url.split("/ws/api")[0].removeprefix("wss")


class Complaints(logging.Handler):
    seen = []

    def emit(self, record):
        self.seen.append(record.getMessage())


class Embedded(Deribit):
    websocket_endpoints = [WebsocketEndpoint(url)]
    routes = ["/api/v2/public/get_instruments?currency=BTC", "/api/v2/public/get_instruments?currency=ETH"]
    rest_endpoints = [RestEndpoint(rest, routes=Routes(routes))]


class Count:
    books = trades = snapshots = 0
    broken_at = None


def gaps():
    return [text for text in Complaints.seen if "Missing sequence number" in text]


async def book(update, receipt):
    Count.books += 1
    Count.snapshots += update.delta is None
    if Count.broken_at is None and Count.books > 200:
        assert not gaps(), gaps()
        Count.broken_at = Count.books
        with open(commands, "a") as pipe:
            pipe.write("break BTC-PERPETUAL\n")
    # It asks for a new snapshot by connecting anew.
    if Count.broken_at and gaps() and Count.snapshots > 1 and Count.books > Count.broken_at + 100:
        asyncio.get_running_loop().stop()


async def trade(update, receipt):
    Count.trades += 1


logging.getLogger("feedhandler").addHandler(Complaints())
config = {"log": {"filename": sys.argv[3], "level": "DEBUG"}, "deribit": {"key_id": "id", "key_secret": "secret"}}
handler = FeedHandler(config=config)
feed = Embedded(
    symbols=["BTC-USD-PERP"],
    channels=[L2_BOOK, TRADES, ORDER_INFO],
    callbacks={L2_BOOK: book, TRADES: trade},
    config=config,
)
handler.add_feed(feed)
handler.run()
assert Count.trades > 0 and len(gaps()) == 1 and Count.snapshots == 2, (Count.__dict__, Complaints.seen[-20:])
print(f"cryptofeed: {Count.books} book updates, {Count.trades} trades; one broken chain, noticed, and a new snapshot")
