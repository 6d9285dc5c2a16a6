//! Whether a server was lost since it last worked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Losses that were known when something was asked of the server: only what is asked after a loss
/// can tell that the server is back.
#[derive(Clone, Copy, Debug)]
pub struct Losses(u64);

#[derive(Debug)]
pub(super) struct Outage {
    /// It worked once: what never did can't be lost.
    known: AtomicBool,
    lost: AtomicU64,
    /// Losses that are made up for.
    recovered: AtomicU64,
}

impl Outage {
    pub(super) const fn of_a_stranger() -> Self {
        Self::new(false)
    }

    pub(super) const fn of_a_known_one() -> Self {
        Self::new(true)
    }

    const fn new(known: bool) -> Self {
        Self {
            known: AtomicBool::new(known),
            lost: AtomicU64::new(0),
            recovered: AtomicU64::new(0),
        }
    }

    /// Something is about to be asked of it.
    pub(super) fn ask(&self) -> Losses {
        Losses(self.lost.load(Relaxed))
    }

    pub(super) fn lost(&self) {
        if self.known.load(Relaxed) {
            self.lost.fetch_add(1, Relaxed);
        }
    }

    /// It answered what was asked after `losses`; whether that ends an outage.
    pub(super) fn over(&self, Losses(losses): Losses) -> bool {
        self.known.store(true, Relaxed);
        // A load first: this is asked with every commit, and nearly always for nothing.
        losses > self.recovered.load(Relaxed) && losses > self.recovered.fetch_max(losses, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_once_and_a_first_connection_ends_none() {
        let outage = Outage::of_a_stranger();
        outage.lost();
        assert!(!outage.over(outage.ask()), "it never worked before");
        outage.lost();
        outage.lost();
        assert!(outage.over(outage.ask()));
        assert!(!outage.over(outage.ask()));
    }

    /// A server that shuts down ends its connections one by one, and the reply to a commit may be
    /// read after the loss of another connection was.
    #[test]
    fn what_was_asked_before_the_loss_ends_no_outage() {
        let outage = Outage::of_a_known_one();
        let under_way = outage.ask();
        outage.lost();
        assert!(!outage.over(under_way));
        assert!(outage.over(outage.ask()));
    }
}
