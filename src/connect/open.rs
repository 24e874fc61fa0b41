//! The steps of an attempt, one after the other: for each address that takes the connection, until one of them serves.

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::Role;

use super::attempt::{Attempt, Halt};
use super::secure::secure;
use super::{handshake, proxy, resolve, tcp};
use crate::config::proxy::{Server, Speaks};
use crate::dial::Dial;
use crate::error::{ConnectError, Phase, Refusal};
use crate::handshake::Handshake;
use crate::logger;
use crate::transport::{Extensions, Layer, Socket, Transport, Wire};

/// Makes the connection, following redirects as far as the configuration lets it.
pub(crate) fn open(attempt: &Attempt<'_>) -> Result<(Transport, Handshake), Halt> {
    let mut redirected: Option<Dial> = None;
    let mut left = attempt.settings.redirects;
    loop {
        let hop = redirected.as_ref().map(|dial| attempt.to(dial));
        match open_one(hop.as_ref().unwrap_or(attempt)) {
            Err(Halt::Failed(ConnectError::Refused(refusal)))
                if left > 0 && refusal.points_elsewhere() && may_dial(attempt) =>
            {
                left -= 1;
                let dial = redirected.as_ref().unwrap_or(attempt.dial);
                redirected = Some(follow(dial, &refusal).map_err(Halt::Failed)?);
            }
            Err(Halt::Failed(ConnectError::Refused(mut refusal))) => {
                refusal.redirects = attempt.settings.redirects - left;
                return Err(ConnectError::Refused(refusal).into());
            }
            result => return result,
        }
    }
}

fn follow(dial: &Dial, refusal: &Refusal) -> Result<Dial, ConnectError> {
    dial.redirected(refusal.location().unwrap_or_default()).map_err(|error| ConnectError::Handshake {
        message: format!("a redirect that can't be followed: {error}").into(),
    })
}

fn open_one(attempt: &Attempt<'_>) -> Result<(Transport, Handshake), Halt> {
    let proxy = proxy::choose(attempt)?;
    let target = &attempt.dial.target;
    let (host, port) = proxy.as_ref().map_or((&target.host, target.port), |proxy| (&proxy.host, proxy.port));
    attempt.enter(Phase::Resolve);
    // On the way to the proxy it is the proxy that is not there.
    let of_proxy = |error: ConnectError| match &proxy {
        Some(proxy) => proxy::blame(proxy, error),
        None => error,
    };
    let addresses = resolve::resolve(attempt, host, port).map_err(|halt| halt.map(of_proxy))?;
    let fails = |error: ConnectError| {
        attempt.failed_at(&addresses);
        Err(error.into())
    };
    let mut left = tcp::in_order(attempt, addresses.clone());
    // The failure so far that speaks for the attempt.
    let mut met: Option<ConnectError> = None;
    loop {
        attempt.enter(if proxy.is_some() { Phase::Proxy } else { Phase::Tcp });
        attempt.set_until(attempt.deadline);
        let mut failed = None;
        let (tcp, address) = match tcp::race(attempt, &mut left, &mut failed) {
            Ok(taken) => taken,
            Err(Halt::Failed(error)) => return fails(more_telling(met, of_proxy(error))),
            Err(Halt::Cancelled) => return Err(Halt::Cancelled),
        };
        attempt.address.set(Some(address));
        if let Some(failed) = failed {
            met = Some(more_telling(met.take(), of_proxy(failed)));
        }
        if !left.is_empty() {
            // It gets half of what time is left: one that is mute leaves some to the others, one that is slow has enough.
            let now = Instant::now();
            attempt.set_until(now + attempt.deadline.saturating_duration_since(now) / 2);
        }
        match over(attempt, tcp, proxy.as_ref()) {
            Err(Halt::Failed(error)) => {
                if let Some(wait) = error.retry_after() {
                    attempt.asked_to_wait.borrow_mut().push((address, wait));
                }
                let goes_on = !left.is_empty() && is_this_addresses_own(&error) && may_dial(attempt);
                let error = more_telling(met.take(), error);
                if !goes_on {
                    return fails(error);
                }
                logger::debug!("{address} does not serve: {error}; trying another address");
                met = Some(error);
            }
            result => return result,
        }
    }
}

/// The venue counts a connection to another of its addresses as well.
fn may_dial(attempt: &Attempt<'_>) -> bool {
    attempt.settings.dial_limit.as_ref().is_none_or(|limit| limit.take_one(Instant::now()).is_ok())
}

/// Whether another address of the same host may do better. One server of several may have an old certificate or lack a path.
fn is_this_addresses_own(error: &ConnectError) -> bool {
    match error {
        ConnectError::Timeout { .. } | ConnectError::Lost { .. } | ConnectError::Subprotocol { .. } => true,
        ConnectError::Tls { fault, .. } => fault.is_certificate(),
        ConnectError::Refused(refusal) => {
            (500..600).contains(&refusal.status) || matches!(refusal.status, 401 | 403 | 404)
        }
        _ => false,
    }
}

/// Which of two addresses' failures speaks for the attempt. One that a retry can change comes first, so that a client is not
/// parked while one of its addresses may serve it. Then the earlier: an address that took the connection tells more than one
/// that did not.
fn more_telling(earlier: Option<ConnectError>, later: ConnectError) -> ConnectError {
    earlier.filter(|earlier| earlier.is_retryable() || !later.is_retryable()).unwrap_or(later)
}

/// All that comes after TCP.
fn over(attempt: &Attempt<'_>, tcp: Arc<TcpStream>, proxy: Option<&Server>) -> Result<(Transport, Handshake), Halt> {
    (attempt.register)(&tcp);
    let (settings, target) = (attempt.settings, &attempt.dial.target);
    let to_proxy = proxy.filter(|proxy| proxy.speaks == Speaks::Https);
    let ahead = if target.tls || to_proxy.is_some() { settings.read_buffer } else { 0 };
    let ends = || Ok((tcp.peer_addr()?, tcp.local_addr()?));
    let (peer, local) = ends().map_err(|error: std::io::Error| attempt.broken(&error))?;
    let mut socket = Socket::new(tcp.clone(), ahead);
    if settings.kernel_timestamps {
        socket.ask_for_stamps().map_err(|error| attempt.broken(&error))?;
    }
    let mut wire = match (proxy, to_proxy) {
        (None, _) => on(attempt, socket)?,
        (Some(proxy), None) => {
            attempt.enter(Phase::Proxy);
            let socket = proxy::tunnel(attempt, proxy, socket)?;
            on(attempt, socket)?
        }
        (Some(proxy), Some(_)) => {
            attempt.enter(Phase::Proxy);
            let of_proxy = settings.proxy.as_ref().expect("it was chosen").to_proxy();
            let name = of_proxy.server_name.as_deref().unwrap_or(&proxy.host);
            let below =
                secure(attempt, of_proxy, name, socket).map_err(|halt| halt.map(|error| proxy::blame(proxy, error)))?;
            let below = proxy::tunnel(attempt, proxy, below)?;
            match target.tls {
                true => Wire::encrypted(to_target(attempt, below)?),
                false => Wire::encrypted(below),
            }
        }
    };
    attempt.enter(Phase::Handshake);
    let (tail, accepted) = handshake::upgrade(attempt, &mut wire)?;
    let handshake = Handshake {
        url: target.base_url().into(),
        headers: accepted.headers,
        subprotocol: accepted.subprotocol,
        extensions: accepted.extensions,
        peer,
        local,
        proxy: proxy.map(|proxy| proxy.to_string().into()),
        tls: wire.session().filter(|_| target.tls),
        took: attempt.took(),
    };
    let extensions = accepted.agreed.map_or_else(Extensions::default, |agreed| agreed.for_client(settings));
    let extensions = Extensions { unpack: attempt.unpack.cloned(), ..extensions };
    let (buffer, max_message) = (settings.read_buffer, settings.max_message_size);
    let max_frame = settings.max_frame_size.unwrap_or(usize::MAX);
    let transport = Transport::new(wire, tail, Role::Client, buffer, max_message, max_frame, extensions);
    Ok((if proxy.is_some() { transport.through_a_proxy() } else { transport }, handshake))
}

/// The wire to the target over a bare socket.
fn on(attempt: &Attempt<'_>, socket: Socket) -> Result<Wire, Halt> {
    match attempt.dial.target.tls {
        true => to_target(attempt, socket).map(Wire::encrypted),
        false => Ok(Wire::plain(socket)),
    }
}

fn to_target<L: Layer + 'static>(attempt: &Attempt<'_>, below: L) -> Result<Box<dyn Layer>, Halt> {
    attempt.enter(Phase::Tls);
    let (settings, target) = (attempt.settings, &attempt.dial.target);
    // It is the name of the configuration's own host, not of one that a fallback or a redirect leads to.
    let name = settings.tls.server_name.as_deref().filter(|_| target.is_same_host(&settings.target));
    secure(attempt, &settings.tls, name.unwrap_or(&target.host), below)
}
