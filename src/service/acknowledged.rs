//! Notices when acknowledged votes are no longer in the database (semantics, section 10).

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::adapters::store::{LookUp, LostVotes, PgStore};
use crate::counting::pipeline::Acknowledged;
use crate::model::ports::Fault;
use crate::platform::telemetry::{Health, Instruments};

/// Looks up what was acknowledged, and raises the alarm.
pub(super) struct AcknowledgedWatch {
    pub(super) store: PgStore,
    pub(super) acknowledged: Arc<Acknowledged>,
    pub(super) instruments: Instruments,
    pub(super) health: Arc<Health>,
    /// POSTGRES_ACCEPT_LOST: the alarms that an operator accepted.
    pub(super) accepted: Vec<String>,
    pub(super) seen: Seen,
}

/// What the looks so far have found.
#[derive(Default)]
pub(super) struct Seen {
    /// Names an alarm of this process.
    alarm: Option<String>,
    /// Of the last look at a primary.
    timeline: i64,
    /// What was missing at the last look: counted once for each time that it is lost.
    missing: BTreeSet<String>,
    alarms: Vec<String>,
    /// Whether the log says already that `lost_votes` cannot be used.
    warned: bool,
}

impl AcknowledgedWatch {
    /// Looks once.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer, or does not take what was found missing.
    pub(super) async fn look(&mut self) -> Result<(), Fault> {
        let remembered = self.acknowledged.remembered();
        let mut hashes: BTreeSet<String> = remembered.hashes.iter().cloned().collect();
        // What cannot be recorded is kept in mind until it is there again.
        hashes.extend(self.seen.missing.iter().cloned());
        let Some(mut found) = self.look_up(hashes.into_iter().collect()).await? else {
            return Ok(());
        };
        // Before anything is written: the alert must not depend on a write that may fail.
        let missing: BTreeSet<String> = found.missing.iter().cloned().collect();
        let fresh = missing.difference(&self.seen.missing).count();
        self.instruments.acknowledged_votes_lost(fresh as u64);
        self.seen.missing = missing;
        if found.alarms.is_none() {
            self.warn_once();
        } else if !found.missing.is_empty() {
            self.record(&found).await?;
            if let Some(again) = self.look_up(Vec::new()).await? {
                found.alarms = again.alarms;
            }
        }
        self.acknowledged.looked_up(&remembered);
        self.show(found);
        Ok(())
    }

    fn warn_once(&mut self) {
        if !std::mem::replace(&mut self.seen.warned, true) {
            tracing::warn!(
                "the table lost_votes cannot be used: this instance alone would notice that \
                 acknowledged votes were lost, and forget it at a restart. Run migrate, then roles.sql"
            );
        }
    }

    async fn look_up(&self, hashes: Vec<String>) -> Result<Option<LookUp>, Fault> {
        self.store.look_up(hashes, self.accepted.clone()).await
    }

    async fn record(&mut self, found: &LookUp) -> Result<(), Fault> {
        let lost = LostVotes {
            hashes: found.missing.clone(),
            alarm: self.alarm(),
            accepted: self.accepted.clone(),
            timelines: [self.seen.timeline, found.timeline],
        };
        let recorded = self.store.record_lost(lost).await;
        if let Err(fault) = &recorded {
            tracing::error!(
                batches = found.missing.len(),
                timeline_before = self.seen.timeline,
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
    fn show(&mut self, found: LookUp) {
        let recorded = found.alarms.is_some();
        let alarms = match found.alarms {
            Some(alarms) => alarms,
            None if found.missing.is_empty() => Vec::new(),
            None => vec![self.alarm()],
        };
        for alarm in alarms.iter().filter(|alarm| !self.seen.alarms.contains(alarm)) {
            let way_on = match recorded {
                true => format!("To go on without them, set POSTGRES_ACCEPT_LOST={alarm}"),
                false => "To go on without them, restart this instance".to_owned(),
            };
            tracing::error!(
                alarm,
                batches = found.missing.len(),
                timeline_before = self.seen.timeline,
                timeline_after = found.timeline,
                "acknowledged votes are missing from vote_audit: a failover or a restore of \
                 PostgreSQL lost their commits. Publish the votes of that time again: those that are \
                 there are not counted twice. {way_on}"
            );
        }
        if alarms.is_empty() {
            if !self.seen.alarms.is_empty() {
                tracing::info!("no acknowledged votes are missing from vote_audit any more");
                // A later loss is another one, also for whoever accepted this one.
                self.seen.alarm = None;
            }
            self.health.acknowledged_votes_present();
        } else {
            self.health.acknowledged_votes_lost(&alarms.join(", "));
        }
        self.seen.timeline = found.timeline;
        self.seen.alarms = alarms;
    }

    /// The name of this process's alarm, a new one after each recovery.
    fn alarm(&mut self) -> String {
        self.seen.alarm.get_or_insert_with(|| format!("{:08x}", fastrand::u32(..))).clone()
    }
}
