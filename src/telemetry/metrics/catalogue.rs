//! Every metric: its name, unit, help text and buckets, once. `docs/metrics.md` shows them to
//! people, and a test holds it against a scrape.
//!
//! The exporter puts `_total` behind counters and the unit behind names, so neither is part of a
//! name here.

/// A metric, as the exporter is told of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    /// In OpenTelemetry's spelling, `s` for seconds; empty for a number of things.
    pub(super) unit: &'static str,
    pub(super) help: &'static str,
}

const fn number(name: &'static str, help: &'static str) -> Entry {
    Entry { name, unit: "", help }
}

const fn seconds(name: &'static str, help: &'static str) -> Entry {
    Entry { name, unit: "s", help }
}

// The contract's five.
pub(super) const VOTES_AGGREGATED: Entry =
    number("votes_aggregated", "Votes added to the totals by this process");
pub(super) const CURRENT_VOTE_TOTALS: Entry =
    number("current_vote_totals", "Votes counted so far, as the database has them");
pub(super) const BATCH_PROCESSING_DURATION: Entry =
    seconds("batch_processing_duration", "Time the last batch took to commit, retries included");
pub(super) const BATCH_SIZE_PROCESSED: Entry = number(
    "batch_size_processed",
    "Votes in committed batches: counted, replays and duplicate attempts",
);
pub(super) const AGGREGATION_ERRORS: Entry =
    number("aggregation_errors", "Errors, by where they come from");

// Votes.
pub(super) const VOTE_LATENCY: Entry =
    seconds("vote_latency", "Time from a vote's publication to the commit of its batch");
pub(super) const VOTES_REJECTED: Entry =
    number("votes_rejected", "Malformed messages rejected without requeue, by reason");
pub(super) const VOTES_REPLAYED: Entry =
    number("votes_replayed", "Deliveries equal to a vote already counted");
pub(super) const DUPLICATE_ATTEMPTS: Entry =
    number("duplicate_attempts", "Deliveries that differ from the counted vote of their vote_hash");
pub(super) const VOTES_ISOLATED: Entry =
    number("votes_isolated", "Votes the database refused, published to the dead-letter queue");
pub(super) const DELIVERIES_REQUEUED: Entry = number(
    "deliveries_requeued",
    "Deliveries taken and given back to the queue unsettled, while no votes can be stored",
);
pub(super) const DELIVERIES_SETTLED: Entry =
    number("deliveries_settled", "Deliveries of which the broker was told what became of them");
pub(super) const DELIVERIES_COMMITTED_UNACKED: Entry = number(
    "deliveries_committed_unacked",
    "Deliveries committed or dead-lettered whose ack could not be sent: they come again, as replays",
);

pub(super) const ACKNOWLEDGED_VOTES_LOST: Entry = number(
    "acknowledged_votes_lost",
    "Batches acknowledged by this process whose votes a failover or a restore of PostgreSQL lost",
);

// Batches.
pub(super) const BATCH_WAIT: Entry = seconds(
    "batch_wait",
    "Time from the arrival of the first vote of a batch until the batch was complete",
);
pub(super) const BATCH_DURATION: Entry =
    seconds("batch_duration", "Time from a complete batch to its commit, retries included");
pub(super) const BATCH_VOTES: Entry = number("batch_votes", "Votes in a committed batch");
pub(super) const BATCH_RETRIES: Entry = number(
    "batch_retries",
    "Transactions tried again, by class of the SQLSTATE; none: the server did not get to say",
);
pub(super) const BATCHES_IN_FLIGHT: Entry =
    number("batches_in_flight", "Batches being committed now, retries and their delays included");
pub(super) const LAST_COMMIT_AGE: Entry = seconds(
    "last_commit_age",
    "Time since the last commit of votes, or since the start while there was none",
);

// RabbitMQ.
pub(super) const SESSION_STATE: Entry =
    number("session_state", "State of the session with RabbitMQ: 1 on the one it is in");
pub(super) const DELIVERIES_UNACKED: Entry =
    number("deliveries_unacked", "Deliveries taken and neither acknowledged nor rejected yet");
pub(super) const OLDEST_UNACKED_AGE: Entry = seconds(
    "oldest_unacked_age",
    "Time since the oldest of the unacknowledged deliveries was taken; 0 without any",
);
pub(super) const QUEUE_MESSAGES: Entry =
    number("queue_messages", "Messages ready in the queue; absent while the broker does not tell");
pub(super) const DEAD_LETTER_QUEUE_MESSAGES: Entry = number(
    "dead_letter_queue_messages",
    "Messages ready in the dead-letter queue; absent while the broker does not tell",
);
pub(super) const DEAD_LETTER_ROUTE: Entry = number(
    "dead_letter_route",
    "Whether the broker keeps rejected messages: 1 on the state it is in",
);
pub(super) const RECONNECTS: Entry = number(
    "reconnects",
    "Times a server that was lost took work again: RabbitMQ a session, PostgreSQL a commit",
);

// PostgreSQL.
pub(super) const BREAKER_STATE: Entry = number(
    "breaker_state",
    "State of the breaker before PostgreSQL: 1 on the one it is in; open: no votes are taken",
);
pub(super) const POSTGRES_CONNECTIONS: Entry =
    number("postgres_connections", "Connections of the pool, by what they do");
pub(super) const POSTGRES_CONNECTIONS_MAX: Entry =
    number("postgres_connections_max", "Connections that the pool may open");
pub(super) const POSTGRES_STANDBYS: Entry = number(
    "postgres_standbys",
    "Standbys connected to PostgreSQL; absent while PostgreSQL does not answer",
);
pub(super) const POSTGRES_SYNCHRONOUS_STANDBY: Entry = number(
    "postgres_synchronous_standby",
    "Whether a commit waits for a standby (1) or not (0); absent while PostgreSQL does not answer",
);

// Reconciliation.
pub(super) const RESULTS_DRIFT_VOTES: Entry = number(
    "results_drift_votes",
    "Votes that vote_results has too many or too few, by law and choice, as last compared with vote_audit",
);
pub(super) const RESULTS_DRIFT_LAWS: Entry = number(
    "results_drift_laws",
    "Laws whose counts in vote_results differ from vote_audit, as last compared",
);
pub(super) const LAST_RECONCILIATION_AGE: Entry = seconds(
    "last_reconciliation_age",
    "Time since vote_results was last compared with vote_audit; absent until it was",
);
pub(super) const RECONCILIATION_INTERVAL: Entry = seconds(
    "reconciliation_interval",
    "Time between two comparisons of vote_results with vote_audit; absent when they are off",
);

pub(super) const LOG_LINES_DROPPED: Entry =
    number("log_lines_dropped", "Log lines dropped because nobody read standard error fast enough");
pub(super) const BUILD_INFO: Entry =
    number("build_info", "Always 1; version and git revision of this program");

/// Seconds, for a transaction: from a batch on an idle disk to one that was retried to the end.
pub(super) const BATCH_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds, from publication to commit: a batch's wait at its shortest, a night's backlog at its
/// longest.
pub(super) const LATENCY_SECONDS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0,
    7_200.0,
];
pub(super) const VOTES: &[f64] =
    &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0, 10_000.0];
