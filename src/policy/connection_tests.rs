//! The connection without a worker: driven by a clock of the tests' own, against the plainest tables and a venue that
//! answers, refuses or forgets.

#![cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

#[cfg(feature = "property-tests")]
use proptest::prelude::*;

use bytes::Bytes;

use super::*;
use crate::correlation::Correlation;
use crate::error::SendError;
use crate::message::MessageRef;
use crate::policy::admission::Unwritten;
use crate::policy::admission::{Admission, Charge, Door};
use crate::policy::heartbeat::Heartbeat;
use crate::policy::rate_limit::{Limits, Price, RateLimit};
use crate::policy::requests::Requests;
use crate::policy::staleness::StaleRules;
use crate::policy::subscriptions::{Batch, Subscriptions};
use crate::policy::terms::Dialect;
use crate::receipt::Receipt;
use crate::request::{Request, RequestId, RpcError};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Takes three channels at once; acknowledges by a list.
struct Plain;

impl Dialect for Plain {
    fn subscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>> {
        Ok(channels.chunks(3).map(|some| Batch::new(Request::new("subscribe", some), some)).collect())
    }
    fn unsubscribe(&self, channels: &[Arc<str>]) -> Result<Vec<Batch>, Box<str>> {
        Ok(channels.chunks(3).map(|some| Batch::new(Request::new("unsubscribe", some), some)).collect())
    }
    fn is_temporary(&self, error: &RpcError) -> bool {
        error.code == 429
    }
    fn channel_of<'m>(&self, _: MessageRef<'m>) -> Option<std::borrow::Cow<'m, str>> {
        None
    }
    fn acknowledges(&self, channel: &str, result: &Value) -> bool {
        result.as_array().is_some_and(|names| names.iter().any(|name| name == channel))
    }
    fn renewed(&self, result: &Value) -> Result<Option<Renewal>, Box<str>> {
        if result == "no" { Err("no".into()) } else { Ok(Some(Renewal::new(5 * S, Request::new("renew", ())))) }
    }
}

struct Plainest {
    requests: RefCell<Requests<u64>>,
    subscriptions: RefCell<Subscriptions>,
    next: Cell<u64>,
    admission: Admission,
}

impl Plainest {
    fn new(limits: Vec<RateLimit>) -> Self {
        Self {
            requests: RefCell::default(),
            subscriptions: RefCell::default(),
            next: Cell::new(1_000),
            admission: Admission { max_message_size: 1 << 20, limits: Limits::for_client(&limits) },
        }
    }

    fn ask(&self, caller: u64, deadline: Instant) {
        let receipt = Arc::new(Receipt::request(caller.into()));
        receipt.begin();
        let whom = Whom::Caller(caller);
        let pending = Pending { method: "m".into(), message: "q".into(), asked_at: deadline, deadline, receipt, whom };
        self.requests.borrow_mut().register(caller.into(), pending).unwrap();
    }
}

impl Tables for Plainest {
    type Caller = u64;

    fn requests<T>(&self, look: impl FnOnce(&mut Requests<u64>) -> T) -> T {
        look(&mut self.requests.borrow_mut())
    }
    fn subscriptions<T>(&self, look: impl FnOnce(&mut Subscriptions) -> T) -> T {
        look(&mut self.subscriptions.borrow_mut())
    }
    fn requests_due(&self) -> Option<Instant> {
        self.requests.borrow().due()
    }
    fn expects_no_answer(&self) -> bool {
        self.requests.borrow().active() == 0
    }
    fn answered(&self, _: &str, _: Duration) {}

    fn next_id(&self) -> RequestId {
        self.next.set(self.next.get() + 1);
        self.next.get().into()
    }
    fn reserve(&self, _: &RequestId) {}
    fn admit_heartbeat(&self, message: Message, now: Instant) -> Result<Message, SendError> {
        let price = self.admission.price(&message);
        self.admission.admit(message, Door::WORKERS, Charge::Regardless(&price), || now)
    }
    fn write(
        &self,
        regardless: bool,
        now: Instant,
        write: &dyn Fn() -> Result<Message, Box<str>>,
    ) -> Result<(Message, Price), Unwritten> {
        self.admission.write(Door::WORKERS, regardless, || now, write)
    }
    fn refund(&self, price: &mut Price) {
        self.admission.limits.refund(price);
    }
}

fn rules(heartbeat: Heartbeat, max_age: Option<Duration>) -> Arc<Rules> {
    Arc::new(Rules {
        heartbeat,
        stale: StaleRules::default(),
        correlation: Correlation::json_rpc(),
        request_timeout: 2 * S,
        max_age,
        dialect: Some(Box::new(Plain)),
    })
}

fn open(rules: Arc<Rules>, tables: &Plainest, now: Instant) -> Connection {
    let mut connection = Connection::open(rules, 7, now, tables, &mut vec![]);
    connection.opened(now);
    connection
}

fn turn(now: Instant) -> Turn {
    Turn { now, caught_up: true, heard_at: long_ago(), mid_frame: false, clogged: false, wants_changed: false }
}

/// Nothing was heard since.
fn long_ago() -> Instant {
    Instant::now().checked_sub(60 * S).unwrap()
}

fn tick(connection: &mut Connection, tables: &Plainest, turn: Turn) -> Vec<Action<u64>> {
    let mut out = vec![];
    connection.tick(turn, tables, &mut out);
    out
}

fn json(message: &Message) -> Value {
    serde_json::from_str(message.as_text().unwrap()).unwrap()
}

fn answer(id: u64, result: &Value) -> Message {
    Message::text(serde_json::json!({"id": id, "result": result}).to_string())
}

#[test]
fn an_answer_goes_to_who_asked_and_everything_else_to_the_caller() {
    let (now, tables) = (Instant::now(), Plainest::new(vec![]));
    let mut connection = open(rules(Heartbeat::disabled(), None), &tables, now);
    assert!(!connection.listens(&tables), "nothing is pending, so nothing is looked at");
    tables.ask(1, now + S);
    assert!(connection.listens(&tables));
    let mut out = vec![];
    assert_eq!(connection.message(Message::text("a tick").view(), now, &tables, &mut out), Owner::Caller);
    assert_eq!(connection.message(answer(1, &Value::Null).view(), now, &tables, &mut out), Owner::Library);
    assert!(matches!(&out[..], [Action::Tell((_, Whom::Caller(1)))]), "{out:?}");
    let ours = connection.message(answer(1, &Value::Null).view(), now, &tables, &mut out);
    assert_eq!(ours, Owner::Caller, "the second answer is nobody's");
}

#[test]
fn a_renewal_goes_first_and_its_refusal_ends_the_connection() {
    let t0 = Instant::now();
    let none_left = RateLimit::bucket(1, 1, 3600 * S).unwrap();
    let tables = Plainest::new(vec![none_left]);
    tables.write(false, t0, &|| Ok("x".into())).unwrap();
    let mut connection = open(rules(Heartbeat::disabled(), None), &tables, t0);
    connection.renew(t0, Some(Renewal::new(5 * S, Request::new("renew", ()))));
    assert_eq!(connection.due(&tables), Some(t0 + 5 * S));
    assert!(tick(&mut connection, &tables, turn(t0 + 5 * S - MS)).is_empty());
    let sent = tick(&mut connection, &tables, turn(t0 + 5 * S));
    let [Action::SendFirst(message)] = &sent[..] else { panic!("{sent:?}") };
    let id = json(message)["id"].as_u64().unwrap();
    let mut out = vec![];
    connection.message(answer(id, &"yes".into()).view(), t0 + 6 * S, &tables, &mut out);
    assert!(out.is_empty());
    assert_eq!(connection.due(&tables), Some(t0 + 7 * S), "a look at the table, which is empty by then");
    tick(&mut connection, &tables, turn(t0 + 7 * S));
    assert_eq!(connection.due(&tables), Some(t0 + 11 * S));
    let sent = tick(&mut connection, &tables, turn(t0 + 11 * S));
    let [Action::SendFirst(message)] = &sent[..] else { panic!("{sent:?}") };
    connection.message(
        answer(json(message)["id"].as_u64().unwrap(), &"no".into()).view(),
        t0 + 11 * S,
        &tables,
        &mut out,
    );
    assert!(matches!(&out[..], [Action::End { reason: DisconnectReason::RenewalFailed(_), .. }]), "{out:?}");
}

#[test]
fn a_connection_that_is_old_enough_waits_for_answers_but_not_for_ever() {
    let t0 = Instant::now();
    let tables = Plainest::new(vec![]);
    let mut connection = open(rules(Heartbeat::disabled(), Some(S)), &tables, t0);
    tables.ask(1, t0 + 3600 * S);
    let mut now = t0 + S;
    while tick(&mut connection, &tables, turn(now)).is_empty() {
        let due = connection.due(&tables).unwrap();
        assert!(due > now && due <= t0 + 11 * S);
        now = due;
    }
    assert_eq!(now, t0 + 11 * S);
    let mut young = open(rules(Heartbeat::disabled(), Some(S)), &Plainest::new(vec![]), t0);
    let ended = tick(&mut young, &Plainest::new(vec![]), turn(t0 + S));
    assert!(matches!(&ended[..], [Action::End { reason: DisconnectReason::MaxAge, .. }]), "{ended:?}");
}

#[test]
fn what_the_rate_limit_holds_up_is_asked_for_when_it_is_time() {
    let t0 = Instant::now();
    let tables = Plainest::new(vec![RateLimit::bucket(1, 1, S).unwrap()]);
    let mut connection = open(rules(Heartbeat::disabled(), None), &tables, t0);
    let names: Vec<Arc<str>> = (0..6).map(|n| n.to_string().into()).collect();
    tables.subscriptions(|table| table.want(&names));
    let changed = |now| Turn { wants_changed: true, ..turn(now) };
    assert_eq!(tick(&mut connection, &tables, changed(t0)).len(), 1, "one of two batches");
    assert!(connection.is_held_up());
    assert!(tick(&mut connection, &tables, changed(t0 + S / 2)).is_empty(), "not sooner, whoever asks");
    assert_eq!(tick(&mut connection, &tables, turn(t0 + S)).len(), 1);
    assert!(!connection.is_held_up());
}

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Ask(u64),
    Answer(usize, bool),
    Want(u8, bool),
    Alive,
    Unread,
}

#[cfg(feature = "property-tests")]
fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..1500).prop_map(Step::Wait),
        2 => (1u64..4000).prop_map(Step::Ask),
        4 => (0usize..4, prop::bool::weighted(0.8)).prop_map(|(n, comes)| Step::Answer(n, comes)),
        2 => (0u8..8, any::<bool>()).prop_map(|(n, wanted)| Step::Want(n, wanted)),
        2 => Just(Step::Alive),
        1 => Just(Step::Unread),
    ]
}

/// The world around a connection.
struct World {
    tables: Plainest,
    connection: Connection,
    now: Instant,
    /// The venue's replies that are still under way.
    at_venue: BTreeMap<u64, Value>,
    /// What the venue has subscribed us to.
    has: BTreeSet<String>,
    asked: Vec<(u64, Instant)>,
    told: BTreeMap<u64, Instant>,
    last_ping: Option<Bytes>,
    pings: Vec<Instant>,
    lost_at: Option<Instant>,
}

impl World {
    fn take(&mut self, actions: Vec<Action<u64>>) {
        for action in actions {
            match action {
                Action::Ping(payload) => {
                    self.pings.push(self.now);
                    self.last_ping = Some(payload);
                }
                Action::Send { message, .. } | Action::SendFirst(message) | Action::Beat(message) => {
                    let request = json(&message);
                    let reply = self.carried_out(&request);
                    self.at_venue.insert(request["id"].as_u64().unwrap(), reply);
                }
                Action::Tell((response, _)) => {
                    let RequestId::Number(id) = response.id else { unreachable!() };
                    assert!(self.told.insert(id, self.now).is_none(), "told twice");
                }
                Action::End { reason, .. } => {
                    assert!(matches!(reason, DisconnectReason::HeartbeatLost { .. }), "{reason}");
                    self.lost_at = Some(self.now);
                }
                Action::Alive | Action::TellLate(_) | Action::Refused(_) | Action::Stale { .. } | Action::Warn(_) => {}
            }
        }
    }

    fn tick(&mut self, caught_up: bool, wants_changed: bool) {
        let turn = Turn { caught_up, wants_changed, ..turn(self.now) };
        let actions = tick(&mut self.connection, &self.tables, turn);
        self.take(actions);
    }

    /// As the worker does: sleeps until something is due, again and again. What is due is never forgotten, and never due
    /// for ever at one instant.
    fn run_until(&mut self, until: Instant) {
        let mut turns = 0;
        while let Some(due) = self.connection.due(&self.tables).filter(|due| *due <= until) {
            turns = if due > self.now { 0 } else { turns + 1 };
            assert!(turns < 40, "due at one instant for ever");
            self.now = self.now.max(due);
            self.tick(true, false);
        }
        self.now = until;
    }

    /// The venue's answer to one of the requests, in whatever order; or it gets lost.
    fn answer(&mut self, n: usize, comes: bool) {
        let Some((&id, _)) = self.at_venue.iter().nth(n) else { return };
        let reply = self.at_venue.remove(&id).unwrap();
        if comes {
            self.hear(Message::text(reply.to_string()));
        }
    }

    /// The venue does what it is asked, in the order in which it is asked; it has no channel 7.
    fn carried_out(&mut self, request: &Value) -> Value {
        let names: Vec<String> = serde_json::from_value(request["params"].clone()).unwrap_or_default();
        let subscribes = request["method"] == "subscribe";
        if subscribes && names.iter().any(|name| name == "7") {
            return serde_json::json!({"id": request["id"], "error": {"code": 1, "message": "no such channel"}});
        }
        for name in &names {
            if subscribes {
                self.has.insert(name.clone())
            } else {
                self.has.remove(name)
            };
        }
        serde_json::json!({"id": request["id"], "result": names})
    }

    fn hear(&mut self, message: Message) {
        let mut out = vec![];
        let ours = self.connection.message(message.view(), self.now, &self.tables, &mut out);
        assert!(ours == Owner::Library || json(&message)["id"].is_u64(), "an answer that comes too late for anyone");
        self.take(out);
    }
}

#[cfg(feature = "property-tests")]
proptest! {
    /// Random inputs at random times: each request is told of once and not after its time, pings go out once an interval,
    /// the line is lost exactly when it is silent, and once the venue answers it has what the caller wants.
    #[test]
    fn whatever_happens_it_keeps_its_promises(steps in prop::collection::vec(step(), 1..80), limited in any::<bool>()) {
        let start = Instant::now();
        let limits = if limited { vec![RateLimit::bucket(2, 4, S).unwrap()] } else { vec![] };
        let tables = Plainest::new(limits);
        let connection = open(rules(Heartbeat::ping_pong(S).max_missed(3), None), &tables, start);
        let mut world = World {
            tables, connection, now: start, at_venue: BTreeMap::new(), has: BTreeSet::new(), asked: vec![],
            told: BTreeMap::new(), last_ping: None, pings: vec![], lost_at: None,
        };
        let mut wanted = BTreeSet::new();
        let mut last_life = start;
        for step in steps {
            if world.lost_at.is_some() { break; }
            match step {
                Step::Wait(ms) => world.run_until(world.now + ms as u32 * MS),
                Step::Ask(ms) => {
                    let (id, deadline) = (world.asked.len() as u64, world.now + ms as u32 * MS);
                    world.tables.ask(id, deadline);
                    world.asked.push((id, deadline));
                }
                Step::Answer(n, comes) => world.answer(n, comes),
                Step::Want(n, wants) => {
                    let name: Arc<str> = n.to_string().into();
                    if wants { wanted.insert(n.to_string()) } else { wanted.remove(&n.to_string()) };
                    world.tables.subscriptions(|table| {
                        if wants { table.want(&[name]) } else { table.unwant(&[name]) }
                    });
                    world.tick(true, true);
                }
                Step::Alive => if let Some(payload) = world.last_ping.take() {
                    prop_assert!(world.connection.pong(&payload, world.now));
                    last_life = world.now;
                },
                Step::Unread => world.tick(false, false),
            }
            for pair in world.pings.windows(2) {
                prop_assert_eq!(pair[1] - pair[0], S, "a ping an interval");
            }
        }
        if let Some(lost_at) = world.lost_at {
            prop_assert!(lost_at - last_life >= 3 * S, "lost, and yet it was alive {:?} ago", lost_at - last_life);
            return Ok(());
        }
        // From now on the line is alive and the venue answers all that is asked.
        for _ in 0..400 {
            if let Some(payload) = world.last_ping.take() { world.connection.pong(&payload, world.now); }
            while !world.at_venue.is_empty() { world.answer(0, true); }
            world.run_until(world.now + S / 4);
        }
        prop_assert!(world.lost_at.is_none());
        for (id, deadline) in &world.asked {
            prop_assert!(world.told.get(id).is_some_and(|at| at <= &(*deadline).max(start)), "{} at its time", id);
        }
        wanted.remove("7");
        prop_assert_eq!(&wanted, &world.has);
    }
}
