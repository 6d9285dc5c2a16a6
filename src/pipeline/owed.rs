//! Acks that are owed: what is committed comes again if its ack never leaves, and the metrics have to
//! balance all the same.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::telemetry::Instruments;

/// Deliveries whose votes are committed or dead-lettered and that are not acked yet. Those that are
/// still owed when this ends, by a failure, a lost session or a cancelled future, are told to the
/// metrics.
pub(super) struct Owed<'a> {
    deliveries: AtomicU64,
    instruments: &'a Instruments,
}

impl<'a> Owed<'a> {
    pub(super) const fn new(instruments: &'a Instruments) -> Self {
        Self { deliveries: AtomicU64::new(0), instruments }
    }

    pub(super) fn owe(&self, deliveries: u64) {
        self.deliveries.fetch_add(deliveries, Relaxed);
    }

    pub(super) fn paid(&self, deliveries: u64) {
        self.deliveries.fetch_sub(deliveries, Relaxed);
    }

    /// Somebody else owes them from now on.
    pub(super) fn forget(self) {
        self.deliveries.store(0, Relaxed);
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.instruments.committed_unacked(*self.deliveries.get_mut());
    }
}
