//! What both sides agree on in the upgrade about compression (RFC 7692 section 7.1): our offer, and the server's answer to it.

use crate::config::compression::Compression;
use crate::config::settings::Settings;
use crate::transport::{Deflate, Extensions, Inflate};

/// What holds for the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreed {
    pub(crate) client_takeover: bool,
    pub(crate) server_takeover: bool,
    pub(crate) client_bits: u8,
    pub(crate) server_bits: u8,
}

/// The value of `Sec-WebSocket-Extensions` in our request, if anything is wanted.
pub(super) fn offer(settings: &Settings) -> Option<String> {
    settings.compression.as_ref().map(offer_of)
}

/// What the server's value of it comes to.
pub(super) fn agree(settings: &Settings, answer: &str) -> Result<Agreed, String> {
    let wanted = settings.compression.as_ref().ok_or("an extension that was not offered")?;
    Agreed::read(answer)?.answers(wanted)
}

fn offer_of(wanted: &Compression) -> String {
    let mut offer = "permessage-deflate".to_owned();
    if !wanted.server_takeover {
        offer += "; server_no_context_takeover";
    }
    if !wanted.client_takeover {
        offer += "; client_no_context_takeover";
    }
    if wanted.server_bits < 15 {
        offer += &format!("; server_max_window_bits={}", wanted.server_bits);
    }
    // Without a value: we take whatever the server asks of us.
    match wanted.client_bits {
        15 => offer + "; client_max_window_bits",
        bits => offer + &format!("; client_max_window_bits={bits}"),
    }
}

impl Agreed {
    /// As the server's answer says it, by itself.
    pub(crate) fn read(answer: &str) -> Result<Self, String> {
        // RFC 9110 section 5.6.1: empty elements of a list count for nothing.
        let mut all = answer.split(',').map(str::trim).filter(|one| !one.is_empty());
        let mut parts = all.next().unwrap_or_default().split(';').map(str::trim);
        if !parts.next().is_some_and(|name| name.eq_ignore_ascii_case("permessage-deflate")) || all.next().is_some() {
            return Err(format!("an extension that was not offered: `{answer}`"));
        }
        let mut agreed = Self { client_takeover: true, server_takeover: true, client_bits: 15, server_bits: 15 };
        let mut seen: Vec<&str> = vec![];
        for part in parts {
            let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
            let (name, value) = (name.trim(), value.map(|value| unquoted(value.trim())));
            if seen.contains(&name) {
                return Err(format!("compression with `{name}` twice"));
            }
            seen.push(name);
            let is_number = |value: &&str| value.bytes().all(|byte| byte.is_ascii_digit()) && !value.starts_with('0');
            let bits = value.filter(is_number);
            let bits = bits.and_then(|bits| bits.parse().ok()).filter(|bits| (8..=15).contains(bits));
            match (name, value, bits) {
                ("server_no_context_takeover", None, _) => agreed.server_takeover = false,
                ("client_no_context_takeover", None, _) => agreed.client_takeover = false,
                ("server_max_window_bits", _, Some(bits)) => agreed.server_bits = bits,
                ("client_max_window_bits", _, Some(bits)) => agreed.client_bits = bits,
                _ => return Err(format!("compression with `{part}`, which means nothing")),
            }
        }
        Ok(agreed)
    }

    /// Whether that is an answer to what was offered.
    fn answers(mut self, wanted: &Compression) -> Result<Self, String> {
        if !wanted.server_takeover && self.server_takeover {
            return Err("compression without `server_no_context_takeover`, which was asked for".into());
        }
        if self.server_bits > wanted.server_bits {
            return Err("compression with a larger `server_max_window_bits` than was asked for".into());
        }
        // Ours may always be less than the server allows.
        self.client_bits = self.client_bits.min(wanted.client_bits);
        self.client_takeover &= wanted.client_takeover;
        Ok(self)
    }

    /// The client's side of it.
    pub(super) fn for_client(&self, settings: &Settings) -> Extensions {
        let Self { client_takeover, server_takeover, client_bits, server_bits } = *self;
        let Compression { level, above, .. } = settings.compression.clone().unwrap_or_default();
        let deflate = Deflate::new(level, client_bits, client_takeover, above).map(Box::new);
        let inflate = Some(Box::new(Inflate::new(server_bits, server_takeover)));
        Extensions { inflate, deflate, ..Extensions::default() }
    }

    /// The server's side of it.
    #[cfg(feature = "testing")]
    pub(crate) fn for_server(&self) -> Extensions {
        let Self { client_takeover, server_takeover, client_bits, server_bits } = *self;
        let deflate = Deflate::new(6, server_bits, server_takeover, 0).map(Box::new);
        let inflate = Some(Box::new(Inflate::new(client_bits, client_takeover)));
        Extensions { inflate, deflate, ..Extensions::default() }
    }
}

/// RFC 6455 section 9.1: a parameter's value is a token, or one in quotes.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_offered() {
        assert_eq!(offer_of(&Compression::deflate()), "permessage-deflate; client_max_window_bits");
        let all = Compression::deflate().server_no_context_takeover().client_no_context_takeover();
        let all = all.server_max_window_bits(10).client_max_window_bits(9);
        assert_eq!(
            offer_of(&all),
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10; \
             client_max_window_bits=9"
        );
    }

    #[test]
    fn an_answer_is_taken_that_fits_the_offer() {
        let plain = Compression::deflate();
        let read = |answer: &str| Agreed::read(answer)?.answers(&plain);
        let whole = Agreed { client_takeover: true, server_takeover: true, client_bits: 15, server_bits: 15 };
        assert_eq!((read("permessage-deflate"), read("permessage-deflate,")), (Ok(whole), Ok(whole)));
        assert_eq!(read("PERMESSAGE-DEFLATE; server_max_window_bits=\"10\" "), Ok(Agreed { server_bits: 10, ..whole }));
        let asked = read("permessage-deflate; client_no_context_takeover; client_max_window_bits=8");
        assert_eq!(asked, Ok(Agreed { client_takeover: false, client_bits: 8, ..whole }));
        assert!(Deflate::new(1, asked.unwrap().client_bits, true, 0).is_none(), "then we compress nothing");
        for wrong in [
            "x-webkit-deflate-frame",
            "permessage-deflate, permessage-deflate",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_max_window_bits=+9",
            "permessage-deflate; server_max_window_bits=\"10",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; level=9",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let small = Compression::deflate().server_max_window_bits(10).server_no_context_takeover();
        for wrong in ["permessage-deflate; server_no_context_takeover", "permessage-deflate; server_max_window_bits=10"]
        {
            assert!(Agreed::read(wrong).unwrap().answers(&small).is_err(), "{wrong}");
        }
    }
}
