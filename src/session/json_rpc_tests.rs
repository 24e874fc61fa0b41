use super::*;
use crossbeam_channel::Receiver;
use proptest::prelude::*;

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
    let (first, _a, written) = pending(now + 10 * MS);
    let (second, _b, _) = pending(now + 20 * MS);
    assert!(requests.register(1.into(), first).unwrap(), "the worker must hear of it");
    assert!(!requests.register(2.into(), second).unwrap(), "it is awake by then anyway");
    assert!(written.begin());
    assert!(requests.expire(now + 9 * MS).is_empty());
    let failed = requests.expire(now + 20 * MS);
    let mut told: Vec<_> = failed.iter().map(|(response, _)| (response.id.to_string(), cause(response))).collect();
    told.sort_by(|a, b| a.0.cmp(&b.0));
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
    assert_eq!(requests.expire(now + MS).len(), 2);
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
}

fn untold(requests: &Requests) -> Vec<RequestId> {
    requests.disconnected().into_iter().filter_map(|left| left.untold.map(|(response, _)| response.id)).collect()
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
        let mut end = |id: &RequestId| {
            let RequestId::Number(id) = id else { unreachable!() };
            *ended.entry(*id).or_default() += 1;
        };
        for (step, n) in steps {
            match step {
                0 | 1 => {
                    let id = requests.next_id();
                    let (request, _, receipt) = pending(now + n as u32 * MS);
                    if n % 2 == 0 { receipt.begin(); }
                    requests.register(id.clone(), request).unwrap();
                    open.push(id);
                }
                2 => if let Some(id) = open.get(n as usize) {
                    if matches!(requests.claim(id), Claim::Pending(_)) { end(id); }
                },
                3 => { now += n as u32 * MS; requests.expire(now).iter().for_each(|(r, _)| end(&r.id)); }
                4 => if let Some(id) = open.get(n as usize) {
                    if requests.not_sent(id).is_some() { end(id); }
                },
                _ if n == 0 => untold(&requests).iter().for_each(&mut end),
                _ => {}
            }
            let earliest = requests.table.lock().next();
            prop_assert!(requests.due() <= earliest || requests.due().is_some_and(|due| due <= earliest.unwrap_or(due)));
        }
        untold(&requests).iter().for_each(&mut end);
        prop_assert_eq!(ended.len(), open.len());
        prop_assert!(ended.values().all(|times| *times == 1), "{:?}", ended);
        prop_assert!(requests.is_idle());
    }
}
