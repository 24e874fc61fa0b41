use crossbeam_channel::Receiver;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn pending(deadline: Instant) -> (Pending, Receiver<Response>, Arc<Receipt>) {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let receipt = Arc::new(Receipt::request(1.into()));
    let sink = Sink::Caller(sender);
    let pending = Pending { method: "m".into(), message: Message::text("q"), deadline, receipt: receipt.clone(), sink };
    (pending, receiver, receipt)
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
    let requests = Requests::new(now);
    assert!(requests.is_idle() && requests.due().is_none());
    let (first, a, written) = pending(now + 10 * MS);
    let (second, b, _) = pending(now + 20 * MS);
    assert!(requests.register(1.into(), first).unwrap(), "the worker must hear of it");
    assert!(!requests.register(2.into(), second).unwrap(), "it is awake by then anyway");
    assert!(written.begin());
    assert!(requests.expire(now + 9 * MS, true).is_empty() && a.is_empty());
    assert!(requests.expire(now + 20 * MS, false).is_empty(), "callers are told at once");
    let told = [a, b].map(|told| told.try_recv().unwrap()).map(|told| (told.id.to_string(), cause(&told)));
    let timed_out = Unanswered::TimedOut;
    assert_eq!(told, [("1".into(), ("unknown", timed_out)), ("2".into(), ("not sent", timed_out))]);
    assert!(matches!(requests.claim(&1.into()), Claim::Late { .. }));
    assert!(matches!(requests.claim(&1.into()), Claim::Nobody), "once");
    assert!(matches!(requests.claim(&2.into()), Claim::Nobody), "it never left, so nothing can answer it");
    assert!(requests.is_idle());
}

#[test]
fn a_late_answer_is_remembered_for_a_while_and_on_its_own_connection() {
    let now = Instant::now();
    let requests = Requests::new(now);
    for id in [1, 2] {
        let (request, _answer, receipt) = pending(now + MS);
        receipt.begin();
        requests.register(id.into(), request).unwrap();
    }
    assert!(requests.expire(now + MS, true).is_empty());
    let again = requests.register(1.into(), pending(now).0).unwrap_err();
    assert_eq!(again, Barred::Duplicate, "its answer may still come");
    assert_eq!(requests.due(), Some(now + MS + MEMORY));
    assert!(requests.disconnected().iter().all(|left| left.untold.is_none()), "they were told");
    assert!(requests.is_idle() && matches!(requests.claim(&2.into()), Claim::Nobody));
}

#[test]
fn ids_are_never_used_twice() {
    let now = Instant::now();
    let requests = Requests::new(now);
    assert_eq!(requests.next_id(), 1.into());
    requests.register(40.into(), pending(now).0).unwrap();
    assert_eq!(requests.register(40.into(), pending(now).0).unwrap_err(), Barred::Duplicate);
    assert_eq!(requests.next_id(), 41.into());
    requests.register("40".into(), pending(now).0).unwrap();
    requests.register(u64::MAX.into(), pending(now).0).unwrap();
    assert_eq!(requests.next_id(), 42.into(), "an id without a successor is left alone");
}

#[test]
fn the_workers_own_requests_wait_while_nothing_is_read_and_are_nobodys_business() {
    let now = Instant::now();
    let requests = Requests::new(now);
    let own = || Pending { sink: Sink::Worker(Purpose::Renewal), ..pending(now + MS).0 };
    requests.register(1.into(), own()).unwrap();
    assert!(requests.expire(now + MS, false).is_empty());
    assert_eq!(requests.due(), Some(now + MS + GRACE));
    assert_eq!(requests.expire(now + MS + GRACE, true).len(), 1);
    requests.register(2.into(), own()).unwrap();
    assert!(requests.disconnected().is_empty());
}

proptest! {
    /// Whatever comes in whatever order, each request ends exactly once, and the table forgets it.
    #[test]
    fn each_request_ends_exactly_once(steps in prop::collection::vec((0u8..6, 0u64..12), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let requests = Requests::new(start);
        let mut ended: HashMap<u64, u32> = HashMap::new();
        let mut open = vec![];
        let mut answers = vec![];
        let mut end = |id: &RequestId| {
            let RequestId::Number(id) = id else { unreachable!() };
            *ended.entry(*id).or_default() += 1;
        };
        for (step, n) in steps {
            match step {
                0 | 1 => {
                    let id = requests.next_id();
                    let (request, answer, receipt) = pending(now + n as u32 * MS);
                    answers.push(answer);
                    if n % 2 == 0 { receipt.begin(); }
                    requests.register(id.clone(), request).unwrap();
                    open.push(id);
                }
                2 => if let Some(id) = open.get(n as usize) {
                    if matches!(requests.claim(id), Claim::Pending(_)) { end(id); }
                },
                3 => { now += n as u32 * MS; requests.expire(now, true); }
                4 => if let Some(id) = open.get(n as usize) {
                    if requests.not_sent(id).is_some() { end(id); }
                },
                _ if n == 0 => drop(requests.disconnected()),
                _ => {}
            }
            let earliest = requests.table.lock().next();
            prop_assert!(requests.due() <= earliest || requests.due().is_some_and(|due| due <= earliest.unwrap_or(due)));
        }
        drop(requests.disconnected());
        answers.iter().flat_map(|answer| answer.try_iter()).for_each(|response| end(&response.id));
        prop_assert_eq!(ended.len(), open.len());
        prop_assert!(ended.values().all(|times| *times == 1), "{:?}", ended);
        prop_assert!(requests.is_idle());
    }
}
