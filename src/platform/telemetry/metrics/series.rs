//! The counters and histograms: name, help text, unit and buckets of each, once.
//!
//! The exporter puts `_total` behind counters and the unit behind names, so neither is part of a name.

use strum::{EnumMessage, IntoStaticStr, VariantArray};

/// Seconds, for a transaction: from a batch on an idle disk to one that was retried to the end.
const BATCH_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds, from publication to commit: a batch's wait at its shortest, a night's backlog at its
/// longest.
const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
    7_200.0,
];
const VOTES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0];

/// The counters. A variant's name is the metric's, its documentation is the help text.
#[derive(Clone, Copy, PartialEq, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Count {
    /// Votes added to the totals by this process
    VotesAggregated,
    /// Votes in committed batches: counted, replays and duplicate attempts
    BatchSizeProcessed,
    /// Errors, by source
    AggregationErrors,
    /// Malformed messages rejected without requeue, by reason
    VotesRejected,
    /// Deliveries equal to a vote already counted
    VotesReplayed,
    /// Deliveries that differ from the counted vote of their vote_hash
    DuplicateAttempts,
    /// Votes the database refused, published to the dead-letter queue
    VotesIsolated,
    /// Deliveries requeued unsettled while no votes can be stored
    DeliveriesRequeued,
    /// Deliveries acknowledged or rejected, by outcome
    DeliveriesSettled,
    /// Deliveries committed or dead-lettered whose ack could not be sent: redelivered as replays
    DeliveriesCommittedUnacked,
    /// Batches acknowledged by this process whose votes a failover or a restore of PostgreSQL lost
    AcknowledgedVotesLost,
    /// Transactions retried, by class of the SQLSTATE; none: no answer
    BatchRetries,
    /// Batches inserted without ON CONFLICT, by outcome; conflict: repeated with it
    PlainInserts,
    /// Reconnects by server: RabbitMQ a new session, PostgreSQL the first commit after an outage
    Reconnects,
    /// Sessions that RabbitMQ ended because a delivery was held for longer than its consumer time-out
    ConsumerTimeouts,
}

/// The histograms, named and documented as [`Count`].
#[derive(Clone, Copy, EnumMessage, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(super) enum Measure {
    /// Time from a vote's publication to the commit of its batch
    VoteLatency,
    /// Time from the arrival of the first vote of a batch until the batch was complete
    BatchWait,
    /// Time from a complete batch to its commit, retries included
    BatchDuration,
    /// Votes in a committed batch
    BatchVotes,
}

impl Measure {
    pub(super) const fn unit_and_buckets(self) -> (&'static str, &'static [f64]) {
        match self {
            Self::VoteLatency => ("s", LATENCY_SECONDS),
            Self::BatchWait | Self::BatchDuration => ("s", BATCH_SECONDS),
            Self::BatchVotes => ("", VOTES),
        }
    }
}

/// The help text of a metric.
pub(super) fn help(metric: &impl EnumMessage) -> &'static str {
    metric.get_documentation().unwrap_or_default()
}
