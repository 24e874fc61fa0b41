//! TLS by whichever library: what it is to trust and to show, which clients share what was made of that, and what both agree
//! an alert means. Each library has a room of its own.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::attempt::Halt;
use crate::config::tls::{Identity, Tls, are_certificates, identity_fault};
use crate::error::{ConnectError, TlsFault};

/// The same with what is in its files in their place. Clients for which it is equal share what is made of it, whatever the server
/// is called.
pub(super) fn loaded(tls: &Tls) -> Result<Tls, Halt> {
    let mut loaded = Tls { server_name: None, ..tls.clone() };
    for path in std::mem::take(&mut loaded.root_files) {
        let bytes = read(&path)?;
        if !are_certificates(&bytes) {
            return Err(unusable(format!("no certificate, PEM or DER, in {}", path.display())));
        }
        loaded.roots.push(bytes);
    }
    if let Some(Identity::Files { chain, key }) = &tls.identity {
        let (chain_pem, key_pem) = (read(chain)?, read(key)?);
        if let Some(fault) = identity_fault(&chain_pem, &key_pem) {
            return Err(unusable(format!("{}, {}: {fault}", chain.display(), key.display())));
        }
        loaded.identity = Some(Identity::Pem { chain: chain_pem, key: key_pem });
    }
    Ok(loaded)
}

/// What is not `loaded` does not come so far.
pub(super) fn unread() -> Halt {
    unusable("the identity's files were not read".into())
}

fn read(path: &Path) -> Result<Vec<u8>, Halt> {
    fs::read(path).map_err(|error| unusable(format!("cannot read {}: {error}", path.display())))
}

/// Reading the system's roots takes a tenth of a second and a megabyte: once for all clients with the same settings. While one
/// attempt reads them the others with the same settings wait.
pub(super) struct Cache<T> {
    entries: Mutex<Vec<Entry<T>>>,
    changed: Condvar,
}

struct Entry<T> {
    tls: Tls,
    /// `None` while it is being made.
    made: Option<T>,
    used: Instant,
}

/// What was made of files that have been renewed since is dropped when it was not used for so long, where there is more than
/// this of it.
const KEPT_FOR: Duration = Duration::from_secs(3600);
const FEW: usize = 8;

/// How often a waiting attempt looks whether it was cancelled.
const LOOK: Duration = Duration::from_millis(20);

impl<T: Clone> Cache<T> {
    pub(super) const fn new() -> Self {
        Self { entries: Mutex::new(Vec::new()), changed: Condvar::new() }
    }

    /// Returns what was made for `tls`, or makes it. While another attempt makes it, waits for as long as `check` allows.
    pub(super) fn get(
        &self,
        tls: &Tls,
        check: impl Fn() -> Result<(), Halt>,
        make: impl FnOnce() -> Result<T, Halt>,
    ) -> Result<T, Halt> {
        let mut entries = self.entries.lock();
        loop {
            let now = Instant::now();
            match entries.iter_mut().find(|entry| entry.tls == *tls) {
                None => break,
                Some(Entry { made: Some(made), used, .. }) => {
                    *used = now;
                    return Ok(made.clone());
                }
                Some(_) => {}
            }
            let _ = self.changed.wait_until(&mut entries, now + LOOK);
            MutexGuard::unlocked(&mut entries, &check)?;
        }
        let now = Instant::now();
        if entries.len() >= FEW {
            entries.retain(|entry| entry.made.is_none() || now.saturating_duration_since(entry.used) < KEPT_FOR);
        }
        entries.push(Entry { tls: tls.clone(), made: None, used: now });
        drop(entries);
        // Releases the place also when `make` panics.
        let place = Place { cache: self, tls };
        let made = make()?;
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.tls == *tls) {
            entry.made = Some(made.clone());
        }
        drop(entries);
        drop(place);
        Ok(made)
    }

    /// Forgets the roots when the outcome of a handshake speaks against them: the next attempt reads them anew.
    pub(super) fn doubt(&self, tls: &Tls, halt: Halt) -> Halt {
        if let Halt::Failed(ConnectError::Tls { fault: TlsFault::UnknownIssuer | TlsFault::SelfSigned, .. }) = &halt {
            self.entries.lock().retain(|entry| entry.tls != *tls || entry.made.is_none());
        }
        halt
    }
}

/// A place in the cache for what is being made. Dropped, it wakes those that wait, and is gone unless it was filled.
struct Place<'a, T> {
    cache: &'a Cache<T>,
    tls: &'a Tls,
}

impl<T> Drop for Place<'_, T> {
    fn drop(&mut self) {
        self.cache.entries.lock().retain(|entry| entry.tls != *self.tls || entry.made.is_some());
        self.cache.changed.notify_all();
    }
}

/// Before a byte of the upgrade is sent.
#[cfg(feature = "pinning")]
pub(super) fn check_pins(tls: &Tls, certificate: Option<&[u8]>) -> Result<(), Halt> {
    use super::certificate::{describe, matches};
    let presented = certificate.unwrap_or_default();
    if tls.pins.is_empty() || tls.pins.iter().any(|pin| matches(*pin, presented)) {
        return Ok(());
    }
    let message = "its certificate matches none of the pins".into();
    Err(ConnectError::Tls { fault: TlsFault::Pin, message, presented: describe(presented) }.into())
}

#[cfg(not(feature = "pinning"))]
pub(super) fn check_pins(_: &Tls, _: Option<&[u8]>) -> Result<(), Halt> {
    Ok(())
}

pub(super) fn refused(fault: TlsFault, message: impl Into<Box<str>>) -> Halt {
    ConnectError::Tls { fault, message: message.into(), presented: None }.into()
}

/// Something of the configuration's cannot be used.
pub(super) fn unusable(message: String) -> Halt {
    refused(TlsFault::Configuration, message)
}

/// The server's alert, in words.
pub(super) fn alerted(message: String) -> Halt {
    let lower = message.to_ascii_lowercase();
    let fault = if ["certificate", "unknown ca", "access denied"].iter().any(|words| lower.contains(words)) {
        TlsFault::WantsCertificate
    } else if lower.contains("protocol version") {
        TlsFault::Version
    } else {
        TlsFault::RefusedByServer
    };
    let message = if lower.contains("unrecognized name") {
        format!("{message} (it does not serve this host's name)")
    } else {
        message
    };
    refused(fault, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn named(n: u8) -> Tls {
        Tls { roots: vec![vec![n]], ..Tls::default() }
    }

    #[test]
    fn attempts_that_start_together_wait_for_the_one_that_makes_it() {
        const ATTEMPTS: usize = 8;
        let (cache, made, waiting) = (Cache::<usize>::new(), AtomicUsize::new(0), AtomicUsize::new(0));
        let make = || {
            // The others have come before it is done, and each has been asked at least once whether to go on.
            while waiting.load(Ordering::SeqCst) < ATTEMPTS - 1 {
                std::thread::yield_now();
            }
            Ok(made.fetch_add(1, Ordering::SeqCst))
        };
        std::thread::scope(|scope| {
            for _ in 0..ATTEMPTS {
                scope.spawn(|| {
                    let has_counted = std::cell::Cell::new(false);
                    let check = || {
                        if !has_counted.replace(true) {
                            waiting.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok(())
                    };
                    assert_eq!(cache.get(&named(1), check, make).ok(), Some(0));
                });
            }
        });
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_cancelled_attempt_does_not_wait_and_a_failed_one_leaves_the_place_to_the_next() {
        let cache = Cache::<u8>::new();
        let nested = cache.get(
            &named(1),
            || Ok(()),
            || {
                let cancelled = cache.get(&named(1), || Err(Halt::Cancelled), || Ok(1));
                assert!(matches!(cancelled, Err(Halt::Cancelled)));
                Err(unusable("no roots".into()))
            },
        );
        assert!(matches!(nested, Err(Halt::Failed(_))));
        assert_eq!(cache.get(&named(1), || Ok(()), || Ok(2)).ok(), Some(2));
    }

    #[test]
    fn each_of_forty_identities_is_made_once() {
        let (cache, made) = (Cache::<u8>::new(), AtomicUsize::new(0));
        for _ in 0..3 {
            for n in 0..40 {
                let make = || {
                    made.fetch_add(1, Ordering::SeqCst);
                    Ok(n)
                };
                assert_eq!(cache.get(&named(n), || Ok(()), make).ok(), Some(n));
            }
        }
        assert_eq!(made.load(Ordering::SeqCst), 40);
    }

    #[test]
    fn roots_that_a_handshake_speaks_against_are_read_again() {
        let cache = Cache::<u8>::new();
        cache.get(&named(1), || Ok(()), || Ok(1)).ok();
        cache.doubt(&named(1), refused(TlsFault::Expired, "expired"));
        assert_eq!(cache.get(&named(1), || Ok(()), || Ok(2)).ok(), Some(1));
        cache.doubt(&named(1), refused(TlsFault::UnknownIssuer, "unknown issuer"));
        assert_eq!(cache.get(&named(1), || Ok(()), || Ok(2)).ok(), Some(2));
    }
}
