//! The embedded Deribit's methods: what a request gets for an answer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::exchange::{Exchange, Order, Pulse, Token, close};
use super::market::now_ms;
use crate::message::Message;
use crate::testing::script::Say;
use crate::venue::deribit::{pool, signature};

type Outcome = Result<Value, (i64, &'static str)>;

const INVALID_PARAMS: (i64, &str) = (-32_602, "Invalid params");
const UNAUTHORIZED: (i64, &str) = (13_009, "unauthorized");
const NOT_OPEN: (i64, &str) = (11_044, "not_open_order");
const NOT_FOUND: (i64, &str) = (10_004, "order_not_found");

/// Answers one message.
pub(super) fn answer(exchange: &mut Exchange, peer: usize, message: &Message, now: Instant) -> Vec<Say> {
    let arrived = micros();
    let text = |value: Value| Say::Message(Message::text(value.to_string()));
    let stamp = |mut value: Value| {
        let left = micros();
        value["usIn"] = arrived.into();
        value["usOut"] = left.into();
        value["usDiff"] = (left - arrived).into();
        value["testnet"] = false.into();
        text(value)
    };
    let request = message.as_text().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(request) = request.filter(|request| request["method"].is_string()) else {
        return vec![stamp(
            json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32_700, "message": "Parse error"}}),
        )];
    };
    let method = request["method"].as_str().unwrap_or_default().to_owned();
    let error = |(code, message): (i64, &str)| {
        stamp(json!({"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}))
    };
    if !exchange.charge(peer, pool(message), now) {
        exchange.violations.push(format!("connection {peer}: out of credits at {method}"));
        return vec![error((10_028, "too_many_requests")), close("too_many_requests")];
    }
    let outcome = dispatch(exchange, peer, &method, &request["params"], now);
    let mut words = vec![match outcome {
        Ok(result) => stamp(json!({"jsonrpc": "2.0", "id": request["id"], "result": result})),
        Err(refused) => error(refused),
    }];
    if method.ends_with("/subscribe") {
        // Snapshots follow the answer; a channel that was there before is not told again, but for the asking.
        let channels = request["params"]["channels"].as_array().cloned().unwrap_or_default();
        let subscribed = |name: &str| exchange.peers.get(&peer).is_some_and(|seat| seat.channels.contains(name));
        let names = channels.iter().filter_map(Value::as_str).filter(|name| subscribed(name));
        words.extend(names.flat_map(|name| exchange.first_words(name)).map(text));
    }
    words
}

/// What REST is asked for, without signing in.
pub(super) fn rest(exchange: &mut Exchange, target: &str) -> Option<String> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut params = json!({});
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        params[name] = value.into();
    }
    let method = path.strip_prefix("/api/v2/").filter(|method| method.starts_with("public/"))?;
    let arrived = micros();
    let result = dispatch(exchange, usize::MAX, method, &params, Instant::now()).ok()?;
    let answer = json!({"jsonrpc": "2.0", "result": result, "usIn": arrived, "usOut": micros(), "testnet": false});
    Some(answer.to_string())
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

fn dispatch(exchange: &mut Exchange, peer: usize, method: &str, params: &Value, now: Instant) -> Outcome {
    match method.split_once('/') {
        Some(("public", name)) => public(exchange, peer, name, params, now),
        Some(("private", name)) => {
            let by_token = params["access_token"].as_str().and_then(|token| exchange.tokens.get(token));
            let by_token =
                by_token.filter(|token| token.expires > now && !token.refresh).map(|token| token.account.clone());
            match by_token.or_else(|| exchange.account(peer, now)) {
                Some(account) => private(exchange, peer, &account, name, params, now),
                None => {
                    exchange.violations.push(format!("connection {peer}: {method} without signing in"));
                    Err(UNAUTHORIZED)
                }
            }
        }
        _ => Err((-32_601, "Method not found")),
    }
}

fn public(exchange: &mut Exchange, peer: usize, name: &str, params: &Value, now: Instant) -> Outcome {
    let market = |exchange: &Exchange| {
        params["instrument_name"].as_str().and_then(|name| exchange.market(name)).ok_or(INVALID_PARAMS)
    };
    match name {
        "auth" => auth(exchange, peer, params, now),
        "hello" => Ok(json!({"version": "1.2.26"})),
        "get_time" => Ok(now_ms().into()),
        "test" => {
            if let Some(pulse) = exchange.peers.get_mut(&peer).and_then(|seat| seat.heartbeat.as_mut()) {
                pulse.tested = false;
            }
            Ok(json!({"version": "1.2.26"}))
        }
        "set_heartbeat" => {
            let seconds = params["interval"].as_u64().filter(|seconds| *seconds >= 10).ok_or(INVALID_PARAMS)?;
            let interval = exchange.rules.second * u32::try_from(seconds).map_err(|_| INVALID_PARAMS)?;
            let pulse = Pulse { interval, next: now + interval, tested: false };
            exchange.peers.entry(peer).or_default().heartbeat = Some(pulse);
            Ok("ok".into())
        }
        "disable_heartbeat" => {
            exchange.peers.entry(peer).or_default().heartbeat = None;
            Ok("ok".into())
        }
        "subscribe" => subscribe(exchange, peer, params, now),
        "unsubscribe" => unsubscribe(exchange, peer, params),
        "unsubscribe_all" => {
            exchange.peers.entry(peer).or_default().channels.clear();
            Ok("ok".into())
        }
        "ticker" => Ok(exchange.markets[market(exchange)?].ticker()),
        "get_order_book" => {
            let depth = params["depth"].as_u64().unwrap_or(5).min(1000) as usize;
            Ok(exchange.markets[market(exchange)?].order_book(depth))
        }
        "get_instruments" => {
            let wanted =
                |key: &str, value: &str| params[key].as_str().is_none_or(|want| want == "any" || want == value);
            let fits = |instrument: &Value| {
                wanted("currency", instrument["base_currency"].as_str().unwrap_or_default())
                    && wanted("kind", instrument["kind"].as_str().unwrap_or_default())
            };
            Ok(exchange.markets.iter().map(|market| market.instrument()).filter(fits).collect())
        }
        "get_currencies" => {
            let currency = |name: &str, long: &str, confirmations: u32| {
                json!({
                    "currency": name, "currency_long": long, "coin_type": name, "fee_precision": 4,
                    "min_confirmations": confirmations, "min_withdrawal_fee": 0.0001, "withdrawal_fee": 0.0005,
                    "withdrawal_priorities": [],
                })
            };
            Ok(json!([currency("BTC", "Bitcoin", 1), currency("ETH", "Ethereum", 12)]))
        }
        _ => Err((-32_601, "Method not found")),
    }
}

fn auth(exchange: &mut Exchange, peer: usize, params: &Value, now: Instant) -> Outcome {
    const WRONG: (i64, &str) = (13_004, "invalid_credentials");
    let text = |name: &str| params[name].as_str().unwrap_or_default();
    let mut session =
        params["scope"].as_str().and_then(|scope| scope.split(' ').find_map(|one| one.strip_prefix("session:")));
    let renewed;
    let account = match text("grant_type") {
        "refresh_token" => {
            let token = exchange.tokens.remove(text("refresh_token"));
            let token = token.filter(|token| token.refresh && token.expires > now).ok_or(INVALID_PARAMS)?;
            renewed = token.session;
            session = renewed.as_deref();
            token.account
        }
        grant => {
            let id = text("client_id");
            let secret = exchange.rules.accounts.get(id).ok_or(WRONG)?;
            let right = match grant {
                "client_credentials" => text("client_secret") == secret,
                "client_signature" => {
                    let timestamp = params["timestamp"].as_u64().unwrap_or_default();
                    // A signature holds for a minute; a clock that is off by more signs nothing.
                    let fresh = now_ms().abs_diff(timestamp) < 60_000;
                    fresh && signature(secret, timestamp, text("nonce"), text("data")) == text("signature")
                }
                _ => return Err(INVALID_PARAMS),
            };
            if !right {
                return Err(WRONG);
            }
            id.to_owned()
        }
    };
    let scope = params["scope"].as_str().unwrap_or("connection");
    let lasts = exchange.rules.token_lifetime;
    let bound = session.is_none().then_some(peer);
    // A sign-in to a named session voids the refresh token of the one before.
    let voids = |token: &Token| token.refresh && session.is_some() && token.session.as_deref() == session;
    exchange.tokens.retain(|_, token| !(token.account == account && voids(token)));
    let mut issue = |refresh: bool, lasts: Duration| {
        let name = format!("{}.{:016x}", exchange.number(), exchange.dice.u64(..));
        let token = Token {
            account: account.clone(),
            peer: bound,
            expires: now + lasts,
            refresh,
            session: session.map(str::to_owned),
        };
        exchange.tokens.insert(name.clone(), token);
        name
    };
    let (access, refresh) = (issue(false, lasts), issue(true, lasts * 2));
    exchange.peers.entry(peer).or_default().account = Some((account, now + lasts));
    Ok(json!({
        "access_token": access, "refresh_token": refresh, "expires_in": lasts.as_secs(), "token_type": "bearer",
        "scope": format!("{scope} mainaccount trade:read_write"), "enabled_features": [],
    }))
}

fn channels(params: &Value) -> Result<Vec<String>, (i64, &'static str)> {
    let names = params["channels"].as_array().ok_or(INVALID_PARAMS)?;
    names.iter().map(|name| name.as_str().map(str::to_owned).ok_or(INVALID_PARAMS)).collect()
}

/// Unknown channels, and an account's own without one, are left out of the answer.
fn subscribe(exchange: &mut Exchange, peer: usize, params: &Value, now: Instant) -> Outcome {
    let signed_in = exchange.account(peer, now).is_some();
    let names = channels(params)?;
    if !signed_in && names.iter().any(|name| name.ends_with(".raw") && exchange.channel(name) == Some(false)) {
        return Err((13_778, "raw_subscriptions_not_available_for_unauthorized"));
    }
    let may = |name: &String| exchange.channel(name).is_some_and(|private| signed_in || !private);
    let accepted: Vec<String> = names.into_iter().filter(may).collect();
    exchange.peers.entry(peer).or_default().channels.extend(accepted.iter().cloned());
    Ok(accepted.into())
}

fn unsubscribe(exchange: &mut Exchange, peer: usize, params: &Value) -> Outcome {
    let names = channels(params)?;
    let seat = exchange.peers.entry(peer).or_default();
    Ok(names.into_iter().filter(|name| seat.channels.remove(name)).collect::<Vec<_>>().into())
}

fn private(exchange: &mut Exchange, peer: usize, account: &str, name: &str, params: &Value, now: Instant) -> Outcome {
    let own = |order: &Order| order.account == account;
    let list = |exchange: &Exchange, which: &dyn Fn(&Order) -> bool| -> Value {
        let ids = exchange.orders.iter().filter(|(_, order)| own(order) && which(order)).map(|(id, _)| *id);
        ids.map(|id| exchange.describe(id)).collect()
    };
    let find = |exchange: &Exchange| -> Result<u64, (i64, &'static str)> {
        let id = params["order_id"].as_str().and_then(|id| id.parse().ok()).ok_or(INVALID_PARAMS)?;
        exchange.orders.get(&id).filter(|order| own(order)).map(|_| id).ok_or(NOT_FOUND)
    };
    match name {
        "subscribe" => subscribe(exchange, peer, params, now),
        "unsubscribe" => unsubscribe(exchange, peer, params),
        "unsubscribe_all" => public(exchange, peer, name, params, now),
        "enable_cancel_on_disconnect" | "disable_cancel_on_disconnect" => {
            exchange.peers.entry(peer).or_default().cancel_on_disconnect = name.starts_with("enable");
            Ok("ok".into())
        }
        "get_cancel_on_disconnect" => {
            let enabled = exchange.peers.get(&peer).is_some_and(|seat| seat.cancel_on_disconnect);
            Ok(json!({"scope": "connection", "enabled": enabled}))
        }
        "buy" | "sell" => place(exchange, peer, account, name == "buy", params),
        "edit" => {
            let id = find(exchange)?;
            let order = exchange.orders.get_mut(&id).filter(|order| order.state == "open").ok_or(NOT_OPEN)?;
            order.amount = params["amount"].as_f64().ok_or(INVALID_PARAMS)?;
            order.price = params["price"].as_f64().unwrap_or(order.price);
            exchange.publish_order(id);
            Ok(json!({"order": exchange.describe(id), "trades": []}))
        }
        "cancel" => {
            let id = find(exchange)?;
            match exchange.cancel(|other, _| other == id)[..] {
                [] => Err(NOT_OPEN),
                _ => Ok(exchange.describe(id)),
            }
        }
        "cancel_all" => Ok(exchange.cancel(|_, order| order.account == account).len().into()),
        "cancel_by_label" => {
            let label = params["label"].as_str().ok_or(INVALID_PARAMS)?;
            Ok(exchange.cancel(|_, order| order.account == account && order.label == label).len().into())
        }
        "get_open_orders" | "get_open_orders_by_currency" | "get_open_orders_by_instrument" => {
            let instrument = params["instrument_name"].as_str().and_then(|name| exchange.market(name));
            let fits = |order: &Order| order.state == "open" && instrument.is_none_or(|market| market == order.market);
            Ok(list(exchange, &fits))
        }
        "get_order_state" => Ok(exchange.describe(find(exchange)?)),
        "get_positions" => Ok(positions(exchange, account)),
        "get_account_summary" => Ok(json!({
            "currency": params["currency"], "equity": 100.0, "balance": 100.0, "available_funds": 100.0,
            "margin_balance": 100.0, "initial_margin": 0.0, "maintenance_margin": 0.0, "type": "main",
            "limits": {"matching_engine": {"rate": exchange.rules.matching_engine.1, "burst": exchange.rules.matching_engine.0}},
        })),
        "logout" => {
            exchange.peers.remove(&peer);
            Ok("ok".into())
        }
        _ => Err((-32_601, "Method not found")),
    }
}

fn place(exchange: &mut Exchange, peer: usize, account: &str, buy: bool, params: &Value) -> Outcome {
    let name = params["instrument_name"].as_str().ok_or(INVALID_PARAMS)?;
    let market = exchange.market(name).ok_or(INVALID_PARAMS)?;
    let amount = params["amount"].as_f64().filter(|amount| *amount > 0.0).ok_or(INVALID_PARAMS)?;
    let kind = params["type"].as_str().unwrap_or("limit").to_owned();
    let price = params["price"].as_f64();
    if kind == "limit" && price.is_none() {
        return Err(INVALID_PARAMS);
    }
    if params["valid_until"].as_u64().is_some_and(|until| until < now_ms()) {
        return Err((11_092, "valid_until_is_in_the_past"));
    }
    let text = |key: &str, usual: &str| params[key].as_str().unwrap_or(usual).to_owned();
    let post_only = params["post_only"].as_bool().unwrap_or(false);
    let id = exchange.number();
    exchange.orders.insert(
        id,
        Order {
            account: account.to_owned(),
            peer,
            buy,
            state: "open",
            market,
            amount,
            filled: 0.0,
            price: price.unwrap_or_default(),
            label: text("label", ""),
            kind: kind.clone(),
            time_in_force: text("time_in_force", "good_til_cancelled"),
            post_only,
            created: now_ms(),
        },
    );
    let (bid, ask) = (exchange.markets[market].best_bid().0, exchange.markets[market].best_ask().0);
    let crosses = kind == "market" || price.is_some_and(|price| if buy { price >= ask } else { price <= bid });
    let trades = if crosses && !post_only { exchange.fill(id) } else { vec![] };
    if trades.is_empty() && ["fill_or_kill", "immediate_or_cancel"].contains(&&*text("time_in_force", "")) {
        exchange.cancel(|other, _| other == id);
    } else {
        exchange.publish_order(id);
    }
    Ok(json!({"order": exchange.describe(id), "trades": trades}))
}

fn positions(exchange: &Exchange, account: &str) -> Value {
    let position = |(index, market): (usize, &super::market::Market)| {
        let own = exchange.orders.values().filter(|order| order.account == account && order.market == index);
        let size: f64 = own.map(|order| if order.buy { order.filled } else { -order.filled }).sum();
        (size != 0.0).then(|| {
            json!({
                "instrument_name": market.name, "size": size, "direction": if size > 0.0 { "buy" } else { "sell" },
                "kind": "future", "average_price": market.best_bid().0, "floating_profit_loss": 0.0,
            })
        })
    };
    exchange.markets.iter().enumerate().filter_map(position).collect()
}
