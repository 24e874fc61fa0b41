//! Deribit's heartbeat messages (docs.deribit.com: `public/set_heartbeat`, `public/test`). Here and not in `deribit`, because
//! a client needs neither that feature nor its dependencies for them.

use std::time::Duration;

use serde_json::Value;

use crate::message::{Message, MessageRef};
use crate::policy::heartbeat::{Classified, Heartbeat, HeartbeatDialect, HeartbeatKind};

impl Heartbeat {
    /// Asks the venue for heartbeats every `interval` (`public/set_heartbeat`) and answers each of its `test_request`s
    /// with `public/test` at once, as Deribit's API documentation demands of a client that wants to stay connected.
    /// Half an `interval` late, and then every `interval`, is a miss; two in a row are too many. Whole seconds;
    /// Deribit itself refuses less than 10. These messages are counted but not delivered.
    pub fn deribit(interval: Duration) -> Self {
        Self::dialect(interval, Deribit)
    }
}

struct Deribit;

impl HeartbeatDialect for Deribit {
    fn kind(&self) -> HeartbeatKind {
        HeartbeatKind::Deribit
    }

    fn refuses(&self, interval: Duration) -> Option<&'static str> {
        (interval.subsec_nanos() != 0)
            .then_some("Deribit's interval must be whole seconds (and the venue refuses less than 10)")
    }

    fn begin(&self, interval: Duration) -> Option<Message> {
        Some(request("set_heartbeat", &format!(r#"{{"interval":{}}}"#, interval.as_secs())))
    }

    fn classify(&self, message: MessageRef<'_>) -> Classified {
        // A look at the text spares every tick the parse.
        let Some(text) = message.as_text().filter(|text| text.len() < 4096) else { return Classified::NotHeartbeat };
        if !text.contains("\"heartbeat\"") && !text.contains(ID) {
            return Classified::NotHeartbeat;
        }
        let Ok(value) = serde_json::from_str::<Value>(text) else { return Classified::NotHeartbeat };
        if value["method"] == "heartbeat" {
            let test_request = value["params"]["type"] == "test_request";
            return Classified::Alive { reply: test_request.then(|| request("test", "{}")) };
        }
        match value["id"].as_str() {
            Some(id) if id.starts_with(ID) => {
                Classified::Response { refused: value.get("error").map(|error| error["message"].to_string().into()) }
            }
            _ => Classified::NotHeartbeat,
        }
    }
}

/// Ids that no caller's request has.
const ID: &str = "ws-supervisor:";

fn request(method: &str, params: &str) -> Message {
    Message::text(format!(r#"{{"jsonrpc":"2.0","id":"{ID}{method}","method":"public/{method}","params":{params}}}"#))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::monitor::{Beat, Monitor, Verdict};
    use std::time::Instant;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn deribit_asks_answers_and_misses() {
        let t0 = Instant::now();
        let (mut monitor, first) = Monitor::open(Heartbeat::deribit(10 * S), 7, t0);
        let Beat::Send(request) = first else { panic!("{first:?}") };
        let request: Value = serde_json::from_str(request.as_text().unwrap()).unwrap();
        assert_eq!(request["method"], "public/set_heartbeat");
        assert_eq!(request["params"]["interval"], 10);

        let id = request["id"].as_str().unwrap();
        let answer = Message::text(format!(r#"{{"jsonrpc":"2.0","id":"{id}","result":"ok"}}"#));
        assert!(monitor.message(answer.view(), t0).ours);
        assert_eq!(monitor.last_received(), None, "an answer to ourselves is not the venue's heartbeat");

        let beat = Message::text(r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"heartbeat"}}"#);
        assert_eq!(
            monitor.message(beat.view(), t0 + 10 * S),
            Verdict { ours: true, alive: true, is_delivered: false, action: Beat::Nothing }
        );
        let test = Message::text(r#"{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}"#);
        let Verdict { ours: true, action: Beat::Send(reply), .. } = monitor.message(test.view(), t0 + 20 * S) else {
            panic!()
        };
        assert!(reply.as_text().unwrap().contains("public/test"));

        assert_eq!(monitor.tick(t0 + 34 * S, true, t0, false), Beat::Nothing);
        assert_eq!(monitor.tick(t0 + 35 * S, true, t0, false), Beat::Nothing);
        assert_eq!(monitor.failures(), 1);
        assert_eq!(monitor.tick(t0 + 45 * S, true, t0, false), Beat::Lost { missed: 2 });
    }

    #[test]
    fn deribit_leaves_other_messages_alone() {
        let (mut monitor, _) = Monitor::open(Heartbeat::deribit(10 * S), 7, Instant::now());
        for text in [
            "",
            "{",
            r#""heartbeat""#,
            r#"{"id":1,"result":"ok"}"#,
            r#"{"method":"subscription","params":{"channel":"heartbeat","data":"heartbeat"}}"#,
            r#"{"method":"subscription","params":{"type":"heartbeat"}}"#,
        ] {
            assert!(!monitor.message(Message::text(text).view(), Instant::now()).ours, "{text}");
        }
        assert!(!monitor.message(Message::binary("\"heartbeat\"").view(), Instant::now()).ours);
    }
}
