//! Events as a recording has them, and back.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::{RequestError, Unanswered};
use crate::event::Event;
use crate::lifecycle::ExitReason;
use crate::message::{CloseFrame, Message};
use crate::request::{Json, RequestId, RpcError};
use crate::response::Response;
use crate::state::DisconnectReason;

/// `{"type": …, "data": {…}}`; `None` for a message, which is a frame, and for what sums up others.
pub(super) fn told(event: &Event) -> Option<Value> {
    let data = match event {
        Event::Open { epoch, restored, refused, pending } => {
            let refused: Vec<_> = refused.iter().map(|refused| &refused.channel).collect();
            json!({ "epoch": epoch, "restored": restored, "refused": refused, "pending": pending })
        }
        Event::Disconnected { epoch, reason, unsent, uncertain } => {
            let (unsent, uncertain) = (texts(unsent), texts(uncertain));
            let (kind, text) = (reason.kind(), bare(reason));
            json!({ "epoch": epoch, "reason": kind, "text": text, "unsent": unsent, "uncertain": uncertain })
        }
        Event::ConnectFailed { attempt, error, retry_in } => {
            let retry_in = retry_in.map(|wait| wait.as_secs_f64());
            json!({ "attempt": attempt, "reason": error.kind(), "text": error.to_string(), "retry_in": retry_in })
        }
        Event::Restarted { reason, restarts } => {
            json!({ "reason": reason.kind(), "text": reason.to_string(), "restarts": restarts })
        }
        Event::Parked { reason, .. } => json!({ "reason": reason.kind(), "text": reason.to_string() }),
        Event::Closed { reason, .. } => json!({ "reason": reason.kind(), "text": reason.to_string() }),
        Event::ReadingPaused => json!({}),
        Event::ReadingResumed { after } => json!({ "after": after.as_secs_f64() }),
        Event::Stale { channel, silent_for } => json!({ "channel": channel, "silent_for": silent_for.as_secs_f64() }),
        Event::Lagged { dropped } => json!({ "dropped": dropped }),
        Event::SubscriptionRefused(refused) => {
            json!({ "channel": refused.channel, "text": refused.error.to_string() })
        }
        Event::Response(response) | Event::LateResponse(response) => of_response(response),
        Event::Message(_) | Event::Messages(_) | Event::Collapsed { .. } => return None,
    };
    Some(json!({ "type": event.kind(), "data": data }))
}

fn texts(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(message.as_bytes()).into_owned()).collect()
}

/// What the reason holds, without the words around it.
fn bare(reason: &DisconnectReason) -> String {
    match reason {
        DisconnectReason::Transport(text)
        | DisconnectReason::Protocol(text)
        | DisconnectReason::Panicked { message: text, .. }
        | DisconnectReason::RenewalFailed(text) => text.to_string(),
        DisconnectReason::HeartbeatLost { missed } => missed.to_string(),
        DisconnectReason::ClosedByServer(Some(frame)) => format!("{} {}", frame.code, frame.reason),
        DisconnectReason::ClosedByServer(None) => String::new(),
        other => other.to_string(),
    }
}

fn of_response(response: &Response) -> Value {
    let id = match &response.id {
        RequestId::Number(number) => number.to_string(),
        RequestId::Text(text) => text.to_string(),
    };
    let outcome = match &response.outcome {
        Ok(result) => json!({ "result": result.as_str() }),
        Err(RequestError::Rpc(error)) => json!({ "code": error.code, "message": error.message }),
        Err(error) => {
            let cause = match error {
                RequestError::NotSent { cause, .. } => Some(("not_sent", cause)),
                RequestError::OutcomeUnknown { cause, .. } => Some(("outcome_unknown", cause)),
                _ => None,
            };
            let timed_out = cause.is_some_and(|(_, cause)| *cause == Unanswered::TimedOut);
            json!({ "error": cause.map_or("other", |(kind, _)| kind), "timed_out": timed_out, "text": error.to_string() })
        }
    };
    let is_number = matches!(response.id, RequestId::Number(_));
    json!({ "id": id, "number": is_number, "method": response.method, "outcome": outcome })
}

/// The event again, as far as a recording tells. `None`: a handler is not told of it in a replay.
pub(super) fn read(kind: &str, data: &Value) -> Option<Event> {
    let text = |key: &str| -> Box<str> { data[key].as_str().unwrap_or_default().into() };
    let number = |key: &str| data[key].as_u64().unwrap_or_default();
    let time = |key: &str| data[key].as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let names = |key: &str| -> Vec<Arc<str>> {
        data[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(Arc::from).collect()
    };
    let messages = |key: &str| -> Vec<Message> {
        data[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(Message::from).collect()
    };
    Some(match kind {
        "open" => Event::Open {
            epoch: number("epoch"),
            restored: names("restored"),
            refused: Vec::new(),
            pending: names("pending"),
        },
        "disconnected" => Event::Disconnected {
            epoch: number("epoch"),
            reason: reason(&text("reason"), text("text")),
            unsent: messages("unsent"),
            uncertain: messages("uncertain"),
        },
        "restarted" => {
            let reason = match &*text("reason") {
                "panicked" => ExitReason::Panicked(text("text")),
                "heartbeat_lost" => ExitReason::HeartbeatLost { missed: 0 },
                "restart_requested" => ExitReason::RestartRequested,
                _ => ExitReason::RetriesExhausted { last: text("text") },
            };
            Event::Restarted { reason, restarts: number("restarts") }
        }
        "reading_paused" => Event::ReadingPaused,
        "reading_resumed" => Event::ReadingResumed { after: time("after")? },
        "stale" => Event::Stale { channel: data["channel"].as_str().map(Arc::from), silent_for: time("silent_for")? },
        "lagged" => Event::Lagged { dropped: number("dropped") },
        "response" => Event::Response(Box::new(response(data))),
        "late_response" => Event::LateResponse(Box::new(response(data))),
        _ => return None,
    })
}

fn reason(kind: &str, text: Box<str>) -> DisconnectReason {
    match kind {
        "closed_by_server" => {
            let frame = text
                .split_once(' ')
                .and_then(|(code, reason)| Some(CloseFrame { code: code.parse().ok()?, reason: reason.into() }));
            DisconnectReason::ClosedByServer(frame)
        }
        "protocol" => DisconnectReason::Protocol(text),
        "heartbeat_lost" => DisconnectReason::HeartbeatLost { missed: text.parse().unwrap_or_default() },
        "overflow" => DisconnectReason::Overflow,
        "deserted" => DisconnectReason::Deserted,
        "restart_requested" => DisconnectReason::RestartRequested,
        "reconnect_requested" => DisconnectReason::ReconnectRequested,
        "panicked" => DisconnectReason::Panicked { message: text, dropped: 0 },
        "max_age" => DisconnectReason::MaxAge,
        "renewal_failed" => DisconnectReason::RenewalFailed(text),
        _ => DisconnectReason::Transport(text),
    }
}

fn response(data: &Value) -> Response {
    let text = data["id"].as_str().unwrap_or_default();
    let id = match text.parse().ok().filter(|_| data["number"] == true) {
        Some(number) => RequestId::Number(number),
        None => RequestId::from(text),
    };
    let outcome = &data["outcome"];
    let cause = if outcome["timed_out"] == true { Unanswered::TimedOut } else { Unanswered::Disconnected };
    let words = |key: &str| outcome[key].as_str().unwrap_or_default();
    let outcome = match outcome {
        outcome if outcome["result"].is_string() => Ok(Json::from(words("result").to_owned())),
        outcome if outcome["code"].is_i64() => {
            let code = outcome["code"].as_i64().unwrap_or_default();
            Err(RequestError::Rpc(RpcError { code, message: words("message").into(), data: None }))
        }
        _ if words("error") == "not_sent" => Err(RequestError::NotSent { message: Message::text(""), cause }),
        _ => Err(RequestError::OutcomeUnknown { id: id.clone(), cause }),
    };
    Response { id, method: data["method"].as_str().unwrap_or_default().into(), outcome }
}
