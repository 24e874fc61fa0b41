//! The orderly end of a connection: what was accepted goes out, then a close frame, then what the server still sends is
//! read until its own.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::reading::Came;
use super::run::Run;
use crate::deadline::later;
use crate::message::CloseFrame;
use crate::outbound::gate::Pass;
use crate::overflow::Stage;
use crate::policy::connection::Connection;
use crate::state::ReadyState;
use crate::transport::{Broken, HANG_UP, SLICE, wait};

/// Share of the time until a close's limit after which the close frames must have been exchanged. The rest is for the thread to
/// end before its caller gives up on it.
const EXCHANGED: f64 = 0.75;

/// Share of that time in which requests under way may be answered: a server that has read our close frame answers nothing more.
/// Less than the share in which received messages are still delivered (`HEARD`), so that those that follow are.
const ANSWERED: f64 = 0.4;

/// The time from now on, if all has to be over at `limit`.
fn share_until(limit: Instant, share: f64) -> Instant {
    let now = Instant::now();
    now + limit.saturating_duration_since(now).mul_f64(share)
}

/// How long the server is waited for.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// All is over by then.
    pub(super) limit: Instant,
    /// Another connection follows: the reader is waited for too.
    pub(super) goes_on: bool,
    /// And for no longer than this after the peer's kernel last took something of ours.
    pub(super) without_progress: Option<Duration>,
    /// Requests under way are waited for before the close frame is sent.
    pub(super) awaits_answers: bool,
}

impl Run<'_> {
    /// Closing handshake (RFC 6455 section 7.1.2): writes what was accepted, waits for the responses to requests under way,
    /// sends a close frame and reads until the server's. Heartbeats and responses are handled as before.
    pub(super) fn close(&mut self, tcp: &TcpStream, connection: &mut Connection, patience: Patience) {
        // What it was told before is heard, and what it sends for that is sent.
        self.deliver_pending();
        self.run_handler_commands();
        self.deliver_held();
        match self.close_until_broken(tcp, connection, patience) {
            Ok(()) => {
                self.begin_over();
                self.hear_what_is_there(connection);
            }
            Err(broken) => drop(self.last_words(connection, broken)),
        }
        self.consumer.flush();
        self.end_turn(Instant::now());
    }

    fn close_until_broken(
        &mut self,
        tcp: &TcpStream,
        connection: &mut Connection,
        patience: Patience,
    ) -> Result<(), Broken> {
        let core = self.core;
        let Patience { mut limit, goes_on, without_progress, awaits_answers } = patience;
        let mut deadline = share_until(limit, EXCHANGED);
        let mut answers_by = awaits_answers.then(|| share_until(limit, ANSWERED));
        let (mut taken, mut progress_by) =
            (self.taken_by_peer(), without_progress.map(|time| later(Instant::now(), time)));
        // The state first: a client that says it is open refuses no message as not open.
        core.status.set(ReadyState::Closing);
        core.mailbox.gate.close(Pass::Queue);
        self.closing = true;
        let mut asked = false;
        loop {
            let now = Instant::now();
            if now >= deadline {
                return Ok(());
            }
            if progress_by.is_some_and(|by| now >= by) {
                let before = std::mem::replace(&mut taken, self.taken_by_peer());
                if taken == before {
                    return Ok(());
                }
                progress_by = without_progress.map(|time| later(now, time));
            }
            // A shutdown may have less patience than what we began with.
            if let Some(later) = core.commands.standing().filter(|later| later.deadline < limit) {
                limit = later.deadline;
                deadline = share_until(limit, EXCHANGED);
                answers_by = answers_by.map(|by| by.min(share_until(limit, ANSWERED)));
            }
            self.expire_requests(connection)?;
            self.deliver_pending();
            self.run_handler_commands();
            self.fire_timers(now);
            if !asked {
                self.link.take(&core.mailbox.source.queue);
            }
            let written = if asked { self.flush()? } else { self.write_out()? };
            // What the rate limits do not let out in time is handed back.
            let limited_until = self.link.outbox.limited_until();
            let written = written || limited_until.is_some_and(|until| until >= deadline);
            if written && !asked {
                if limited_until.is_none() && !core.mailbox.source.queue.is_empty() {
                    continue;
                }
                answers_by = answers_by.filter(|by| now < *by && core.asked.awaits_answers());
                if answers_by.is_none() {
                    asked = true;
                    self.ask_to_close()?;
                }
            }
            let is_paused = goes_on && !self.consumer.has_room_to_read();
            let take = |run: &mut Self| run.deliver_read(Stage::Closing);
            if !is_paused && self.read_next(connection, take)? != Came::Nothing {
                continue;
            }
            let now = Instant::now();
            self.end_turn(now);
            let hand_over = self.consumer.hand_over(now, is_paused);
            let Some(transport) = &mut self.link.transport else { return Ok(()) };
            let interest = match (is_paused, transport.wants_to_write()) {
                (false, _) => transport.interest(),
                (true, true) => PollFlags::OUT | HANG_UP,
                (true, false) => HANG_UP,
            };
            let due = [limited_until, core.asked.due(), hand_over, self.consumer.next_timer(), progress_by, answers_by];
            let until = due.into_iter().flatten().fold(deadline, Instant::min);
            match wait(Some((tcp.as_fd(), interest)), &core.mailbox.wake, Some(until), || core.has_told()) {
                // All that it still has to say is there.
                Ok(waited) if is_paused && waited.hung_up => return Ok(()),
                Ok(waited) if waited.socket => transport.refresh(),
                Ok(_) => {}
                Err(_) => return Ok(()),
            }
        }
    }

    /// Rises while the peer takes something of ours.
    fn taken_by_peer(&self) -> u64 {
        self.link.transport.as_ref().map_or(0, |transport| transport.written() + transport.acknowledged().unwrap_or(0))
    }

    /// A close frame, after which nothing goes out.
    fn ask_to_close(&mut self) -> Result<(), Broken> {
        self.link.only_read_from_now_on();
        let frame = CloseFrame { code: CloseFrame::NORMAL, reason: "".into() };
        let frame = self.core.close_frame.lock().clone().filter(|_| self.core.commands.close_given()).unwrap_or(frame);
        let Some(transport) = &mut self.link.transport else { return Ok(()) };
        self.core.tap().iter().for_each(|tap| tap.close(Some(&frame), true));
        transport.close(frame)
    }

    /// What is left of the close frame.
    fn flush(&mut self) -> Result<bool, Broken> {
        self.link.transport.as_mut().map_or(Ok(true), |transport| transport.flush(SLICE))
    }

    /// Whoever waits for an answer is told when its time is up, also now.
    fn expire_requests(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        let now = Instant::now();
        connection.expire(now, true, self.core, &mut self.actions);
        self.carry_out(connection)
    }
}
