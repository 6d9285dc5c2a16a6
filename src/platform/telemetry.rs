//! Metrics, health, logs and traces. Every metric's name, unit, help text and buckets are in
//! `telemetry/metrics.rs` or `telemetry/metrics/gauges.rs`, once.
//!
//! Architecture invariant: nothing here knows who calls.

mod health;
mod laws;
mod log_rate_limiter;
mod logs;
mod metrics;
mod reason;
pub mod spans;
mod traces;

pub use self::health::{Check, DeadLetterRoute, Health, Report};
pub use self::log_rate_limiter::{LogRateLimiter, Suppressed};
pub use self::logs::{
    SUMMARISED, dropped_lines, flush as flush_logs, init as init_logs, seconds, with_priority,
};
pub use self::metrics::{
    BoardLabels, BoardMetrics, BreakerState, Deliveries, InFlight, Instruments, Metrics,
    MetricsError, PlainInsert, PoolUse, QueueDepths, SealMetrics, SealProgress, SessionState,
    Standbys, metrics_wanted,
};
pub use self::reason::Reason;
pub use self::spans::Spans;
pub use self::traces::{Traces, TracesError, traces_on};
