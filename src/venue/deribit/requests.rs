//! Deribit's requests that an engine uses, each as a [`Request`] for [`Client::call`](crate::Client::call),
//! [`start_request`](crate::Client::start_request) or [`Context::request`](crate::Context::request).
//! Their results are the venue's, in whatever type of yours fits.

use serde::Serialize;
use serde_json::{Value, json};

use crate::request::Request;

/// An order for [`buy`] and [`sell`]. What is not set is left to the venue.
///
/// ```
/// use ws_supervisor::venue::deribit::{Order, TimeInForce, buy};
/// let order = Order::limit("ETH-PERPETUAL", 100.0, 2_000.5).label("q1").time_in_force(TimeInForce::ImmediateOrCancel);
/// let request = buy(&order);
/// # let _ = request;
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Order {
    instrument_name: String,
    amount: f64,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_in_force: Option<TimeInForce>,
    #[serde(skip_serializing_if = "Option::is_none")]
    post_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reduce_only: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<u64>,
}

/// How long an order stays in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimeInForce {
    /// Until it is cancelled: the venue's default.
    GoodTilCancelled,
    /// Until the end of the trading session.
    GoodTilDay,
    /// All of it at once, or none.
    FillOrKill,
    /// What can be had at once, and no more.
    ImmediateOrCancel,
}

impl Order {
    fn new(instrument: &str, amount: f64, kind: &'static str, price: Option<f64>) -> Self {
        Self {
            instrument_name: instrument.into(),
            amount,
            kind,
            price,
            label: None,
            time_in_force: None,
            post_only: None,
            reduce_only: None,
            valid_until: None,
        }
    }

    /// At this price or better. The amount is in US dollars for perpetuals and inverse futures, in the underlying for
    /// options and linear futures.
    pub fn limit(instrument: &str, amount: f64, price: f64) -> Self {
        Self::new(instrument, amount, "limit", Some(price))
    }

    /// At whatever price there is.
    pub fn market(instrument: &str, amount: f64) -> Self {
        Self::new(instrument, amount, "market", None)
    }

    /// A name of yours, at most 64 characters, to find or cancel it by.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// How long it stays in force.
    pub fn time_in_force(mut self, time: TimeInForce) -> Self {
        self.time_in_force = Some(time);
        self
    }

    /// Never takes liquidity: moved to where it would not.
    pub fn post_only(mut self, yes: bool) -> Self {
        self.post_only = Some(yes);
        self
    }

    /// Only ever makes a position smaller.
    pub fn reduce_only(mut self, yes: bool) -> Self {
        self.reduce_only = Some(yes);
        self
    }

    /// Refused by the venue if it arrives later than this, in milliseconds since the Unix epoch by the venue's clock: a
    /// guard against orders that were held up on their way.
    pub fn valid_until(mut self, milliseconds: u64) -> Self {
        self.valid_until = Some(milliseconds);
        self
    }
}

/// `private/buy`.
pub fn buy(order: &Order) -> Request {
    Request::new("private/buy", order)
}

/// `private/sell`.
pub fn sell(order: &Order) -> Request {
    Request::new("private/sell", order)
}

/// `private/edit`: a new amount and price for an open order.
pub fn edit(order_id: &str, amount: f64, price: f64) -> Request {
    Request::new("private/edit", json!({"order_id": order_id, "amount": amount, "price": price}))
}

/// `private/cancel`.
pub fn cancel(order_id: &str) -> Request {
    Request::new("private/cancel", json!({"order_id": order_id}))
}

/// `private/cancel_all`: every order of the account, whatever the currency. The result is their number.
pub fn cancel_all() -> Request {
    Request::new("private/cancel_all", json!({}))
}

/// `private/cancel_by_label`: every order with this label. The result is their number.
pub fn cancel_by_label(label: &str) -> Request {
    Request::new("private/cancel_by_label", json!({"label": label}))
}

/// `private/get_open_orders`: all of them.
pub fn get_open_orders() -> Request {
    Request::new("private/get_open_orders", json!({}))
}

/// `private/get_order_state`.
pub fn get_order_state(order_id: &str) -> Request {
    Request::new("private/get_order_state", json!({"order_id": order_id}))
}

/// `private/get_positions`, in one currency (`BTC`, `ETH`, `USDC`, …) or in `any`.
pub fn get_positions(currency: &str) -> Request {
    Request::new("private/get_positions", json!({"currency": currency}))
}

/// `private/get_account_summary`, with limits and fees.
pub fn get_account_summary(currency: &str) -> Request {
    Request::new("private/get_account_summary", json!({"currency": currency, "extended": true}))
}

/// `public/ticker`.
pub fn ticker(instrument: &str) -> Request {
    Request::new("public/ticker", json!({"instrument_name": instrument}))
}

/// `public/get_order_book`, so many levels of each side.
pub fn get_order_book(instrument: &str, depth: u32) -> Request {
    Request::new("public/get_order_book", json!({"instrument_name": instrument, "depth": depth}))
}

/// `public/get_instruments`: in one currency or in `any`, of one kind (`future`, `option`, `spot`, …) or of all.
pub fn get_instruments(currency: &str, kind: Option<&str>) -> Request {
    let mut params = json!({"currency": currency});
    if let Some(kind) = kind {
        params["kind"] = Value::from(kind);
    }
    Request::new("public/get_instruments", params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlation::Correlation;

    fn text(request: &Request) -> String {
        Correlation::json_rpc().encode(request, &5.into()).unwrap().as_text().unwrap().to_owned()
    }

    #[test]
    fn orders_are_written_as_the_reference_says_and_prices_as_they_were_given() {
        let order = Order::limit("BTC-PERPETUAL", 40.0, 0.0015).label("a\"b").time_in_force(TimeInForce::FillOrKill);
        assert_eq!(
            text(&buy(&order.post_only(true))),
            r#"{"jsonrpc":"2.0","id":5,"method":"private/buy","params":{"instrument_name":"BTC-PERPETUAL","amount":40.0,"type":"limit","price":0.0015,"label":"a\"b","time_in_force":"fill_or_kill","post_only":true}}"#
        );
        let market = text(&sell(&Order::market("ETH-PERPETUAL", 1.5).reduce_only(true).valid_until(7)));
        assert!(market.contains(r#""type":"market","reduce_only":true,"valid_until":7}"#), "{market}");
        assert!(text(&get_instruments("BTC", None)).ends_with(r#""params":{"currency":"BTC"}}"#));
        assert!(text(&get_instruments("any", Some("option"))).contains(r#""kind":"option""#));
    }
}
