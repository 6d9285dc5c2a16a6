//! What the service tells about itself: metrics, health, logs. Every metric's name, unit and help
//! text stands in `telemetry/metrics.rs`, once.
//!
//! Architecture invariant: nothing here knows who calls.

mod health;
mod laws;
mod logs;
mod metrics;
mod repeats;

pub use self::health::{Check, DeadLetterRoute, Health, Report};
pub use self::logs::init as init_logs;
pub use self::metrics::{ErrorType, Instruments, Metrics, MetricsError};
pub use self::repeats::{Repeats, Suppressed};
