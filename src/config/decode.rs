//! [`Decode`]: payloads that a venue packs by itself, beneath the protocol's own compression.

use std::fmt;
#[cfg(feature = "compression")]
use std::io::Read;
use std::sync::Arc;

use crate::transport::Unpack;

/// How binary messages are unpacked before anyone sees them, heartbeats and answers to requests among them. On the client's
/// thread; what comes out is bounded by [`max_message_size`](crate::ClientConfig::max_message_size), and is a text message if
/// it is UTF-8, a binary one otherwise. Text messages are left as they are. What can't be unpacked ends the connection
/// ([`DisconnectReason::Protocol`](crate::DisconnectReason), with the error's text, and close code 1007 for the server), and a
/// reconnect follows as for any other.
///
/// ```
/// use ws_supervisor::{ClientConfig, Decode};
///
/// // A venue that sends everything with a byte of its own in front.
/// let strip = Decode::by(|bytes, out| match bytes {
///     [0, payload @ ..] => {
///         out.extend_from_slice(payload);
///         Ok(())
///     }
///     _ => Err("not version 0"),
/// });
/// let config = ClientConfig::new("wss://venue.example/ws")?.decode(strip);
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Decode(pub(crate) Arc<Unpack>);

impl Decode {
    /// By a function of yours, which appends to the empty vector that it is given; how much that is, is looked at when it
    /// returns. The error's text is logged, so let it quote no payload. A panic in it counts as a crash of the client.
    pub fn by<E: fmt::Display>(unpack: impl Fn(&[u8], &mut Vec<u8>) -> Result<(), E> + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |bytes, _, out| Ok(unpack(bytes, out).map_err(|error| error.to_string())?)))
    }

    /// gzip (RFC 1952), of one member or several: HTX, BingX.
    ///
    /// ```
    /// use ws_supervisor::{ClientConfig, Decode};
    /// let htx = ClientConfig::new("wss://api.huobi.pro/ws")?.decode(Decode::gzip());
    /// # let _ = htx;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    #[cfg(feature = "compression")]
    #[cfg_attr(docsrs, doc(cfg(feature = "compression")))]
    pub fn gzip() -> Self {
        Self(Arc::new(|bytes, limit, out| read_up_to(flate2::bufread::MultiGzDecoder::new(bytes), limit, out)))
    }

    /// Deflate without a header (RFC 1951): OKX's older streams.
    ///
    /// ```
    /// # use ws_supervisor::Decode;
    /// let okx = Decode::deflate_raw();
    /// # let _ = okx;
    /// ```
    #[cfg(feature = "compression")]
    #[cfg_attr(docsrs, doc(cfg(feature = "compression")))]
    pub fn deflate_raw() -> Self {
        Self(Arc::new(|bytes, limit, out| {
            let mut reader = flate2::bufread::DeflateDecoder::new(bytes);
            read_up_to(&mut reader, limit, out)?;
            let is_all = reader.into_inner().is_empty() || out.len() > limit;
            if is_all { Ok(()) } else { Err("something follows the end of the stream".into()) }
        }))
    }
}

/// One byte more than the limit is enough to be too much.
#[cfg(feature = "compression")]
fn read_up_to(reader: impl Read, limit: usize, out: &mut Vec<u8>) -> Result<(), Box<str>> {
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    reader.take(most).read_to_end(out).map(drop).map_err(|error| error.to_string().into())
}

impl fmt::Debug for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decode")
    }
}
