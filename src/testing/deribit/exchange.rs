//! The embedded Deribit's state and its rules: who is signed in, what each has left to spend, which channels and orders
//! there are. Every rule is one that the venue documents.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::market::{self, Market, now_ms};
use crate::message::{CloseFrame, Message};
use crate::testing::script::Say;
use crate::venue::deribit::Pool;

/// What may be set when it is started.
#[derive(Clone)]
pub(super) struct Rules {
    pub(super) accounts: HashMap<String, String>,
    /// Capacity, and refill a second.
    pub(super) credits: (f64, f64),
    pub(super) matching_engine: (f64, f64),
    /// How long one of the heartbeat's seconds lasts.
    pub(super) second: Duration,
    pub(super) token_lifetime: Duration,
}

pub(super) struct Exchange {
    pub(super) rules: Rules,
    pub(super) markets: Vec<Market>,
    pub(super) orders: BTreeMap<u64, Order>,
    pub(super) peers: BTreeMap<usize, Seat>,
    pub(super) tokens: HashMap<String, Token>,
    pools: HashMap<(String, Pool), Level>,
    pub(super) violations: Vec<String>,
    pub(super) next: u64,
    pub(super) dice: fastrand::Rng,
    /// For other connections than the one that is being served.
    pub(super) mail: Vec<(usize, Message)>,
}

/// One connection.
#[derive(Default)]
pub(super) struct Seat {
    pub(super) account: Option<(String, Instant)>,
    pub(super) channels: BTreeSet<String>,
    pub(super) cancel_on_disconnect: bool,
    pub(super) heartbeat: Option<Pulse>,
}

#[derive(Clone)]
pub(super) struct Pulse {
    pub(super) interval: Duration,
    pub(super) next: Instant,
    pub(super) tested: bool,
}

pub(super) struct Token {
    pub(super) account: String,
    /// With the scope `connection` it dies with this connection.
    pub(super) peer: Option<usize>,
    pub(super) expires: Instant,
    pub(super) refresh: bool,
    /// The named session that it is of.
    pub(super) session: Option<String>,
}

#[derive(Clone)]
pub(super) struct Order {
    pub(super) account: String,
    pub(super) peer: usize,
    pub(super) buy: bool,
    pub(super) state: &'static str,
    pub(super) market: usize,
    pub(super) amount: f64,
    pub(super) filled: f64,
    pub(super) price: f64,
    pub(super) label: String,
    pub(super) kind: String,
    pub(super) time_in_force: String,
    pub(super) post_only: bool,
    pub(super) created: u64,
}

struct Level {
    level: f64,
    at: Instant,
}

impl Level {
    fn take(&mut self, cost: f64, (capacity, refill): (f64, f64), now: Instant) -> bool {
        let dripped = now.saturating_duration_since(self.at).as_secs_f64() * refill;
        (self.level, self.at) = ((self.level + dripped).min(capacity), now);
        let enough = self.level >= cost;
        if enough {
            self.level -= cost;
        }
        enough
    }
}

impl Exchange {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
            markets: market::all(),
            orders: BTreeMap::new(),
            peers: BTreeMap::new(),
            tokens: HashMap::new(),
            pools: HashMap::new(),
            violations: Vec::new(),
            next: 1000,
            dice: fastrand::Rng::new(),
            mail: Vec::new(),
        }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Who a connection acts for, if it is signed in and its token has not expired.
    pub(super) fn account(&self, peer: usize, now: Instant) -> Option<String> {
        let (account, expires) = self.peers.get(&peer)?.account.as_ref()?;
        (*expires > now).then(|| account.clone())
    }

    /// Takes a request's cost from its pool: the account's, or the connection's own while nobody is signed in.
    pub(super) fn charge(&mut self, peer: usize, pool: Pool, now: Instant) -> bool {
        let whose = self.account(peer, now).unwrap_or_else(|| format!("#{peer}"));
        let (cost, size) = match pool {
            Pool::MatchingEngine => (1.0, self.rules.matching_engine),
            Pool::Subscribe => (3_000.0, (30_000.0, 10_000.0)),
            Pool::Instruments => (10_000.0, (500_000.0, 10_000.0)),
            Pool::Common => (500.0, self.rules.credits),
            Pool::None => return true,
        };
        self.pools.entry((whose, pool)).or_insert(Level { level: size.0, at: now }).take(cost, size, now)
    }

    pub(super) fn market(&self, name: &str) -> Option<usize> {
        self.markets.iter().position(|market| market.name == name)
    }

    /// Whether there is a channel of this name, and whether it is an account's own.
    pub(super) fn channel(&self, name: &str) -> Option<bool> {
        let parts: Vec<_> = name.split('.').collect();
        let interval = |text: &str| ["raw", "100ms", "agg2"].contains(&text);
        let instrument = |text: &str| self.market(text).is_some();
        let currency = |text: &str| ["BTC", "ETH", "any"].contains(&text);
        let kind = |text: &str| ["future", "option", "any"].contains(&text);
        match parts[..] {
            ["book" | "trades" | "ticker", name, every] if instrument(name) && interval(every) => Some(false),
            ["quote", name] if instrument(name) => Some(false),
            ["user", "orders" | "trades" | "changes", name, every] if instrument(name) && interval(every) => Some(true),
            ["user", "orders" | "trades" | "changes", of, in_, every]
                if kind(of) && currency(in_) && interval(every) =>
            {
                Some(true)
            }
            ["user", "portfolio", of] if currency(of) => Some(true),
            _ => None,
        }
    }

    /// What a subscriber is told at once.
    pub(super) fn first_words(&self, channel: &str) -> Vec<Value> {
        let mut parts = channel.split('.');
        let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let Some(market) = self.market(name).map(|index| &self.markets[index]) else { return vec![] };
        match kind {
            "book" => vec![notification(channel, market.snapshot())],
            "ticker" => vec![notification(channel, market.ticker())],
            "quote" => vec![notification(channel, market.quote())],
            _ => vec![],
        }
    }

    /// Sends data to every connection that subscribes to a channel for which `wants` says so.
    fn publish(&mut self, account: Option<&str>, wants: impl Fn(&str) -> bool, data: &Value) {
        for (index, seat) in &self.peers {
            if account.is_some() && seat.account.as_ref().map(|(account, _)| account.as_str()) != account {
                continue;
            }
            for channel in seat.channels.iter().filter(|channel| wants(channel)) {
                self.mail.push((*index, Message::text(notification(channel, data.clone()).to_string())));
            }
        }
    }

    /// One thing happens on the market: a book moves, now and then with a trade.
    pub(super) fn step(&mut self) {
        let index = self.dice.usize(0..self.markets.len());
        self.step_market(index);
    }

    pub(super) fn step_market(&mut self, index: usize) {
        let data = self.markets[index].change(&mut self.dice);
        let name = self.markets[index].name;
        self.publish(None, |channel| of(channel, "book", name), &data);
        let (ticker, quote) = (self.markets[index].ticker(), self.markets[index].quote());
        self.publish(None, |channel| of(channel, "ticker", name), &ticker);
        self.publish(None, |channel| of(channel, "quote", name), &quote);
        if self.dice.u8(0..3) == 0 {
            let (id, buy, amount) = (self.number(), self.dice.bool(), self.markets[index].lot());
            let trade = self.markets[index].trade(buy, amount, id);
            self.publish(None, |channel| of(channel, "trades", name), &json!([trade]));
        }
    }

    /// Tells the account's connections of an order.
    pub(super) fn publish_order(&mut self, id: u64) {
        let Some(order) = self.orders.get(&id).cloned() else { return };
        let (market, data) = (&self.markets[order.market], self.describe(id));
        let (name, currency) = (market.name, market.currency());
        self.publish(Some(&order.account), |channel| of_user(channel, "orders", name, currency), &data);
    }

    /// Fills an order at the best price; returns its trades.
    pub(super) fn fill(&mut self, id: u64) -> Vec<Value> {
        let trade_id = self.number();
        let Some(order) = self.orders.get_mut(&id) else { return vec![] };
        let market = &mut self.markets[order.market];
        let mut trade = market.trade(order.buy, order.amount, trade_id);
        (order.filled, order.state) = (order.amount, "filled");
        order.price = trade["price"].as_f64().unwrap_or_default();
        let (name, currency, account) = (market.name, market.currency(), order.account.clone());
        self.publish(None, |channel| of(channel, "trades", name), &json!([trade]));
        let own = json!({
            "order_id": id.to_string(), "order_type": order_kind(&self.orders, id), "state": "filled", "liquidity": "T",
            "fee": 0.0, "fee_currency": currency, "label": self.orders[&id].label, "self_trade": false, "api": true,
            "matching_id": null, "post_only": false, "reduce_only": false, "profit_loss": 0.0,
        });
        if let (Some(trade), Value::Object(own)) = (trade.as_object_mut(), own) {
            trade.extend(own);
        }
        let data = json!([trade]);
        self.publish(Some(&account), |channel| of_user(channel, "trades", name, currency), &data);
        vec![trade]
    }

    pub(super) fn describe(&self, id: u64) -> Value {
        let order = &self.orders[&id];
        json!({
            "order_id": id.to_string(), "order_state": order.state, "instrument_name": self.markets[order.market].name,
            "direction": if order.buy { "buy" } else { "sell" }, "amount": order.amount, "filled_amount": order.filled,
            "price": order.price, "average_price": if order.filled > 0.0 { order.price } else { 0.0 },
            "label": order.label, "order_type": order.kind, "time_in_force": order.time_in_force,
            "post_only": order.post_only, "reduce_only": false, "api": true, "web": false, "replaced": false,
            "is_liquidation": false, "risk_reducing": false, "mmp": false, "max_show": order.amount,
            "creation_timestamp": order.created, "last_update_timestamp": now_ms(),
        })
    }

    /// Cancels the open orders that `which` picks; returns their numbers.
    pub(super) fn cancel(&mut self, which: impl Fn(u64, &Order) -> bool) -> Vec<u64> {
        let open = self.orders.iter().filter(|(id, order)| order.state == "open" && which(**id, order));
        let ids: Vec<u64> = open.map(|(id, _)| *id).collect();
        for id in &ids {
            if let Some(order) = self.orders.get_mut(id) {
                order.state = "cancelled";
            }
            self.publish_order(*id);
        }
        ids
    }

    /// A connection is over.
    pub(super) fn disconnect(&mut self, peer: usize) {
        self.tokens.retain(|_, token| token.peer != Some(peer));
        let Some(seat) = self.peers.remove(&peer) else { return };
        if seat.cancel_on_disconnect {
            self.cancel(|_, order| order.peer == peer);
        }
    }

    /// What a connection's heartbeat says now.
    pub(super) fn pulse(&mut self, peer: usize, now: Instant) -> Vec<Say> {
        let Some(pulse) = self.peers.get_mut(&peer).and_then(|seat| seat.heartbeat.as_mut()) else { return vec![] };
        if now < pulse.next {
            return vec![];
        }
        if pulse.tested {
            self.violations.push(format!("connection {peer}: test_request not answered"));
            return vec![close("test_request was not answered")];
        }
        (pulse.next, pulse.tested) = (now + pulse.interval, true);
        let beat = |kind| json!({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": kind}});
        ["heartbeat", "test_request"].map(|kind| Say::Message(Message::text(beat(kind).to_string()))).into()
    }
}

fn order_kind(orders: &BTreeMap<u64, Order>, id: u64) -> String {
    orders.get(&id).map(|order| order.kind.clone()).unwrap_or_default()
}

pub(super) fn close(reason: &str) -> Say {
    Say::Close(CloseFrame { code: 1008, reason: reason.into() })
}

pub(super) fn notification(channel: &str, data: Value) -> Value {
    json!({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})
}

fn of(channel: &str, kind: &str, instrument: &str) -> bool {
    let mut parts = channel.split('.');
    parts.next() == Some(kind) && parts.next() == Some(instrument)
}

fn of_user(channel: &str, kind: &str, instrument: &str, currency: &str) -> bool {
    let parts: Vec<_> = channel.split('.').collect();
    match parts[..] {
        ["user", of, name, _] => of == kind && name == instrument,
        ["user", of, _, in_, _] => of == kind && (in_ == currency || in_ == "any"),
        _ => false,
    }
}
