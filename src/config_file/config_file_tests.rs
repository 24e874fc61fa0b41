use super::*;
use crate::state::Tag;
use std::collections::BTreeSet;
use std::time::Duration;

fn variables(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "s3cret".into())
}

fn faults(text: &str) -> Vec<String> {
    let Err(mut flaws) = parse(text, &variables) else { panic!("nothing wrong with {text}") };
    flaws.sort_by_key(|flaw| flaw.mark);
    let line = |flaw: &Flaw| format!("{}:{} {} | {}", flaw.mark.line, flaw.mark.column, flaw.key, flaw.rule);
    flaws.iter().map(line).collect()
}

#[test]
fn twenty_wrong_files_have_twenty_right_errors() {
    const TIME: &str = crate::config::file_parts::TIME_RULE;
    let url = "[clients.a]\nurl = \"ws://h\"\n";
    let cases: Vec<(String, Vec<String>)> = vec![
        (String::new(), vec!["1:1 clients | must have at least one client".into()]),
        ("[clients.a]\njitter = 0.1\n".into(), vec!["1:10 clients.a.url | every client must have one".into()]),
        (format!("{url}jitter = 2.0\n"), vec!["3:1 clients.a.jitter | must be between 0 and 1".into()]),
        (format!("{url}close_timeout = 5\n"), vec![format!("3:1 clients.a.close_timeout | {TIME}")]),
        (format!("{url}close_timeout = \"5\"\n"), vec![format!("3:1 clients.a.close_timeout | {TIME}")]),
        (
            format!("{url}conect_timeout = \"5s\"\n"),
            vec!["3:1 clients.a.conect_timeout | unknown key; did you mean `connect_timeout`?".into()],
        ),
        (
            format!("{url}tls = {{ min_vrsion = \"1.3\" }}\n"),
            vec!["3:9 clients.a.tls.min_vrsion | unknown key; did you mean `min_version`?".into()],
        ),
        (
            format!("{url}overflow = \"drop_all\"\n"),
            vec![
                "3:1 clients.a.overflow | unknown variant `drop_all`, expected one of `backpressure`, `drop_oldest`, \
                 `drop_newest`, `disconnect`"
                    .into(),
            ],
        ),
        (
            format!("{url}heartbeat = {{ kind = \"ping_pong\" }}\n"),
            vec!["3:1 clients.a.heartbeat | this kind needs `interval`".into()],
        ),
        (
            format!("{url}header = {{ Authorization = \"Bearer ${{NOT_SET}}\" }}\n"),
            vec!["3:28 clients.a.header.Authorization | the environment has no `NOT_SET`".into()],
        ),
        (
            format!("{url}dial_limit = \"dials\"\n"),
            vec!["3:1 clients.a.dial_limit | `limits` has none of this name, or that is wrong".into()],
        ),
        (
            format!("{url}[limits.dials]\nwindow = {{ limit = 0, period = \"1s\" }}\n"),
            vec!["3:9 limits.dials | the limit must be at least 1".into()],
        ),
        (
            format!("{url}[supervisor]\nmax_clients = 0\n"),
            vec!["4:1 supervisor.max_clients | must be at least 1".into()],
        ),
        (
            "[clients.a]\nurl = \"https://h\"\n".into(),
            vec!["2:1 clients.a.url | must have the scheme `ws` or `wss`".into()],
        ),
        (
            format!("{url}proxy = {{ bypass = \"x\" }}\n"),
            vec!["3:1 clients.a.proxy | must have either a `url`, or `from_environment = true`".into()],
        ),
        (
            format!("[defaults]\nmax_retires = 1\n{url}[clients.b]\nurl = \"ws://h\"\n"),
            vec!["2:1 defaults.max_retires | unknown key; did you mean `max_retries`?".into()],
        ),
        (
            format!("{url}event_capacity = 99999999999999999999\njitter = nan\n"),
            vec!["3:18 clients.a.event_capacity | the number is too large".into(), "4:10 clients.a.jitter | must be a finite number".into()],
        ),
        (
            format!("{url}[supervisor]\nintensity = [3, \"5s\"]\n"),
            vec!["4:13 supervisor.intensity | must be no list".into()],
        ),
        (
            format!("{url}proxy = \"http://user:hidden@p\"\nrestart = \"${{TOKEN}}\"\npark_on = [401, \"x\"]\n"),
            vec![
                "3:1 clients.a.proxy | must be a table, and is a text".into(),
                "4:1 clients.a.restart | must be one of `transient`, `permanent`, `temporary`".into(),
                "5:17 clients.a.park_on.1 | must be a whole number, and is a text".into(),
            ],
        ),
        (
            format!("{url}venue = \"ftx\"\n[clients.b]\nurl = \"ws://h\"\nvenue = {{ deribit = {{ sesion = \"s\" }} }}\n"),
            vec![
                "3:1 clients.a.venue | must be one of `binance_spot`, `binance_futures`, `deribit`, or a table with \
                 `deribit` and its options"
                    .into(),
                "6:23 clients.b.venue.deribit.sesion | unknown key; did you mean `session`?".into(),
            ],
        ),
        (
            "[supervisor]\nmax_clients = 1\n[clients.a]\nurl = \"ws://h\"\n[clients.b]\nurl = \"ws://h\"\nname = \"a\"\n".into(),
            vec![
                "2:1 supervisor.max_clients | there are 2 clients".into(),
                "7:1 clients.b.name | the client `a` has this name already".into(),
            ],
        ),
        (
            "[defaults]\njitter = 7.0\n[clients.a]\nurl = \"ws://h\"\n[clients.b]\nurl = \"ws://h\"\n".into(),
            vec!["2:1 clients.a.jitter | must be between 0 and 1".into()],
        ),
        (
            // All of them at once, in the order of the lines.
            format!("{url}jitter = -1.0\nrestrat = \"never\"\nrestart = \"never\"\nconnect_timeout = \"0s\"\n"),
            vec![
                "3:1 clients.a.jitter | must be between 0 and 1".into(),
                "4:1 clients.a.restrat | unknown key; did you mean `restart`?".into(),
                "5:1 clients.a.restart | unknown variant `never`, expected one of `transient`, `permanent`, `temporary`"
                    .into(),
                "6:1 clients.a.connect_timeout | must be greater than zero".into(),
            ],
        ),
    ];
    assert!(cases.len() >= 20);
    for (text, expected) in cases {
        assert_eq!(faults(&text), expected, "{text}");
    }
    let syntax = faults("[clients.a\nurl = 1");
    assert!(syntax[0].starts_with("1:11 "), "{syntax:?}");
}

const EVERYTHING: &str = r#"
[supervisor]
intensity = { max_restarts = 3, window = "30s" }
intensity_scope = "supervisor"
restart_counting = "all"
max_clients = 5
shutdown_grace = "2s"

[limits.shared]
bucket = { capacity = 10, refill = 5, period = "1s" }
per_connection = true

[defaults]
dial_limit = "shared"
backoff = { base = "100ms", cap = "3s" }
socket = { dscp = 46, keepalive = { idle = "20s", interval = "5s", retries = 3 } }

[clients.one]
url = "wss://one.example/ws?key=${TOKEN}"
fallback_url = ["wss://two.example/ws"]
header = { Authorization = "Bearer ${TOKEN}", X-Other = "${NOT_SET:-none} $$5" }
subprotocol = ["v1"]
subprotocol_choice = "optional"
heartbeat = { kind = "message", interval = "5s", payload = "ping", contains = "pong", max_missed = 3 }
tls = { min_version = "1.3", alpn = ["http/1.1"], without_sni = true }
proxy = { url = "http://user:${TOKEN}@proxy:3128", bypass = "localhost" }
socket = { send_buffer = 65536 }
stale_after = "10s"
stale_action = "tell"
overflow = "drop_oldest"
idle_strategy = { backoff = { spins = 100, yields = 10 } }
rate_limit = ["shared", { window = { limit = 300, period = "5m" } }]
restart = "permanent"
max_age = "1h 30m"

[clients.two]
url = "ws://two.example"
idle_strategy = "busy_spin"
venue = "binance_spot"
subscribe = ["btcusdt@trade"]
backoff = { base = "1s", cap = "2s" }
"#;

#[test]
fn a_file_comes_to_what_the_builder_would_have_made() {
    let desk = parse(EVERYTHING, &variables).unwrap();
    let names: Vec<_> = desk.clients.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one", "two"]);
    let (one, two) = (desk.clients[0].1.resolve().unwrap(), desk.clients[1].1.resolve().unwrap());
    assert!(one.target.path_and_query.ends_with("key=s3cret"));
    let value = |at: usize| one.headers[at].value.to_str().unwrap();
    assert_eq!((value(0), value(1)), ("Bearer s3cret", "none $5"));
    assert_eq!(one.reconnect.base, Duration::from_millis(100), "of the defaults");
    assert_eq!(two.reconnect.base, Duration::from_secs(1), "its own");
    assert_eq!((one.socket.dscp, one.socket.send_buffer), (Some(46), Some(65536)), "tables are taken together");
    assert_eq!(one.max_age, Some(Duration::from_secs(5400)));
    assert_eq!(one.heartbeat.kind(), crate::HeartbeatKind::Message);
    assert_eq!(one.limits.len(), 2);
    assert_eq!(two.idle, crate::IdleStrategy::BusySpin);
    assert!(desk.supervisor.max_restarts == 3 && desk.supervisor.max_clients == Some(5));
    // One bucket for both, and ten dials empty it.
    let (first, second) = (one.dial_limit.unwrap(), two.dial_limit.unwrap());
    let now = std::time::Instant::now();
    assert!((0..5).all(|_| first.take_one(now).is_ok() && second.take_one(now).is_ok()));
    assert!(first.take_one(now).is_err() && second.take_one(now).is_err());
}

/// A fault hides no other, and none is reported that follows from another.
#[test]
fn all_faults_of_a_file_are_reported_at_once_and_no_other() {
    let keys = |text: &str| -> Vec<String> {
        faults(text).iter().map(|fault| fault.split(' ').nth(1).unwrap().to_owned()).collect()
    };
    for url in ["url = \"https://x\"\n", "", "url = 5\n", "url = \"${NOT_SET}\"\n"] {
        let others = "jitter = 2.0\nevent_capacity = 0\ndial_limit = \"nope\"\nstale_after = 5\nnope = 1\n";
        let mut found = keys(&format!("[clients.a]\n{url}{others}"));
        found.sort();
        let expected = ["dial_limit", "event_capacity", "jitter", "nope", "stale_after", "url"]
            .map(|key| format!("clients.a.{key}"));
        assert_eq!(found, expected, "{url}");
    }
    let with = |line: &str| keys(&format!("[clients.a]\nurl = \"ws://h\"\n{line}\n"));
    assert_eq!(with("backoff = { base = \"1s\", cap = 5 }"), ["clients.a.backoff.cap"]);
    assert_eq!(with("backoff = { base = 1 }"), ["clients.a.backoff", "clients.a.backoff.base"]);
    assert_eq!(with("heartbeat = { kind = \"nope\" }"), ["clients.a.heartbeat.kind"]);
    assert_eq!(
        with("socket = { keepalive = { idle = 1, interval = \"5s\", retries = \"x\" } }"),
        ["clients.a.socket.keepalive.idle", "clients.a.socket.keepalive.retries",]
    );
    assert_eq!(
        with("event_capacity = 99999999999999999999\njitter = 2.0"),
        ["clients.a.event_capacity", "clients.a.jitter"]
    );
}

#[test]
fn a_variable_is_put_in_as_a_shell_does() {
    let variable = |name: &str| match name {
        "B" => Some("inner".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    for (text, expected) in [
        ("${A:-${B}}", Ok("inner")),
        ("<${A:-x${C:-y${B}}z}>", Ok("<xyinnerz>")),
        ("${EMPTY:-other}", Ok("other")),
        ("${EMPTY-other}", Ok("")),
        ("${EMPTY}", Ok("")),
        ("${A-}", Ok("")),
        ("$${B} $5 $", Ok("${B} $5 $")),
        ("${A:-$$}", Ok("$")),
        ("${A}", Err("the environment has no `A`")),
        ("${A:-${C}}", Err("the environment has no `C`")),
        ("${B", Err("has a `${` without its `}`")),
        ("${}", Err("`${}` has no name of a variable")),
        ("${B:?no}", Err("`${B:?no}`: a name is followed by `:-`, by `-`, or by `}`")),
    ] {
        let found = tree::filled_in(text, &variable);
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned), "{text}");
    }
}

#[test]
fn a_time_has_units_that_can_not_be_misread() {
    for wrong in ["5M", "5", "0", "", "1 month", "2weeks", "1y", "5 minutes", "-1s", "1.5h", "s"] {
        assert!(time(wrong).is_err(), "{wrong}");
    }
    assert_eq!(time("1d 2h 3m 4s 5ms 6us 7ns"), Ok(Duration::new(93_784, 5_006_007)));
}

/// Names of the methods of a builder, by its source.
fn methods(source: &str) -> BTreeSet<String> {
    let lines = source.lines().map(str::trim_start).filter(|line| line.starts_with("pub fn "));
    let lines: Vec<_> = lines.collect();
    let builds =
        |line: &&&str| !line.contains("&self") && !line.starts_with("pub fn new") && !line.contains("pub(crate)");
    let name = |line: &&str| line["pub fn ".len()..].split(['(', '<']).next().unwrap().to_owned();
    lines.iter().filter(builds).map(name).collect()
}

fn keys(schema: &Value, of: &str) -> BTreeSet<String> {
    let fields = schema["$defs"][of]["properties"].as_object().unwrap_or_else(|| panic!("no {of}"));
    fields.keys().cloned().collect()
}

#[test]
fn every_knob_of_the_builders_is_a_key_of_the_file() {
    let schema = Desk::schema();
    let without = |mut all: BTreeSet<String>, code: &[&str]| {
        assert!(code.iter().all(|name| all.remove(*name)), "{code:?} of {all:?}");
        all
    };
    let sources = [
        include_str!("../config/mod.rs"),
        include_str!("../config/connecting.rs"),
        include_str!("../config/session.rs"),
        include_str!("../config/thread.rs"),
    ];
    let knobs = sources.iter().flat_map(|source| methods(source)).collect();
    // Code of the caller's, and the recorder, which is the desk's.
    let code = [
        "delivery",
        "prepare",
        "on_open",
        "reconcile",
        "reconcile_from_start",
        "resolver",
        "stale_while",
        "correlation",
        "record",
    ];
    let mut expected = without(knobs, &code);
    expected.insert("url".into());
    assert_eq!(keys(&schema, "ClientFile"), expected);
    assert_eq!(keys(&schema, "SocketFile"), methods(include_str!("../config/socket.rs")));
    let tls = without(methods(include_str!("../config/tls.rs")), &["certificate", "public_key"]);
    assert_eq!(keys(&schema, "TlsFile"), tls);
    assert_eq!(
        keys(&schema, "CompressionFile"),
        without(methods(include_str!("../config/compression.rs")), &["deflate"])
    );
    let mut proxy = methods(include_str!("../config/proxy.rs"));
    proxy.insert("url".into());
    assert_eq!(keys(&schema, "ProxyFile"), proxy);
    let supervisor = without(methods(include_str!("../supervisor/settings.rs")), &[]);
    assert_eq!(keys(&schema, "SupervisorFile"), supervisor);
    let deribit: BTreeSet<_> = methods(include_str!("../venue/deribit.rs"));
    assert_eq!(keys(&schema, "DeribitFile"), deribit);
    #[cfg(feature = "zstd")]
    {
        let recorder = include_str!("../record/recorder.rs").split("/// How a [`Recorder`] does.").next().unwrap();
        let mut recorder = without(methods(recorder), &["start"]);
        recorder.insert("path".into());
        assert_eq!(keys(&schema, "RecorderFile"), recorder);
    }
}

#[test]
fn what_it_came_to_has_every_option_and_no_secret() {
    let desk = parse(EVERYTHING, &variables).unwrap();
    let settings = desk.clients[0].1.resolve().unwrap();
    let tag = Tag { id: crate::state::ClientId(1), name: "one".into(), venue: "one.example".into() };
    let effective = crate::config::effective::effective(&tag, &settings);
    assert!(!effective.to_string().contains("s3cret"), "{effective}");
    assert_eq!(effective["header"]["Authorization"], "[redacted]");
    assert_eq!(effective["max_age"], "1h 30m");
    assert_eq!(effective["heartbeat"]["interval"], "5s");
    assert_eq!(effective["close_timeout"], "5s", "a default");
    assert_eq!(effective["send_capacity"], 1024);
}
