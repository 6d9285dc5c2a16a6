//! Whether a server was lost since it last worked.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[derive(Debug)]
pub(super) struct Outage {
    /// It worked once: what never did can't be lost.
    known: AtomicBool,
    lost: AtomicBool,
}

impl Outage {
    pub(super) fn of_a_stranger() -> Self {
        Self { known: AtomicBool::new(false), lost: AtomicBool::new(false) }
    }

    pub(super) fn of_a_known_one() -> Self {
        Self { known: AtomicBool::new(true), lost: AtomicBool::new(false) }
    }

    pub(super) fn lost(&self) {
        if self.known.load(Relaxed) {
            self.lost.store(true, Relaxed);
        }
    }

    /// It works; whether that ends an outage.
    pub(super) fn over(&self) -> bool {
        self.known.store(true, Relaxed);
        // A load first: this is asked with every commit, and nearly always for nothing.
        self.lost.load(Relaxed) && self.lost.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_once_and_a_first_connection_ends_none() {
        let outage = Outage::of_a_stranger();
        outage.lost();
        assert!(!outage.over(), "it never worked before");
        outage.lost();
        outage.lost();
        assert!(outage.over());
        assert!(!outage.over());
    }
}
