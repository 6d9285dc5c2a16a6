//! Facts about the queue that each session finds: logged, and shown in readiness and metrics.

use std::sync::{Arc, Mutex, PoisonError};

use crate::adapters::broker::QueueFacts;
use crate::operator::check::queue;
use crate::platform::config::keys;
use crate::platform::telemetry::Health;

/// Returns an observer of a queue's facts that warns of whatever can lose votes, once each.
pub(super) fn observer(name: String, health: Arc<Health>) -> impl Fn(&QueueFacts) + Send + Sync {
    let logged = Mutex::new(Vec::<String>::new());
    move |facts| {
        let mut findings = queue::of_queue(&name, facts);
        findings.retain(|finding| finding.at_start);
        let unanswered = facts.management_error.iter();
        let unanswered =
            unanswered.map(|error| format!("{}: {error}", keys::RABBITMQ_MANAGEMENT_URL.variable));
        let found = findings.iter().map(|finding| finding.finding.line());
        let warnings: Vec<String> = unanswered.chain(found).collect();
        let mut logged = logged.lock().unwrap_or_else(PoisonError::into_inner);
        for warning in warnings.iter().filter(|warning| !logged.contains(warning)) {
            tracing::warn!(queue = name, "{warning}");
        }
        *logged = warnings;
        let summaries = findings.iter().map(|finding| finding.summary).collect();
        let near = queue::last_returns(facts).is_some();
        health.queue_examined(queue::route(facts), summaries, near);
    }
}
