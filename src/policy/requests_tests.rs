//! The table of requests, against a clock of the tests' own.

#![cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]

#[cfg(feature = "property-tests")]
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// Callers are numbers here.
type Table = Requests<u64>;

fn pending(caller: u64, deadline: Instant) -> (Pending<u64>, Arc<Receipt>) {
    let receipt = Arc::new(Receipt::request(caller.into()));
    let whom = Whom::Caller(caller);
    (
        Pending {
            method: "m".into(),
            message: Message::text("q"),
            asked_at: deadline,
            deadline,
            receipt: receipt.clone(),
            whom,
        },
        receipt,
    )
}

fn cause(response: &Response) -> (&'static str, Unanswered) {
    match response.outcome.as_ref().unwrap_err() {
        RequestError::NotSent { cause, .. } => ("not sent", *cause),
        RequestError::OutcomeUnknown { cause, .. } => ("unknown", *cause),
        other => panic!("{other}"),
    }
}

#[test]
fn what_is_due_fails_truthfully_and_its_late_answer_is_known() {
    let now = Instant::now();
    let mut table = Table::default();
    assert!(table.active() == 0 && table.due().is_none());
    let (first, written) = pending(1, now + 10 * MS);
    assert!(table.register(1.into(), first).unwrap(), "the worker must hear of it");
    assert!(!table.register(2.into(), pending(2, now + 20 * MS).0).unwrap(), "it is awake by then anyway");
    assert!(written.begin());
    assert!(table.expire(now + 9 * MS, true).is_empty());
    let mut told = table.expire(now + 20 * MS, false);
    told.sort_by_key(|(response, _)| response.id.to_string());
    let told: Vec<_> = told.iter().map(|(response, whom)| (whom, cause(response))).collect();
    let timed_out = Unanswered::TimedOut;
    assert_eq!(told, [(&Whom::Caller(1), ("unknown", timed_out)), (&Whom::Caller(2), ("not sent", timed_out))]);
    assert!(matches!(table.claim(&1.into(), false), Claim::Late { .. }));
    assert!(matches!(table.claim(&1.into(), false), Claim::Nobody), "once");
    assert!(matches!(table.claim(&2.into(), false), Claim::Nobody), "it never left, so nothing can answer it");
    assert_eq!(table.active(), 0);
}

#[test]
fn a_late_answer_is_remembered_for_a_while_and_on_its_own_connection() {
    let now = Instant::now();
    let mut table = Table::default();
    for id in [1, 2] {
        let (request, receipt) = pending(id, now + MS);
        receipt.begin();
        table.register(id.into(), request).unwrap();
    }
    assert_eq!(table.expire(now + MS, true).len(), 2);
    assert_eq!(table.due(), Some(now + MS + REMEMBERED));
    assert!(table.disconnected().iter().all(|left| left.told.is_none()), "they were told");
    assert!(table.active() == 0 && matches!(table.claim(&2.into(), false), Claim::Nobody));
}

#[test]
fn an_id_is_taken_until_its_request_has_ended() {
    let now = Instant::now();
    let mut table = Table::default();
    table.register(40.into(), pending(1, now).0).unwrap();
    assert_eq!(table.register(40.into(), pending(2, now).0).unwrap_err(), Barred::Duplicate);
    assert!(table.is_taken(&40.into()) && !table.is_taken(&"40".into()));
    let (_, other) = pending(3, now);
    assert!(table.give_up(&40.into(), &other, now).is_none(), "another's receipt");
    let (last, receipt) = pending(4, now);
    receipt.begin();
    table.register(41.into(), last).unwrap();
    table.abandon(&41.into(), &receipt, now);
    assert!(!table.is_taken(&41.into()), "nobody waits for it");
    assert!(matches!(table.claim(&41.into(), false), Claim::Late { .. }));
    table.give_up(&40.into(), &table.pending[&40.into()].1.receipt.clone(), now);
    table.register(40.into(), pending(5, now).0).unwrap();
    assert!(matches!(table.claim(&40.into(), false), Claim::Pending(..)), "an id is used again after its time ran out");
}

#[test]
fn the_workers_own_requests_wait_while_nothing_is_read_and_are_nobodys_business() {
    let now = Instant::now();
    let mut table = Table::default();
    let own = || Pending { whom: Whom::Worker(Purpose::Renewal), ..pending(1, now + MS).0 };
    table.register(1.into(), own()).unwrap();
    assert!(table.expire(now + MS, false).is_empty());
    assert_eq!(table.due(), Some(now + MS + LONGER_UNREAD));
    assert_eq!(table.expire(now + MS + LONGER_UNREAD, true).len(), 1);
    table.register(2.into(), own()).unwrap();
    assert!(table.disconnected().is_empty());
}

#[cfg(feature = "property-tests")]
proptest! {
    /// Whatever comes in whatever order, each request ends exactly once, and the table forgets it.
    #[test]
    fn each_request_ends_exactly_once(steps in prop::collection::vec((0u8..6, 0u64..12), 1..200)) {
        let mut now = Instant::now();
        let mut table = Table::default();
        let mut ended: HashMap<u64, u32> = HashMap::new();
        let mut receipts = vec![];
        let mut end = |whom: Whom<u64>| {
            let Whom::Caller(caller) = whom else { unreachable!() };
            *ended.entry(caller).or_default() += 1;
        };
        for (step, n) in steps {
            let known = || (n, receipts.get(n as usize)) ;
            match step {
                0 | 1 => {
                    let id = receipts.len() as u64;
                    let (request, receipt) = pending(id, now + n as u32 * MS);
                    if n % 2 == 0 { receipt.begin(); }
                    table.register(id.into(), request).unwrap();
                    receipts.push(receipt);
                }
                2 => if let (id, Some(_)) = known() {
                    if let Claim::Pending(_, pending) = table.claim(&id.into(), false) { end(pending.whom); }
                },
                3 => { now += n as u32 * MS; table.expire(now, true).into_iter().for_each(|(_, whom)| end(whom)); }
                4 => if let (id, Some(receipt)) = known() {
                    let told = if n % 3 == 0 { table.give_up(&id.into(), receipt, now) } else { table.not_sent(&id.into()).map(|(_, told)| told) };
                    told.into_iter().for_each(|(_, whom)| end(whom));
                },
                _ if n == 0 => table.disconnected().into_iter().filter_map(|left| left.told).for_each(|(_, whom)| end(whom)),
                _ => {}
            }
            let earliest = table.pending.values().map(|(_, pending)| pending.deadline)
                .chain(table.given_up.values().map(|given_up| given_up.forget_at)).min();
            prop_assert!(earliest.is_none_or(|at| table.due().is_some_and(|due| due <= at)), "never too late");
        }
        table.disconnected().into_iter().filter_map(|left| left.told).for_each(|(_, whom)| end(whom));
        prop_assert_eq!(ended.len(), receipts.len());
        prop_assert!(ended.values().all(|times| *times == 1), "{:?}", ended);
        prop_assert_eq!(table.active(), 0);
    }
}

#[test]
fn requests_that_may_be_answered_late_are_remembered_up_to_a_bound() {
    let now = Instant::now();
    let mut table = Table::default();
    for id in 0..MAX_PENDING as u64 + 10 {
        let (request, receipt) = pending(id, now + MS);
        receipt.begin();
        table.register(id.into(), request).unwrap();
        table.give_up(&id.into(), &receipt, now).unwrap();
    }
    assert_eq!(table.active(), MAX_PENDING);
    assert!(matches!(table.claim(&9.into(), false), Claim::Nobody), "the oldest are forgotten");
    assert!(matches!(table.claim(&10.into(), false), Claim::Late { .. }));
}
