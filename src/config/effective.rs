//! And back: what a client's configuration came to, as a file would have it, without its secrets.

use serde_json::{Value, json};

use super::file::ClientFile;
use super::file_connecting::{IdentityFiles, ProxyFile, SocketFile, TlsFile};
use super::file_parts::{Backoff, HeartbeatFile, HeartbeatFileKind, Idle, Time};
use super::settings::Settings;
use super::tls::Identity;
use crate::policy::heartbeat::{Heartbeat, HeartbeatKind};
use crate::policy::idle::IdleStrategy;
use crate::state::Tag;

const SECRET: &str = "[redacted]";

/// Every option with the value that it has. What is code of the caller's is told in words.
pub(crate) fn effective(tag: &Tag, settings: &Settings) -> Value {
    let reconnect = &settings.reconnect;
    let idle = match settings.idle {
        IdleStrategy::Park => Idle::Park,
        IdleStrategy::BusySpin => Idle::BusySpin,
        IdleStrategy::Backoff { spins, yields } => Idle::Backoff { spins, yields },
    };
    let tls = &settings.tls;
    let file = ClientFile {
        // Path and query may hold a key.
        url: Some(settings.target.to_string()),
        name: Some(tag.name.to_string()),
        fallback_url: settings.fallbacks.iter().map(ToString::to_string).collect(),
        header: settings.headers.iter().map(|header| (header.name.to_string(), SECRET.to_owned())).collect(),
        subprotocol: settings.subprotocols.clone(),
        subprotocol_choice: Some(settings.subprotocol_choice),
        host_header: settings.host.clone(),
        without_user_agent: !settings.user_agent,
        redirects: Some(settings.redirects),
        certificate_retry: settings.certificate_retry.map(Time),
        tls: Some(TlsFile {
            backend: Some(tls.backend),
            root_certificate: tls.roots.iter().map(|root| format!("[{} bytes]", root.len())).collect(),
            root_file: tls.root_files.clone(),
            without_system_roots: tls.only_own_roots,
            identity_files: match &tls.identity {
                Some(Identity::Files { chain, key }) => Some(IdentityFiles { chain: chain.clone(), key: key.clone() }),
                _ => None,
            },
            min_version: tls.versions.0,
            max_version: tls.versions.1,
            server_name: tls.server_name.clone(),
            without_sni: tls.hides_name,
            alpn: tls.alpn.clone(),
            danger_accept_invalid_certificates: tls.accepts_any_certificate,
            danger_accept_invalid_hostnames: tls.accepts_any_name,
            ..TlsFile::default()
        }),
        proxy: settings.proxy.as_ref().map(|proxy| ProxyFile {
            url: proxy.shown(),
            from_environment: proxy.shown().is_none(),
            ..ProxyFile::default()
        }),
        socket: Some(SocketFile::of(&settings.socket)),
        connect_timeout: Some(Time(settings.connect_timeout)),
        tcp_nodelay: Some(settings.nodelay),
        restart: Some(settings.restart),
        heartbeat: Some(heartbeat(&settings.heartbeat)),
        stale_after: settings.stale.after.map(Time),
        stale_channel_after: settings.stale.channel_after.map(Time),
        stale_action: Some(settings.stale.action),
        park_on: Some(settings.park_on.clone()),
        park_on_close: Some(settings.park_on_close.clone()),
        max_retries: Some(reconnect.max_retries),
        backoff: Some(Backoff { base: Time(reconnect.base), cap: Time(reconnect.cap) }),
        jitter: Some(reconnect.jitter),
        stable_after: Some(Time(reconnect.stable_after)),
        close_timeout: Some(Time(settings.close_timeout)),
        overflow: Some(settings.overflow),
        event_capacity: Some(settings.event_capacity),
        event_bytes: Some(settings.event_bytes),
        send_capacity: Some(settings.send_capacity),
        send_bytes: Some(settings.send_bytes),
        queue_while_disconnected: Some(settings.queue_while_disconnected),
        max_message_size: Some(settings.max_message_size),
        max_frame_size: settings.max_frame_size,
        read_buffer: Some(settings.read_buffer),
        subscribe: settings.channels.iter().map(ToString::to_string).collect(),
        request_timeout: Some(Time(settings.request_timeout)),
        max_age: settings.max_age.map(Time),
        idle_strategy: Some(idle),
        pin_to: settings.core,
        #[cfg(feature = "real-time")]
        real_time_priority: settings.priority,
        #[cfg(feature = "kernel-timestamps")]
        kernel_timestamps: Some(settings.kernel_timestamps),
        stack_size: settings.stack_size,
        stall_threshold: Some(Time(settings.stall_threshold)),
        ..ClientFile::default()
    };
    let mut value = serde_json::to_value(file).unwrap_or_default();
    value["venue"] = json!(&*tag.venue);
    value["rate_limit"] = settings.limits.iter().map(|limit| format!("{limit:?}")).collect();
    #[cfg(feature = "compression")]
    {
        value["compression"] = json!(settings.compression.is_some());
    }
    value
}

fn heartbeat(heartbeat: &Heartbeat) -> HeartbeatFile {
    let interval = heartbeat.interval().map(Time);
    let kind = match heartbeat.kind() {
        HeartbeatKind::Disabled => HeartbeatFileKind::Disabled,
        HeartbeatKind::PingPong => HeartbeatFileKind::PingPong,
        HeartbeatKind::ServerPing => HeartbeatFileKind::ServerPing,
        #[cfg(feature = "deribit")]
        HeartbeatKind::Deribit => HeartbeatFileKind::Deribit,
        HeartbeatKind::Message => HeartbeatFileKind::Message,
        _ => HeartbeatFileKind::Expect,
    };
    let is_silence = matches!(kind, HeartbeatFileKind::ServerPing | HeartbeatFileKind::Expect);
    HeartbeatFile {
        kind,
        interval: interval.filter(|_| !is_silence),
        max_silence: interval.filter(|_| is_silence),
        max_missed: Some(heartbeat.most_missed()),
        ..HeartbeatFile::default()
    }
}
