//! A server that says that it ends, in a flood of ours, and goes on reading: what is handed back it does not have, to the
//! record of TLS that was half out.
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;
use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::sync::Arc;

use common::{LONG, bare_tls, eventually, ms, takes};
use parking_lot::Mutex;
use ws_supervisor::*;

/// Bytes that are read before the server's half ends.
const ENOUGH: usize = 100_000;

/// The numbers in masked frames of 126 to 65,535 bytes (RFC 6455 section 5.2), each at its beginning, as far as frames are whole.
fn numbers(bytes: &[u8]) -> Vec<u64> {
    let (mut rest, mut all) = (bytes, vec![]);
    while let [0x81, 0xfe, high, low, mask @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some(body) = mask.get(4..4 + length) else { break };
        let digits: Vec<u8> = body[..10].iter().zip(mask[..4].iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
        all.push(std::str::from_utf8(&digits).unwrap().parse().unwrap());
        rest = &mask[4 + length..];
    }
    all
}

/// A thousand messages at once fill records; one at a time is a record of its own, until one is held up and others join it.
fn half_closed(backend: TlsBackend, burst: usize) {
    const ENDS: usize = 40;
    let has = Arc::new(Mutex::new(HashSet::new()));
    let seen = has.clone();
    let (address, pem) = bare_tls(move |mut stream| {
        let (mut all, mut chunk, mut is_open) = (vec![], [0; 16_384], true);
        stream.sock.set_read_timeout(Some(ms(20))).unwrap();
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => all.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            if is_open && all.len() > ENOUGH {
                is_open = false;
                // Until nothing more fits, and a record of ours is half out.
                takes(ms(30));
                let _ = stream.sock.shutdown(Shutdown::Write);
            }
        }
        seen.lock().extend(numbers(&all));
    });
    let tls = Tls::new().backend(backend).root_certificate(pem);
    let config = ClientConfig::new(format!("wss://{address}/")).unwrap().tls(tls).backoff(ms(1), ms(2));
    let config = config.max_retries(u32::MAX).socket(SocketOptions::new().send_buffer(8_000));
    let client = Client::connect(config).unwrap();
    let (mut number, mut ends, mut handed_back) = (0u64, 0, vec![]);
    eventually("the server ends its half often enough", || {
        for _ in 0..100 * burst {
            // One at a time: each gets the chance to leave by itself.
            if burst == 1 {
                std::thread::yield_now();
            }
            if client.send(format!("{number:010}{}", "x".repeat(700))).is_err() {
                break;
            }
            number += 1;
        }
        for event in client.events().try_iter() {
            if let Event::Disconnected { unsent, .. } = event {
                ends += 1;
                handed_back.extend(unsent.iter().map(|one| one.as_text().unwrap()[..10].parse::<u64>().unwrap()));
            }
        }
        ends >= ENDS
    });
    let _ = client.close();
    // The last of the server's threads has read to its end.
    let mut before = 0;
    eventually("nothing more is read", || {
        std::thread::park_timeout(ms(100));
        let now = has.lock().len();
        std::mem::replace(&mut before, now) == now && now > 0
    });
    assert!(handed_back.len() > ENDS, "{backend:?}: only {} handed back, within {LONG:?}", handed_back.len());
    let has = has.lock();
    let lies: Vec<_> = handed_back.iter().filter(|number| has.contains(number)).collect();
    assert!(
        lies.is_empty(),
        "{backend:?}, {burst} at once: of {} handed back the server has {}: {lies:?}",
        handed_back.len(),
        lies.len()
    );
}

#[test]
fn what_is_handed_back_the_server_does_not_have_over_native_tls() {
    half_closed(TlsBackend::NativeTls, 10);
    half_closed(TlsBackend::NativeTls, 1);
}

#[test]
fn what_is_handed_back_the_server_does_not_have_over_rustls() {
    half_closed(TlsBackend::Rustls, 10);
    half_closed(TlsBackend::Rustls, 1);
}
