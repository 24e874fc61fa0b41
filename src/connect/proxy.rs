//! The way through a proxy: which, and what it is asked. Names are resolved at the proxy.

use std::num::NonZeroU16;

use super::attempt::{Attempt, Halt};
use super::http::{MAX_INTERIM, asks_to_wait, parse, read_head, values, write};
use crate::config::proxy::{Server, Speaks};
use crate::error::{ConnectError, TlsFault};
use crate::target::{bracketed, without_zone};
use crate::transport::Layer;

/// The proxy for this attempt's target, if there is to be one.
pub(super) fn choose(attempt: &Attempt<'_>) -> Result<Option<Server>, Halt> {
    let Some(proxy) = &attempt.settings.proxy else { return Ok(None) };
    proxy.choose(&attempt.dial.target, |name| std::env::var_os(name)).map_err(|error| {
        let message = error.to_string().into();
        ConnectError::Proxy { proxy: "".into(), status: None, fault: None, message, retry_after: None }.into()
    })
}

/// Asks the proxy on the other end of `below` for a way to the target.
pub(super) fn tunnel<L: Layer + Unpin>(attempt: &Attempt<'_>, server: &Server, below: L) -> Result<L, Halt> {
    match server.speaks {
        Speaks::Http | Speaks::Https => connect(attempt, server, below),
        #[cfg(feature = "socks")]
        Speaks::Socks5 => socks::connect(attempt, server, below),
    }
}

/// An error on the way to the proxy is the proxy's, and its TLS is configured by its own settings.
pub(super) fn blame(server: &Server, error: ConnectError) -> ConnectError {
    match error {
        ConnectError::Tcp { .. } | ConnectError::Resolve { .. } => {
            failed(server, None, None, format!("it cannot be reached: {error}").into(), None)
        }
        ConnectError::Tls { fault, message, .. } => {
            let message = format!("TLS to it failed, for which `Proxy::tls` is: {message} ({fault:?})").into();
            failed(server, None, Some(fault), message, None)
        }
        error => error,
    }
}

fn refused(server: &Server, status: Option<u16>, message: impl Into<Box<str>>) -> Halt {
    failed(server, status, None, message.into(), None).into()
}

fn failed(
    server: &Server,
    status: Option<u16>,
    fault: Option<TlsFault>,
    message: Box<str>,
    retry_after: Option<NonZeroU16>,
) -> ConnectError {
    ConnectError::Proxy { proxy: server.to_string().into(), status, fault, message, retry_after }
}

/// Whether one of the challenges in a header is Basic (RFC 9110 section 11.6.1): each begins with its scheme, at the beginning or
/// behind a comma that is not within quotes.
fn takes_basic(challenges: &str) -> bool {
    let mut is_quoted = false;
    let mut parts = challenges.split(|character| {
        is_quoted ^= character == '"';
        character == ',' && !is_quoted
    });
    parts.any(|part| part.split_whitespace().next().is_some_and(|word| word.eq_ignore_ascii_case("basic")))
}

/// RFC 9110 section 9.3.6.
fn connect<L: Layer>(attempt: &Attempt<'_>, server: &Server, mut below: L) -> Result<L, Halt> {
    let target = &attempt.dial.target;
    let authority = format!("{}:{}", bracketed(without_zone(&target.host)), target.port);
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(credentials) = &server.credentials {
        request += &format!("Proxy-Authorization: {}\r\n", credentials.basic());
    }
    request += "\r\n";
    write(attempt, &mut below, request.as_bytes())?;
    let mut came = Vec::new();
    for _ in 0..=MAX_INTERIM {
        let length = read_head(attempt, &mut below, &mut came).map_err(|halt| match halt {
            Halt::Failed(ConnectError::Handshake { message }) => refused(server, None, message),
            halt => halt,
        })?;
        let rest = came.split_off(length);
        let mut headers = [httparse::EMPTY_HEADER; super::http::MAX_HEADERS];
        let response = parse(&mut headers, &came).map_err(|halt| match halt {
            Halt::Failed(ConnectError::Handshake { message }) => refused(server, None, message),
            halt => halt,
        })?;
        let status = response.code.unwrap_or_default();
        match status {
            100..200 => came = rest,
            200..300 if rest.is_empty() => return Ok(below),
            // Neither TLS nor WebSocket lets a server speak first.
            200..300 => return Err(refused(server, Some(status), "bytes that nobody asked for follow its consent")),
            407 => {
                let schemes = values(&response, "proxy-authenticate");
                let scheme = |value: &&str| value.split_whitespace().next().unwrap_or_default().to_owned();
                let takes_basic = schemes.is_empty() || schemes.iter().any(|value| takes_basic(value));
                let message = match server.credentials {
                    _ if !takes_basic => {
                        let schemes: Vec<_> = schemes.iter().map(scheme).collect();
                        format!("it wants authentication by {} (407), and only Basic is supported", schemes.join(", "))
                    }
                    Some(_) => "it does not accept the user and password (407)".into(),
                    None => "it wants a user and password (407): `http://user:password@host:port`".into(),
                };
                return Err(refused(server, Some(status), message));
            }
            _ => {
                // Its own words may repeat what it was told.
                let message = format!("it refuses the connection to {authority}: {status}").into();
                let seconds = asks_to_wait(&response).map(|wait| u16::try_from(wait.as_secs()).unwrap_or(u16::MAX));
                let retry_after = seconds.and_then(NonZeroU16::new);
                return Err(failed(server, Some(status), None, message, retry_after).into());
            }
        }
    }
    Err(refused(server, None, format!("more than {MAX_INTERIM} interim answers")))
}

/// By a crate made for runtimes, on a socket that waits by itself: its future is ready when it is asked first.
#[cfg(feature = "socks")]
mod socks {
    use std::io::{self, ErrorKind};
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use tokio_socks::Error;
    use tokio_socks::io::AsyncSocket;
    use tokio_socks::tcp::Socks5Stream;

    use super::{Attempt, Halt, Layer, Server, refused, without_zone};

    struct Waiting<'a, L> {
        attempt: &'a Attempt<'a>,
        below: L,
        /// Why it does not go on.
        halt: &'a mut Option<Halt>,
        /// User and password were sent, and the answer to them is next.
        authenticates: bool,
    }

    /// The version of the sub-negotiation (RFC 1929 section 2).
    const SUBNEGOTIATION: u8 = 1;

    impl<L: Layer> Waiting<'_, L> {
        fn until_done(&mut self, mut step: impl FnMut(&mut L) -> io::Result<usize>) -> Poll<io::Result<usize>> {
            loop {
                match step(&mut self.below) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if let Err(halt) = self.attempt.unblock(self.below.socket_mut()) {
                            *self.halt = Some(halt);
                            return Poll::Ready(Err(ErrorKind::Interrupted.into()));
                        }
                    }
                    result => return Poll::Ready(result),
                }
            }
        }
    }

    impl<L: Layer + Unpin> AsyncSocket for Waiting<'_, L> {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
            let read = self.until_done(|below| below.read(buffer));
            // Some servers answer with SOCKS' own version in place of the sub-negotiation's. Clients take both.
            if let (Poll::Ready(Ok(1..)), [version @ 5, ..], true) = (&read, &mut *buffer, self.authenticates) {
                *version = SUBNEGOTIATION;
            }
            self.authenticates = false;
            read
        }

        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
            self.authenticates = buffer.first() == Some(&SUBNEGOTIATION);
            self.until_done(|below| below.write(buffer))
        }
    }

    /// RFC 1928, and RFC 1929 for user and password.
    pub(super) fn connect<L: Layer + Unpin>(attempt: &Attempt<'_>, server: &Server, below: L) -> Result<L, Halt> {
        let to = (without_zone(&attempt.dial.target.host), attempt.dial.target.port);
        let mut halt = None;
        let socket = Waiting { attempt, below, halt: &mut halt, authenticates: false };
        let result = match &server.credentials {
            None => now(Socks5Stream::connect_with_socket(socket, to)),
            Some(of) => now(Socks5Stream::connect_with_password_and_socket(socket, to, &of.user, &of.password)),
        };
        match result {
            Ok(stream) => Ok(stream.into_inner().below),
            Err(error) => Err(match (halt, error) {
                (Some(halt), _) => halt,
                (None, Error::Io(error)) => attempt.broken(&error),
                (None, Error::InvalidResponseVersion | Error::InvalidReservedByte | Error::UnknownAddressType) => {
                    refused(server, None, "it does not speak SOCKS5 (RFC 1928)")
                }
                (
                    None,
                    error @ (Error::PasswordAuthFailure(_)
                    | Error::NoAcceptableAuthMethods
                    | Error::AuthorizationRequired
                    | Error::UnknownAuthMethod),
                ) => {
                    let message = match &server.credentials {
                        None => "it wants a user and password: `socks5://user:password@host:port`".into(),
                        Some(_) => format!("it does not accept this user and password: {error}"),
                    };
                    // HTTP's status for it, so that it is retried as seldom as a refusal of an HTTP proxy.
                    refused(server, Some(407), message)
                }
                (None, error) => {
                    refused(server, None, format!("it refuses the connection to {}:{}: {error}", to.0, to.1))
                }
            }),
        }
    }

    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => done,
            Poll::Pending => unreachable!("its socket waits by itself"),
        }
    }
}
