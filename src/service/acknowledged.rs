//! Notices when acknowledged votes are no longer in the database (semantics, section 10).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::pipeline::Acknowledged;
use crate::ports::Fault;
use crate::store::{LookUp, LostVotes, PgStore};
use crate::telemetry::{Health, Instruments};

/// Looks up what was acknowledged, and raises the alarm.
pub(super) struct AcknowledgedWatch {
    store: PgStore,
    acknowledged: Arc<Acknowledged>,
    instruments: Instruments,
    health: Arc<Health>,
    /// POSTGRES_ACCEPT_LOST: the alarms that an operator accepted.
    accepted: Vec<String>,
    /// Of the last look at a primary.
    timeline: i64,
    /// What was missing at the last look: counted once for each time that it is lost.
    missing: BTreeSet<String>,
    alarms: Vec<String>,
}

impl AcknowledgedWatch {
    pub(super) fn new(
        store: PgStore,
        acknowledged: Arc<Acknowledged>,
        instruments: Instruments,
        health: Arc<Health>,
        accepted: Vec<String>,
    ) -> Self {
        Self {
            store,
            acknowledged,
            instruments,
            health,
            accepted,
            timeline: 0,
            missing: BTreeSet::new(),
            alarms: Vec::new(),
        }
    }

    /// Looks once.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer, or does not take what was found missing.
    pub(super) async fn look(&mut self) -> Result<(), Fault> {
        let remembered = self.acknowledged.remembered();
        let Some(mut found) = self.look_up(remembered.hashes.clone()).await? else {
            return Ok(());
        };
        // Before anything is written: the alert must not depend on a write that may fail.
        let missing: BTreeSet<String> = found.missing.iter().cloned().collect();
        let fresh = missing.difference(&self.missing).count();
        self.instruments.acknowledged_votes_lost(fresh as u64);
        self.missing = missing;
        if !found.missing.is_empty() {
            self.record(&found).await?;
            if let Some(again) = self.look_up(Vec::new()).await? {
                found.alarms = again.alarms;
            }
        }
        self.acknowledged.looked_up(&remembered);
        self.show(&found);
        self.timeline = found.timeline;
        self.alarms = found.alarms;
        Ok(())
    }

    async fn look_up(&self, hashes: Vec<String>) -> Result<Option<LookUp>, Fault> {
        self.store.look_up(hashes, self.accepted.clone()).await
    }

    async fn record(&self, found: &LookUp) -> Result<(), Fault> {
        let lost = LostVotes {
            hashes: found.missing.clone(),
            alarm: format!("{:08x}", fastrand::u32(..)),
            accepted: self.accepted.clone(),
            timelines: [self.timeline, found.timeline],
        };
        let recorded = self.store.record_lost(lost).await;
        if let Err(fault) = &recorded {
            tracing::error!(
                batches = found.missing.len(),
                timeline_before = self.timeline,
                timeline_after = found.timeline,
                sqlstate = fault.sqlstate,
                "acknowledged votes are missing from vote_audit, and lost_votes cannot be written: \
                 {fault}"
            );
            self.health.acknowledged_votes_lost("(not recorded)");
        }
        recorded
    }

    /// Logs alarms that are new, and says in the readiness whether there is any.
    fn show(&self, found: &LookUp) {
        for alarm in found.alarms.iter().filter(|alarm| !self.alarms.contains(alarm)) {
            tracing::error!(
                alarm,
                batches = found.missing.len(),
                timeline_before = self.timeline,
                timeline_after = found.timeline,
                "acknowledged votes are missing from vote_audit: a failover or a restore of \
                 PostgreSQL lost their commits. Publish the votes of that time again: those that are \
                 there are not counted twice. To go on without them, set \
                 POSTGRES_ACCEPT_LOST={alarm}"
            );
        }
        if found.alarms.is_empty() {
            if !self.alarms.is_empty() {
                tracing::info!("no acknowledged votes are missing from vote_audit any more");
            }
            self.health.acknowledged_votes_present();
        } else {
            self.health.acknowledged_votes_lost(&found.alarms.join(", "));
        }
    }
}
