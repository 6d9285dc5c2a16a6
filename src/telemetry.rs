//! What the service tells about itself: metrics, health, logs. Every metric's name, unit, help
//! text and buckets stand in `telemetry/metrics/catalogue.rs`, once.
//!
//! Architecture invariant: nothing here knows who calls.

mod health;
mod laws;
mod logs;
mod metrics;

pub use self::health::{Check, DeadLetterRoute, Health, Report};
pub use self::logs::init as init_logs;
pub use self::metrics::{
    BreakerState, ErrorType, InFlight, Instruments, Metrics, MetricsError, PoolUse, QueueDepths,
    SessionState,
};
