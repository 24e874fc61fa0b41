//! The table of subscriptions, against the plainest server.

#![cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]

use std::collections::BTreeSet;

#[cfg(feature = "property-tests")]
use proptest::prelude::*;

use super::*;
use crate::policy::suspects::{PROBATION, SET_ASIDE_FOR};

fn plan(subscriptions: &Subscriptions) -> Vec<(Operation, Vec<Arc<str>>)> {
    subscriptions.plan(usize::MAX, Only::All)
}

/// Acknowledges what the server has, and has no more to say.
fn answer(subscriptions: &mut Subscriptions, batch: u64, has: impl Fn(&str) -> bool) -> Vec<RefusedChannel> {
    let acknowledged = subscriptions.channels_of(batch).into_iter().filter(|name| has(name)).collect();
    let now = Instant::now();
    let mut refused = subscriptions.answered(batch, &acknowledged, now);
    refused.extend(subscriptions.expire(now + MORE_ANSWERS));
    refused
}

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

#[test]
fn a_refused_batch_is_halved_until_the_culprit_is_found() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&names(&["a", "b", "bad", "c", "d", "e", "f"]));
    let mut requests = 0;
    loop {
        let plan = plan(&subscriptions);
        if plan.is_empty() {
            break;
        }
        for (operation, channels) in plan {
            requests += 1;
            let bad = channels.iter().any(|name| &**name == "bad");
            let batch = subscriptions.asked(operation, channels, Instant::now());
            match bad {
                true => subscriptions.refused(batch, &RpcError::new(-32602, "Invalid params")),
                false => answer(&mut subscriptions, batch, |_| true),
            };
        }
    }
    assert_eq!(subscriptions.active(), names(&["a", "b", "c", "d", "e", "f"]));
    assert_eq!(subscriptions.refusals()[0].channel, "bad".into());
    assert!(requests <= 8, "{requests}");
    assert_eq!(subscriptions.wanted().len(), 7, "a refusal does not change what the caller wants");
    subscriptions.disconnected(Instant::now());
    assert_eq!(plan(&subscriptions), [(Operation::Subscribe, subscriptions.wanted())], "asked for anew");
}

#[test]
fn what_is_not_acknowledged_is_refused() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&names(&["a", "b"]));
    let batch = subscriptions.asked(Operation::Subscribe, names(&["a", "b"]), Instant::now());
    assert_eq!(subscriptions.standing("a", true), Standing::UnderWay);
    answer(&mut subscriptions, batch, |name| name == "a");
    assert_eq!(subscriptions.standing("a", true), Standing::Settled);
    assert!(matches!(subscriptions.standing("b", true), Standing::Refused(_)));
    subscriptions.unwant(&names(&["b"]));
    assert!(plan(&subscriptions).is_empty() && subscriptions.wanted() == names(&["a"]));
}

#[test]
fn an_answer_in_parts_is_waited_for_and_what_never_came_is_refused() {
    let now = Instant::now();
    let mut subscriptions = Subscriptions::default();
    let all = names(&["a", "b", "c"]);
    subscriptions.want(&all);
    let batch = subscriptions.asked(Operation::Subscribe, all.clone(), Instant::now());
    let part = |name: &str| BTreeSet::from([Arc::from(name)]);
    assert_eq!(subscriptions.answered(batch, &part("b"), now), []);
    assert!(subscriptions.expects_more(batch) && subscriptions.standing("a", true) == Standing::UnderWay);
    assert_eq!(subscriptions.answered(batch, &part("a"), now), []);
    assert_eq!(subscriptions.active(), names(&["a", "b"]));
    assert_eq!(subscriptions.expire(now), []);
    let refused = subscriptions.expire(subscriptions.due().unwrap());
    assert_eq!((refused.len(), &*refused[0].channel), (1, "c"));
    assert!(!subscriptions.is_asking());
}

#[test]
fn what_is_let_go_and_wanted_again_is_asked_for_anew() {
    let mut subscriptions = Subscriptions::default();
    let one = names(&["book"]);
    subscriptions.want(&one);
    let first = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    answer(&mut subscriptions, first, |_| true);
    subscriptions.unwant(&one);
    subscriptions.want(&one);
    assert_eq!(subscriptions.standing("book", true), Standing::UnderWay);
    for operation in [Operation::Unsubscribe, Operation::Subscribe] {
        assert_eq!(plan(&subscriptions), [(operation, one.clone())]);
        let batch = subscriptions.asked(operation, one.clone(), Instant::now());
        answer(&mut subscriptions, batch, |_| true);
    }
    assert!(plan(&subscriptions).is_empty() && subscriptions.standing("book", true) == Standing::Settled);
}

/// A table whose server has something against one channel; returns how many connections it takes.
fn connections_until_set_aside(subscriptions: &mut Subscriptions, ending: Ending, acknowledges: bool) -> usize {
    let (mut connections, mut opening) = (0, true);
    let mut now = Instant::now();
    while subscriptions.has_more(Only::All) || subscriptions.due().is_some() {
        assert!(connections < 30);
        now += PROBATION;
        subscriptions.expire(now);
        let only = if opening { Only::Unsuspected } else { Only::All };
        let plan = subscriptions.plan(usize::MAX, only);
        opening &= !plan.is_empty();
        let mut ends = false;
        for (operation, channels) in plan {
            let bad = channels.iter().any(|name| &**name == "bad");
            let batch = subscriptions.asked(operation, channels, now);
            if !bad || acknowledges {
                subscriptions.answered(batch, &subscriptions.channels_of(batch).into_iter().collect(), now);
            }
            ends |= bad;
        }
        if ends {
            subscriptions.suspect(ending, now);
            subscriptions.disconnected(Instant::now());
            (connections, opening) = (connections + 1, true);
        }
    }
    connections
}

#[test]
fn a_channel_that_ends_the_connection_is_found_and_set_aside_and_costs_no_other() {
    // While it is asked for; a moment later; or without a word.
    for (ending, acknowledges) in [(Ending::Closed, false), (Ending::Closed, true), (Ending::Cut, false)] {
        let mut subscriptions = Subscriptions::default();
        subscriptions.want(&names(&["a", "b", "bad", "c", "d", "e", "f"]));
        let connections = connections_until_set_aside(&mut subscriptions, ending, acknowledges);
        assert!(connections <= 8, "{ending:?} {acknowledges}: {connections}");
        assert_eq!(subscriptions.active(), names(&["a", "b", "c", "d", "e", "f"]));
        let [refused] = &subscriptions.refusals()[..] else { panic!() };
        assert!(&*refused.channel == "bad" && refused.error.to_string().contains("set aside"));
        subscriptions.want(&names(&["bad"]));
        assert_eq!(plan(&subscriptions), [(Operation::Subscribe, names(&["bad"]))], "asked for again when wanted anew");
    }
}

/// It may have been the network, and venues change their minds.
#[test]
fn a_channel_that_is_set_aside_gets_one_more_trial_after_a_while() {
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&names(&["a", "b", "bad"]));
    connections_until_set_aside(&mut subscriptions, Ending::Closed, false);
    let now = Instant::now() + SET_ASIDE_FOR / 2;
    subscriptions.disconnected(now);
    assert_eq!(subscriptions.refusals().len(), 1);
    let later = now + 2 * SET_ASIDE_FOR;
    (0..2).for_each(|_| subscriptions.disconnected(later));
    assert!(subscriptions.refusals().is_empty());
    let connections = connections_until_set_aside(&mut subscriptions, Ending::Closed, false);
    assert_eq!((connections, subscriptions.refusals().len(), subscriptions.active().len()), (1, 1, 2));
}

#[test]
fn nobody_is_set_aside_while_every_connection_ends() {
    let now = Instant::now();
    for (ending, acknowledges) in [(Ending::Closed, false), (Ending::Closed, true), (Ending::Cut, false)] {
        for wanted in [names(&["one"]), names(&["one", "other"])] {
            let mut subscriptions = Subscriptions::default();
            subscriptions.want(&wanted);
            for _ in 0..20 {
                // The whole of it in the first moment of a connection.
                for (operation, channels) in plan(&subscriptions) {
                    let batch = subscriptions.asked(operation, channels.clone(), now);
                    if acknowledges {
                        subscriptions.answered(batch, &channels.into_iter().collect(), now);
                    }
                }
                subscriptions.suspect(ending, now);
                subscriptions.disconnected(Instant::now());
            }
            assert!(subscriptions.refusals().is_empty(), "{ending:?} {acknowledges} {}", wanted.len());
        }
    }
}

#[test]
fn twenty_thousand_channels_are_planned_a_part_at_a_time() {
    let all: Vec<Arc<str>> = (0..20_000).map(|n| n.to_string().into()).collect();
    let mut subscriptions = Subscriptions::default();
    subscriptions.want(&all);
    let (mut planned, mut rounds) = (0, 0);
    while subscriptions.has_more(Only::Unsuspected) {
        rounds += 1;
        for (operation, channels) in subscriptions.plan(500, Only::Unsuspected) {
            planned += channels.len();
            let batch = subscriptions.asked(operation, channels, Instant::now());
            answer(&mut subscriptions, batch, |_| true);
        }
    }
    assert_eq!((planned, rounds, subscriptions.active().len()), (20_000, 40, 20_000));
}

#[test]
fn everyone_who_waits_is_told_of_a_refusal() {
    let mut subscriptions = Subscriptions::default();
    let bad = names(&["bad"]);
    for _ in 0..2 {
        subscriptions.want(&bad);
        subscriptions.wait(&bad, true);
    }
    let batch = subscriptions.asked(Operation::Subscribe, bad.clone(), Instant::now());
    subscriptions.refused(batch, &RpcError::new(1, ""));
    for _ in 0..2 {
        assert!(matches!(subscriptions.standing("bad", true), Standing::Refused(_)));
        subscriptions.unwant(&bad);
        subscriptions.wait(&bad, false);
    }
    assert!(subscriptions.channels.is_empty());
}

#[test]
fn a_channel_that_the_server_does_not_let_go_is_still_there_and_is_not_asked_about_for_ever() {
    let mut subscriptions = Subscriptions::default();
    let one = names(&["a"]);
    subscriptions.want(&one);
    let batch = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    answer(&mut subscriptions, batch, |_| true);
    subscriptions.unwant(&one);
    let batch = subscriptions.asked(Operation::Unsubscribe, one.clone(), Instant::now());
    subscriptions.refused(batch, &RpcError::new(10_028, "too_many_requests"));
    assert!(matches!(subscriptions.standing("a", false), Standing::Refused(_)));
    assert!(plan(&subscriptions).is_empty() && subscriptions.active() == one);
    subscriptions.want(&one);
    assert_eq!(subscriptions.standing("a", true), Standing::Settled, "it never went");
    subscriptions.unwant(&one);
    assert_eq!(plan(&subscriptions), [(Operation::Unsubscribe, one)], "asked again when asked again");
}

#[test]
fn what_may_be_there_after_all_is_let_go_however_it_was_refused() {
    let mut subscriptions = Subscriptions::default();
    let one = names(&["a"]);
    subscriptions.want(&one);
    let first = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    subscriptions.unanswered(first);
    let second = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    subscriptions.refused(second, &RpcError::new(10_028, ""));
    subscriptions.unwant(&one);
    assert_eq!(plan(&subscriptions), [(Operation::Unsubscribe, one.clone())]);
    subscriptions.want(&one);
    let third = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    subscriptions.refused(third, &RpcError::new(10_028, ""));
    answer(&mut subscriptions, first, |_| true);
    assert_eq!(subscriptions.active(), one, "the first was carried out");
}

#[test]
fn a_late_acknowledgement_counts() {
    let mut subscriptions = Subscriptions::default();
    let one = names(&["a"]);
    subscriptions.want(&one);
    let first = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    subscriptions.unanswered(first);
    let second = subscriptions.asked(Operation::Subscribe, one.clone(), Instant::now());
    answer(&mut subscriptions, first, |_| true);
    assert_eq!(subscriptions.standing("a", true), Standing::Settled);
    answer(&mut subscriptions, second, |_| true);
    subscriptions.unwant(&one);
    let third = subscriptions.asked(Operation::Unsubscribe, one.clone(), Instant::now());
    answer(&mut subscriptions, first, |_| true);
    assert_eq!(subscriptions.active(), [], "it meant something else");
    answer(&mut subscriptions, third, |_| true);
    assert!(subscriptions.channels.is_empty());
}

#[cfg(feature = "property-tests")]
proptest! {
    /// Callers change their minds, batches are answered, refused and lost, connections end, in any order: when all
    /// comes to rest the server has exactly what is wanted, but for what it refuses.
    #[test]
    fn at_rest_the_server_has_what_is_wanted(steps in prop::collection::vec((0u8..12, 0usize..6, any::<bool>()), 0..120)) {
        let all = names(&["a", "b", "c", "d", "e", "bad"]);
        let mut subscriptions = Subscriptions::default();
        let mut server: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut wanted: BTreeSet<Arc<str>> = BTreeSet::new();
        let mut under_way: Vec<(u64, Operation, Vec<Arc<str>>)> = vec![];
        let mut late: Vec<u64> = vec![];
        let act = |server: &mut BTreeSet<Arc<str>>, subscriptions: &mut Subscriptions, (batch, operation, channels): (u64, Operation, Vec<Arc<str>>), lost: bool| {
            let bad = operation == Operation::Subscribe && channels.iter().any(|name| &**name == "bad");
            if !bad {
                for name in &channels {
                    if operation == Operation::Subscribe { server.insert(name.clone()); } else { server.remove(name); }
                }
            }
            if lost { subscriptions.unanswered(batch) }
            else if bad { drop(subscriptions.refused(batch, &RpcError::new(1, ""))) }
            else { drop(answer(subscriptions, batch, |_| true)) }
        };
        for (step, n, flag) in steps {
            match step {
                0..=2 => { subscriptions.want(&all[n..=n]); wanted.insert(all[n].clone()); }
                3..=4 => { subscriptions.unwant(&all[n..=n]); wanted.remove(&all[n]); }
                5..=6 => for (operation, channels) in plan(&subscriptions) {
                    under_way.push((subscriptions.asked(operation, channels.clone(), Instant::now()), operation, channels));
                },
                7..=8 if !under_way.is_empty() => {
                    let batch = under_way.remove(0);
                    let bad = batch.1 == Operation::Subscribe && batch.2.iter().any(|name| &**name == "bad");
                    if flag && !bad { late.push(batch.0); }
                    act(&mut server, &mut subscriptions, batch, flag);
                }
                10..=11 if !late.is_empty() => drop(answer(&mut subscriptions, late.remove(n % late.len()), |_| true)),
                9 if n == 0 => { server.clear(); under_way.clear(); late.clear(); subscriptions.disconnected(Instant::now()); }
                _ => {}
            }
            prop_assert_eq!(subscriptions.wanted(), wanted.iter().cloned().collect::<Vec<_>>());
        }
        for _ in 0..20 {
            for batch in std::mem::take(&mut under_way) { act(&mut server, &mut subscriptions, batch, false); }
            for (operation, channels) in plan(&subscriptions) {
                under_way.push((subscriptions.asked(operation, channels.clone(), Instant::now()), operation, channels));
            }
        }
        prop_assert!(under_way.is_empty() && !subscriptions.is_asking(), "it comes to rest");
        wanted.remove("bad");
        prop_assert_eq!(&server, &wanted);
        prop_assert_eq!(subscriptions.active(), wanted.into_iter().collect::<Vec<_>>());
    }
}
