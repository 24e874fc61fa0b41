//! [`TlsBackend`]: who encrypts.

/// The library that encrypts a `wss://` connection. What can be configured, and what each fault does, is the same.
///
/// ```
/// use ws_supervisor::{ClientConfig, TlsBackend};
///
/// let config = ClientConfig::new("wss://venue.example")?.tls_backend(TlsBackend::Rustls);
/// # let _ = config;
/// # Ok::<(), ws_supervisor::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsBackend {
    /// The system's library, by native-tls: OpenSSL on Linux. Its updates and policies are the system's.
    #[default]
    NativeTls,
    /// rustls, which needs no library of the system's, and takes less than half of OpenSSL 3.0's time for a small record.
    /// It trusts the system's roots; its cryptography is ring's, or what the process has installed as rustls' default
    /// provider. With the feature `rustls`.
    #[cfg(feature = "rustls")]
    #[cfg_attr(docsrs, doc(cfg(feature = "rustls")))]
    Rustls,
}
