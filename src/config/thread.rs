//! The options of a client's thread, and the presets.

use std::time::Duration;

use super::ClientConfig;
use crate::policy::idle::IdleStrategy;

impl ClientConfig {
    /// What the worker does when it has nothing to do. Defaults to [`IdleStrategy::Park`].
    pub fn idle_strategy(mut self, idle: IdleStrategy) -> Self {
        self.idle = Some(idle);
        self
    }

    /// Runs the client's thread on this core only, counted from 0. Refused at the start if this process may not use it.
    /// Defaults to wherever the operating system puts it.
    pub fn pin_to(mut self, core: usize) -> Self {
        self.core = Some(core);
        self
    }

    /// Runs the client's thread under the real-time scheduler (`SCHED_FIFO`), 1 to 99, which needs `CAP_SYS_NICE` or an
    /// `RLIMIT_RTPRIO`. Refused at the start where the system does not allow it. With [`IdleStrategy::BusySpin`] such
    /// a thread leaves its core to nobody, so pin it to one that nobody else needs. Defaults to the usual scheduler.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.low_latency(3).real_time_priority(50);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    #[cfg(feature = "real-time")]
    pub fn real_time_priority(mut self, priority: u8) -> Self {
        self.priority = Some(priority);
        self
    }

    /// Asks the kernel when it had each message (Linux, `SO_TIMESTAMPNS`): see [`Message::time_in_socket`] and
    /// [`Stats::time_in_socket`](crate::Stats). Costs a larger system call a read. Refused where the system has no
    /// such timestamps; the first messages of a process may have none, since Linux begins a moment after it is asked.
    /// Defaults to false.
    ///
    /// [`Message::time_in_socket`]: crate::Message::time_in_socket
    ///
    /// ```
    /// # use std::time::Duration;
    /// use ws_supervisor::{Client, ClientConfig, Event};
    ///
    /// # if cfg!(target_os = "linux") {
    /// # let server = ws_supervisor::testing::Server::echo()?;
    /// # let url = server.url();
    /// let client = Client::connect(ClientConfig::new(url)?.kernel_timestamps(true))?;
    /// client.send("an order")?;
    /// for event in client.events() {
    ///     if let Event::Message(answer) = event {
    ///         if let Some(age) = answer.time_in_socket() {
    ///             println!("read {age:?} after it came");
    ///             break;
    ///         }
    ///         client.send("another")?;
    ///     }
    /// }
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "kernel-timestamps")]
    pub fn kernel_timestamps(mut self, asked: bool) -> Self {
        self.kernel_timestamps = asked;
        self
    }

    /// Bytes of the client's thread's stack, all of which your handler and TLS share. Defaults to the standard
    /// library's 2 MiB, of which only what is used takes memory.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.stack_size(256 << 10);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.stack_size = Some(bytes);
        self
    }

    /// How long one turn of the worker's loop, most of it your handler, may take: a longer one is counted in
    /// [`Stats::stalls`](crate::Stats) and, while it lasts, reported as
    /// [`SupervisorEvent::Stalled`](crate::SupervisorEvent). Nothing is read and no heartbeat answered meanwhile.
    /// Defaults to 1 s.
    ///
    /// ```
    /// use std::time::Duration;
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.stall_threshold(Duration::from_millis(5));
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn stall_threshold(mut self, time: Duration) -> Self {
        self.stall_threshold = time;
        self
    }

    /// A preset for the one client that must be fast: [`IdleStrategy::BusySpin`] on a core of its own. What you set
    /// yourself wins.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.low_latency(3);
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn low_latency(mut self, core: usize) -> Self {
        self.presets.own_core = Some(core);
        self
    }

    /// A preset for thousands of quiet clients: small buffers and queues (reads of 4 KiB, 256 events, 64 messages to send)
    /// and a ping every 30 s, unless the venue has a heartbeat of its own. What you set yourself wins.
    ///
    /// ```
    /// use ws_supervisor::ClientConfig;
    /// let config = ClientConfig::new("wss://venue.example")?.many_clients();
    /// # let _ = config;
    /// # Ok::<(), ws_supervisor::ConfigError>(())
    /// ```
    pub fn many_clients(mut self) -> Self {
        self.presets.small = true;
        self
    }
}
