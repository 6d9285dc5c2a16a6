//! Deliveries that are committed and not acked yet: they are redelivered if their ack is never sent, and
//! the metrics have to balance all the same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::platform::telemetry::Instruments;

/// Deliveries of one session whose votes are committed or dead-lettered and that are not acked yet.
/// What is left when the session ends, by a failure or a cancelled future, goes to the metrics.
pub(super) struct Unacked<'a> {
    deliveries: AtomicU64,
    instruments: &'a Instruments,
}

impl<'a> Unacked<'a> {
    pub(super) const fn new(instruments: &'a Instruments) -> Self {
        Self { deliveries: AtomicU64::new(0), instruments }
    }

    pub(super) fn add(&self, deliveries: usize) {
        self.deliveries.fetch_add(deliveries as u64, Relaxed);
    }

    pub(super) fn acked(&self, deliveries: u64) {
        self.deliveries.fetch_sub(deliveries, Relaxed);
    }
}

impl Drop for Unacked<'_> {
    fn drop(&mut self) {
        self.instruments.committed_unacked(*self.deliveries.get_mut());
    }
}
