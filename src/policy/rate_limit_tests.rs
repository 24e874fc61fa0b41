//! Buckets, and what a message pays them, by a clock of the tests' own.

#![cfg_attr(not(feature = "property-tests"), allow(dead_code, unused_imports))]

use super::*;
#[cfg(feature = "property-tests")]
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_bucket_is_full_at_first_and_says_how_long_to_wait() {
    let t0 = Instant::now();
    let limit = RateLimit::bucket(4, 2, 1000 * MS).unwrap().cost(|m| m.len() as u32);
    let message = |cost: usize| Message::text("x".repeat(cost));
    let charge = |cost, now| charge(&limit, &message(cost), now);
    assert_eq!(charge(0, t0), Ok(()));
    assert_eq!(charge(5, t0), Err(Over::Never { cost: 5, capacity: 4 }));
    assert_eq!(charge(3, t0), Ok(()));
    assert_eq!(charge(3, t0), Err(Over::Wait(1000 * MS)));
    let t1 = t0 + 1000 * MS;
    assert_eq!(super::tests::charge(&limit.clone(), &message(3), t1), Ok(()), "a clone has the same bucket");
    assert_eq!(charge(1, t1), Err(Over::Wait(500 * MS)));
    assert_eq!(charge(1, t0), Err(Over::Wait(500 * MS)), "time given late is no earlier");
}

fn charge(limit: &RateLimit, message: &Message, now: Instant) -> Result<(), Over> {
    let limits = Limits(vec![limit.clone()]);
    limits.take(&limits.price(message), now)
}

#[test]
fn a_message_pays_all_limits_or_none() {
    let t0 = Instant::now();
    let hour = 3_600_000 * MS;
    let limits = Limits(vec![RateLimit::bucket(10, 10, hour).unwrap(), RateLimit::bucket(1, 1, hour).unwrap()]);
    let mut price = limits.price(&"".into());
    assert_eq!(limits.take(&price, t0), Ok(()));
    price.is_paid(|| t0);
    (0..20).for_each(|_| assert!(matches!(limits.take(&price, t0), Err(Over::Wait(_)))));
    let first = Limits(vec![limits.0[0].clone()]);
    (0..9).for_each(|_| assert_eq!(first.take(&first.price(&"".into()), t0), Ok(())));
    assert!(first.take(&price, t0).is_err());
    limits.refund(&mut price);
    limits.refund(&mut price);
    assert_eq!(limits.take(&price, t0), Ok(()));
}

/// Since then it has dripped back, and others have had it.
#[test]
fn what_is_given_back_late_makes_no_tokens() {
    let t0 = Instant::now();
    let limits = Limits(vec![RateLimit::bucket(2, 1, 1000 * MS).unwrap()]);
    let take = |now| {
        let mut price = limits.price(&"".into());
        limits.take(&price, now).map(|()| {
            price.is_paid(|| now);
            price
        })
    };
    let mut early = [take(t0).unwrap(), take(t0).unwrap()];
    assert!(take(t0).is_err());
    limits.refund(&mut early[0]);
    let mut soon = take(t0 + 100 * MS).expect("given back in time");
    let full = t0 + 2100 * MS;
    assert!(take(full).is_ok() && take(full).is_ok());
    [&mut early[1], &mut soon].into_iter().for_each(|late| limits.refund(late));
    assert!(take(full).is_err());
}

#[test]
fn what_goes_regardless_is_paid_later_and_a_reserve_is_for_the_entitled() {
    let t0 = Instant::now();
    let limits = Limits(vec![RateLimit::bucket(3, 1, 1000 * MS).unwrap().reserve(1, |m| m.len() == 1)]);
    let (order, cancel) = (limits.price(&"order".into()), limits.price(&"c".into()));
    assert_eq!((limits.take(&order, t0), limits.take(&order, t0)), (Ok(()), Ok(())));
    assert_eq!(limits.take(&order, t0), Err(Over::Wait(1000 * MS)), "one is left to the entitled");
    assert_eq!(limits.take(&cancel, t0), Ok(()));
    (0..2).for_each(|_| limits.force(&cancel, t0));
    assert_eq!(limits.take(&cancel, t0), Err(Over::Wait(3000 * MS)));
    (0..90).for_each(|_| limits.force(&cancel, t0));
    assert_eq!(limits.take(&cancel, t0), Err(Over::Wait(4000 * MS)), "the debt has a bound");
}

#[test]
fn a_limit_is_shared_or_a_clients_or_a_connections() {
    let t0 = Instant::now();
    let limit = || RateLimit::bucket(1, 1, 3_600_000 * MS).unwrap();
    for (limit, other_client, next_connection) in
        [(limit(), false, false), (limit().per_client(), true, false), (limit().per_connection(), true, true)]
    {
        let (one, two) = (Limits::for_client(std::slice::from_ref(&limit)), Limits::for_client(&[limit]));
        let price = one.price(&"".into());
        assert_eq!(one.take(&price, t0), Ok(()));
        assert_eq!(two.take(&price, t0).is_ok(), other_client);
        one.begin_connection(t0);
        assert_eq!(one.take(&price, t0).is_ok(), next_connection);
    }
}

#[test]
fn limits_that_cannot_be_meant_are_refused() {
    let second = Duration::from_secs(1);
    for (capacity, refill, period) in [
        (u32::MAX, 1, 3600 * second),
        (10, 1, Duration::MAX),
        (0, 1, second),
        (1, 0, second),
        (1, 1, Duration::ZERO),
        (1, 2, Duration::from_nanos(1)),
    ] {
        assert_eq!(RateLimit::bucket(capacity, refill, period).unwrap_err().option(), "rate_limit");
    }
    assert!(RateLimit::window(0, second).is_err() && RateLimit::window(1, Duration::ZERO).is_err());
    assert!(RateLimit::window(1, second).is_ok());
}

#[cfg(feature = "property-tests")]
proptest! {
    #[test]
    fn no_window_ever_holds_more_than_the_limit(
        limit in 1u32..40, period in 10u64..2000, pauses in prop::collection::vec(0u64..60, 1..400),
    ) {
        let start = Instant::now();
        let bucket = RateLimit::window(limit, period as u32 * MS).unwrap();
        let (mut now, mut passed) = (0, vec![]);
        for pause in pauses {
            now += pause;
            if charge(&bucket, &Message::text(""), start + now as u32 * MS).is_ok() {
                passed.push(now);
            }
        }
        for (index, from) in passed.iter().enumerate() {
            let within = passed[index..].iter().take_while(|at| **at < from + period).count();
            prop_assert!(within <= limit as usize, "{} of {} in {} ms from {}", within, limit, period, from);
        }
        prop_assert!(!passed.is_empty());
    }
}
