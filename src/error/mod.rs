//! Everything that can go wrong, by what it went wrong with. No type of tungstenite, native-tls or http is in it.

mod config;
mod connect;
#[cfg(feature = "record")]
mod io_kind;
mod request;
mod send;
mod session;

pub use self::config::ConfigError;
pub use self::connect::{ConnectError, Phase, Refusal, TlsFault};
pub use self::request::{RequestError, Unanswered};
pub use self::send::{ConfirmError, SendError};
pub use self::session::{RefusedChannel, SessionError, SubscribeError};

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn errors_stay_small() {
        assert!(size_of::<ConnectError>() <= 40, "{}", size_of::<ConnectError>());
        assert!(size_of::<ConfigError>() <= 32, "{}", size_of::<ConfigError>());
        assert!(size_of::<SendError>() <= 80, "{}", size_of::<SendError>());
        assert!(size_of::<ConfirmError>() <= 96, "{}", size_of::<ConfirmError>());
        assert!(size_of::<RequestError>() <= 96, "{}", size_of::<RequestError>());
        assert!(size_of::<SessionError>() <= 80, "{}", size_of::<SessionError>());
    }

    fn refused(status: u16) -> ConnectError {
        let refusal = Refusal { status, headers: vec![], body: "".into(), retry_after: None, redirects: 0 };
        ConnectError::Refused(Box::new(refusal))
    }

    #[test]
    fn only_faults_that_no_retry_mends_are_fatal() {
        for status in [401, 403, 404] {
            assert!(!refused(status).is_retryable(), "{status}");
        }
        for status in [302, 400, 418, 429, 500, 502, 503] {
            assert!(refused(status).is_retryable(), "{status}");
        }
        let tls = |fault| ConnectError::Tls { fault, message: "".into(), presented: None };
        assert!(!tls(TlsFault::Expired).is_retryable() && !tls(TlsFault::Pin).is_retryable());
        assert!(tls(TlsFault::WantsCertificate).is_retryable() && tls(TlsFault::Other).is_retryable());
        let proxy = |status| ConnectError::Proxy {
            proxy: "http://p:1".into(),
            status,
            fault: None,
            message: "".into(),
            retry_after: None,
        };
        assert!(!proxy(Some(407)).is_retryable() && proxy(Some(502)).is_retryable() && proxy(None).is_retryable());
        assert!(!ConnectError::Subprotocol { message: "".into() }.is_retryable());
        assert!(ConnectError::Timeout { phase: Phase::Tls, limit: Duration::from_secs(1) }.is_retryable());
    }

    #[test]
    fn a_refusal_prints_no_header_value() {
        let refusal = Refusal {
            status: 401,
            headers: vec![("set-cookie".into(), "session=secret".into())],
            body: "secret".into(),
            retry_after: None,
            redirects: 0,
        };
        assert!(!format!("{refusal:?} {refusal}").contains("secret"));
    }
}
