//! The embedded Deribit's instruments: books that move, by changes that are chained as the venue's are. Knows no client.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The venue's clock, in milliseconds.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// One instrument. Prices are counted in ticks.
pub(super) struct Market {
    pub(super) name: &'static str,
    base: &'static str,
    kind: &'static str,
    tick_size: f64,
    lot: f64,
    middle: i64,
    pub(super) change_id: u64,
    bids: BTreeMap<i64, f64>,
    asks: BTreeMap<i64, f64>,
    trades: u64,
    last: i64,
}

pub(super) fn all() -> Vec<Market> {
    vec![
        Market::new("BTC-PERPETUAL", "BTC", "future", 0.5, 10.0, 100_000),
        Market::new("ETH-PERPETUAL", "ETH", "future", 0.05, 1.0, 60_000),
        Market::new("BTC-27DEC30-100000-C", "BTC", "option", 0.0005, 0.1, 200),
        Market::new("ETH-27DEC30-4000-P", "ETH", "option", 0.0005, 1.0, 100),
    ]
}

impl Market {
    fn new(name: &'static str, base: &'static str, kind: &'static str, tick_size: f64, lot: f64, middle: i64) -> Self {
        let side = |sign: i64| (1..=10).map(|n| (middle + sign * n, lot * n as f64)).collect();
        let change_id = 33_195_894_164 + middle as u64;
        let (bids, asks) = (side(-1), side(1));
        Self { name, base, kind, tick_size, lot, middle, change_id, bids, asks, trades: 0, last: middle }
    }

    fn price(&self, ticks: i64) -> f64 {
        // To the digit: 0.1 + 0.2 is no price.
        let scaled = ticks as f64 * self.tick_size;
        (scaled * 1e4).round() / 1e4
    }

    pub(super) fn best_bid(&self) -> (f64, f64) {
        self.bids.last_key_value().map_or((0.0, 0.0), |(ticks, amount)| (self.price(*ticks), *amount))
    }

    pub(super) fn best_ask(&self) -> (f64, f64) {
        self.asks.first_key_value().map_or((0.0, 0.0), |(ticks, amount)| (self.price(*ticks), *amount))
    }

    pub(super) fn currency(&self) -> &'static str {
        self.base
    }

    /// Moves one level of the book; returns the `change` notification's data.
    pub(super) fn change(&mut self, dice: &mut fastrand::Rng) -> Value {
        let previous = self.change_id;
        self.change_id += dice.u64(1..200);
        let bid = dice.bool();
        let ticks = self.middle + if bid { -dice.i64(1..=20) } else { dice.i64(1..=20) };
        let side = if bid { &mut self.bids } else { &mut self.asks };
        let (action, amount) = match side.contains_key(&ticks) {
            true if side.len() > 5 && dice.bool() => ("delete", 0.0),
            true => ("change", self.lot * dice.u32(1..100) as f64),
            false => ("new", self.lot * dice.u32(1..100) as f64),
        };
        if action == "delete" {
            side.remove(&ticks)
        } else {
            side.insert(ticks, amount)
        };
        let changed = json!([[action, self.price(ticks), amount]]);
        let (bids, asks) = if bid { (changed, json!([])) } else { (json!([]), changed) };
        json!({
            "type": "change", "timestamp": now_ms(), "prev_change_id": previous, "instrument_name": self.name,
            "change_id": self.change_id, "bids": bids, "asks": asks,
        })
    }

    pub(super) fn snapshot(&self) -> Value {
        let level = |(ticks, amount): (&i64, &f64)| json!(["new", self.price(*ticks), amount]);
        json!({
            "type": "snapshot", "timestamp": now_ms(), "instrument_name": self.name, "change_id": self.change_id,
            "bids": self.bids.iter().rev().map(level).collect::<Vec<_>>(),
            "asks": self.asks.iter().map(level).collect::<Vec<_>>(),
        })
    }

    pub(super) fn order_book(&self, depth: usize) -> Value {
        let level = |(ticks, amount): (&i64, &f64)| json!([self.price(*ticks), amount]);
        let mut book = self.ticker();
        book["change_id"] = self.change_id.into();
        book["bids"] = self.bids.iter().rev().take(depth).map(level).collect();
        book["asks"] = self.asks.iter().take(depth).map(level).collect();
        book
    }

    /// Somebody trades at the best price; returns the trade.
    pub(super) fn trade(&mut self, buy: bool, amount: f64, trade_id: u64) -> Value {
        let price = if buy { self.best_ask().0 } else { self.best_bid().0 };
        self.trades += 1;
        self.last = (price / self.tick_size).round() as i64;
        json!({
            "trade_seq": self.trades, "trade_id": trade_id.to_string(), "timestamp": now_ms(), "tick_direction": 0,
            "price": price, "mark_price": self.price(self.middle), "instrument_name": self.name,
            "index_price": self.index(), "direction": if buy { "buy" } else { "sell" }, "amount": amount,
            "contracts": amount / self.lot,
        })
    }

    pub(super) fn lot(&self) -> f64 {
        self.lot
    }

    fn index(&self) -> f64 {
        if self.base == "BTC" { 50_000.0 } else { 3_000.0 }
    }

    pub(super) fn ticker(&self) -> Value {
        let ((bid, bid_amount), (ask, ask_amount)) = (self.best_bid(), self.best_ask());
        let mark = self.price(self.middle);
        let mut ticker = json!({
            "timestamp": now_ms(), "state": "open", "instrument_name": self.name, "index_price": self.index(),
            "stats": {"volume": 869.0, "price_change": 0.0, "low": bid, "high": ask}, "settlement_price": mark,
            "open_interest": 12_685.0, "min_price": self.price(1), "max_price": self.price(self.middle * 2),
            "mark_price": mark, "last_price": self.price(self.last), "estimated_delivery_price": self.index(),
            "best_bid_price": bid, "best_bid_amount": bid_amount, "best_ask_price": ask, "best_ask_amount": ask_amount,
        });
        let extra = match self.kind {
            "option" => json!({
                "underlying_price": self.index(), "underlying_index": format!("{}-27DEC30", self.base),
                "mark_iv": 60.5, "bid_iv": 59.5, "ask_iv": 61.5, "interest_rate": 0.0,
                "greeks": {"vega": 0.2, "theta": -1.6, "rho": 0.01, "gamma": 0.0002, "delta": 0.03},
            }),
            _ => json!({"funding_8h": 0.0001, "current_funding": 0.00002, "interest_value": 0.0}),
        };
        if let (Some(ticker), Value::Object(extra)) = (ticker.as_object_mut(), extra) {
            ticker.extend(extra);
        }
        ticker
    }

    pub(super) fn quote(&self) -> Value {
        let ((bid, bid_amount), (ask, ask_amount)) = (self.best_bid(), self.best_ask());
        json!({
            "timestamp": now_ms(), "instrument_name": self.name, "best_bid_price": bid, "best_bid_amount": bid_amount,
            "best_ask_price": ask, "best_ask_amount": ask_amount,
        })
    }

    pub(super) fn instrument(&self) -> Value {
        let perpetual = self.kind == "future";
        let mut instrument = json!({
            "instrument_name": self.name, "kind": self.kind, "base_currency": self.base, "is_active": true,
            "quote_currency": if perpetual { "USD" } else { self.base }, "counter_currency": "USD",
            "settlement_currency": self.base, "settlement_period": if perpetual { "perpetual" } else { "month" },
            "price_index": format!("{}_usd", self.base.to_lowercase()), "tick_size": self.tick_size,
            "tick_size_steps": [], "min_trade_amount": self.lot, "contract_size": self.lot, "instrument_id": self.middle,
            "creation_timestamp": 1_534_167_754_000_u64, "state": "open", "rfq": false, "block_trade_commission": 0.0003,
            "expiration_timestamp": if perpetual { 32_503_708_800_000_u64 } else { 1_924_588_800_000 },
            "maker_commission": 0.0, "taker_commission": 0.0005, "instrument_type": "reversed",
            "block_trade_min_trade_amount": 100_000.0, "block_trade_tick_size": self.tick_size,
        });
        if !perpetual {
            let call = self.name.ends_with("-C");
            instrument["option_type"] = if call { "call" } else { "put" }.into();
            instrument["strike"] = if call { 100_000.0 } else { 4_000.0 }.into();
        } else {
            instrument["max_leverage"] = 50.into();
            instrument["future_type"] = "reversed".into();
        }
        instrument
    }
}
