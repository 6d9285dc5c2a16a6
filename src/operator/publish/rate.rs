//! Sending evenly.

use std::time::Duration;

use tokio::time::Instant;

/// An even rate: message n is due n ÷ rate seconds after the first.
pub(crate) struct Rate {
    began: Instant,
    each: Duration,
    sent: u32,
}

impl Rate {
    pub(crate) fn new(rate: u32) -> Self {
        let each = Duration::from_secs(1) / rate.max(1);
        Self { began: Instant::now(), each, sent: 0 }
    }

    /// Waits until the next message is due. May be dropped half-way.
    pub(crate) async fn due(&self) {
        tokio::time::sleep_until(self.began + self.each * self.sent).await;
    }

    /// Notes that one was sent.
    pub(crate) const fn sent(&mut self) {
        self.sent = self.sent.saturating_add(1);
    }
}
