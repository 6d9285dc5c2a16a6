//! Waiting between tries: exponential backoff with jitter from a seeded source, so that a
//! simulated run repeats to the millisecond.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How much a delay may be stretched: up to a quarter on top, never below the nominal delay.
pub const JITTER: f64 = 0.25;

/// A shared source of randomness for delays.
#[derive(Debug)]
pub struct Jitter(Mutex<fastrand::Rng>);

impl Jitter {
    /// A source that repeats: the same seed gives the same delays.
    pub fn seeded(seed: u64) -> Self {
        Self(Mutex::new(fastrand::Rng::with_seed(seed)))
    }

    /// A source that differs from process to process, so that instances which failed together do
    /// not come back together.
    pub fn from_entropy() -> Self {
        Self(Mutex::new(fastrand::Rng::new()))
    }

    /// `delay` plus up to [`JITTER`] of it.
    pub fn stretch(&self, delay: Duration) -> Duration {
        delay + delay.mul_f64(JITTER * self.unit())
    }

    /// A delay drawn evenly from `shortest..longest`.
    pub fn between(&self, shortest: Duration, longest: Duration) -> Duration {
        shortest + longest.saturating_sub(shortest).mul_f64(self.unit())
    }

    fn unit(&self) -> f64 {
        // A panic while the lock was held leaves the generator usable: it has no invariant.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).f64()
    }
}

/// A doubling sequence of nominal delays, `initial`, 2 × `initial`, … never above `cap`.
///
/// Endless; a caller that gives up after some tries takes that many.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    cap: Duration,
    next: Duration,
}

impl Backoff {
    /// A sequence that starts at `initial` and stays at `cap` once it got there.
    pub fn new(initial: Duration, cap: Duration) -> Self {
        Self { initial, cap, next: initial.min(cap) }
    }

    /// The delay before the next try, without jitter.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.cap);
        delay
    }

    /// Starts over: what was waited for has come back.
    pub fn reset(&mut self) {
        self.next = self.initial.min(self.cap);
    }

    /// Jumps to the longest delay: the fault is known to outlast the short ones.
    pub fn jump_to_cap(&mut self) {
        self.next = self.cap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let delays: Vec<u64> = (0..5).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next_delay(), Duration::from_secs(1));
        backoff.jump_to_cap();
        assert_eq!(backoff.next_delay(), Duration::from_secs(5));
        let mut above = Backoff::new(Duration::from_secs(9), Duration::from_secs(5));
        assert_eq!(above.next_delay(), Duration::from_secs(5));
    }

    #[test]
    fn jitter_stays_in_bounds_and_repeats_with_its_seed() {
        let (one, two) = (Jitter::seeded(7), Jitter::seeded(7));
        let nominal = Duration::from_secs(4);
        let mut drawn = Vec::new();
        for _ in 0..1000 {
            let delay = one.stretch(nominal);
            assert!(delay >= nominal && delay <= nominal.mul_f64(1.0 + JITTER));
            assert_eq!(delay, two.stretch(nominal));
            drawn.push(delay);
        }
        drawn.sort();
        assert!(drawn[100] < nominal.mul_f64(1.0 + JITTER / 4.0), "instances spread out");
        assert!(drawn[900] > nominal.mul_f64(1.0 + JITTER * 3.0 / 4.0), "over all of it");
        let drawn = one.between(Duration::from_millis(10), Duration::from_millis(100));
        assert!((10..=100).contains(&drawn.as_millis()));
    }
}
