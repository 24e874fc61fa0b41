"""ccxt's Deribit client against the embedded one: it signs in, watches a book, trades and its own trades.

usage: ccxt_deribit.py ws://127.0.0.1:PORT/ws/api/v2
"""

import asyncio
import sys

import ccxt.pro


async def main(url):
    rest = "http" + url.split("/ws/api")[0].removeprefix("ws")
    exchange = ccxt.pro.deribit({"apiKey": "id", "secret": "secret", "enableRateLimit": False})
    exchange.urls["api"] = {"rest": rest, "ws": url}
    try:
        markets = await exchange.load_markets()
        assert "BTC/USD:BTC" in markets, sorted(markets)
        symbol = "BTC/USD:BTC"
        updates = 0
        for _ in range(20):
            book = await exchange.watch_order_book(symbol)
            assert book["bids"][0][0] < book["asks"][0][0], book
            updates += 1
        trades = []
        while len(trades) < 3:
            trades += await exchange.watch_trades(symbol)
        assert all(trade["symbol"] == symbol and trade["price"] > 0 for trade in trades)
        token = await exchange.authenticate()
        assert token is not None
        # Its own trades need one: bought over REST's twin on the same socket.
        own = asyncio.ensure_future(exchange.watch_my_trades(symbol))
        client = exchange.client(url)
        while "user.trades.any.any.raw" not in client.subscriptions:
            await asyncio.sleep(0.01)
        order = {"instrument_name": "BTC-PERPETUAL", "amount": 10, "type": "market", "label": "from ccxt"}
        await client.send({"jsonrpc": "2.0", "id": 900001, "method": "private/buy", "params": order})
        mine = await asyncio.wait_for(own, 20)
        assert mine and mine[-1]["symbol"] == symbol and mine[-1]["side"] == "buy", mine
        print(f"ccxt {ccxt.__version__}: {len(markets)} markets, {updates} book updates, {len(trades)} trades, {len(mine)} of its own")
    finally:
        await exchange.close()


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 60))
