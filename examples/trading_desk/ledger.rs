//! What one client received and accepted, checked against what the exchange plays.

use std::sync::{Arc, Mutex};

use ws_supervisor::{Message, MessageRef};

use crate::exchange::Recording;

#[derive(Clone)]
pub struct Ledger(Arc<Mutex<Inner>>);

struct Inner {
    recording: Option<Recording>,
    /// Position in the recording on the present connection.
    position: usize,
    wrong: u64,
    accepted: u64,
}

impl Ledger {
    pub fn new(recording: Option<Recording>) -> Self {
        Self(Arc::new(Mutex::new(Inner { recording, position: 0, wrong: 0, accepted: 0 })))
    }

    /// A new connection plays from the beginning.
    pub fn opened(&self) {
        self.0.lock().unwrap().position = 0;
    }

    pub fn accepted(&self, messages: u64) {
        self.0.lock().unwrap().accepted += messages;
    }

    pub fn received(&self, message: MessageRef<'_>) {
        let mut inner = self.0.lock().unwrap();
        // Answers to the desk's own requests come between the recorded messages.
        if message.as_text().is_some_and(|text| text.contains(r#""id":"desk:"#)) {
            return;
        }
        let Some(recording) = inner.recording.clone() else { return };
        let expected = recording.get(inner.position).map(|recorded| &recorded.message);
        inner.wrong += u64::from(expected.map(Message::view) != Some(message));
        inner.position += 1;
    }

    /// Messages that were not, byte for byte, the next one recorded.
    pub fn wrong(&self) -> u64 {
        self.0.lock().unwrap().wrong
    }

    /// Messages that the client accepted from us.
    pub fn total_accepted(&self) -> u64 {
        self.0.lock().unwrap().accepted
    }
}
