//! Notices when acknowledged votes are no longer in the database (semantics, section 10).

use std::collections::BTreeSet;

use super::Watch;
use crate::adapters::store::{LookUp, LostVotes};
use crate::model::ports::Fault;

/// What the look-ups so far have found.
#[derive(Default)]
pub(super) struct Seen {
    /// The name of this process's alarm.
    alarm: Option<String>,
    /// PostgreSQL's timeline at the last look-up on a primary.
    timeline: i64,
    /// What was missing at the last look-up: counted once for each time that it is lost.
    missing: BTreeSet<String>,
    alarms: Vec<String>,
    /// Whether it was logged that `lost_votes` cannot be used.
    warned: bool,
}

impl Watch {
    /// Looks acknowledged votes up, once, and raises or ends the alarm.
    ///
    /// # Errors
    /// [`Fault`] when the database does not answer, or does not take what was found missing.
    pub(super) async fn look_up_acknowledged(&mut self) -> Result<(), Fault> {
        let remembered = self.acknowledged.remembered();
        let mut hashes: BTreeSet<String> = remembered.hashes.iter().cloned().collect();
        // What could not be recorded is looked up until it is there again.
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
            if !std::mem::replace(&mut self.seen.warned, true) {
                tracing::warn!(
                    "the table lost_votes cannot be used: only this instance would detect that \
                     acknowledged votes were lost, and a restart would lose that information. Run \
                     migrate, then roles.sql"
                );
            }
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

    /// Logs alarms that are new, and shows in the readiness whether there is any.
    fn show(&mut self, found: LookUp) {
        let recorded = found.alarms.is_some();
        let alarms = match found.alarms {
            Some(alarms) => alarms,
            None if found.missing.is_empty() => Vec::new(),
            None => vec![self.alarm()],
        };
        for alarm in alarms.iter().filter(|alarm| !self.seen.alarms.contains(alarm)) {
            let accept = match recorded {
                true => format!("set POSTGRES_ACCEPT_LOST={alarm}"),
                false => "restart this instance".to_owned(),
            };
            tracing::error!(
                alarm,
                batches = found.missing.len(),
                timeline_before = self.seen.timeline,
                timeline_after = found.timeline,
                "acknowledged votes are missing from vote_audit: a failover or a restore of \
                 PostgreSQL lost their commits. Publish the votes of that time again: those that are \
                 there are not counted twice. To continue without them, {accept}"
            );
        }
        if alarms.is_empty() {
            if !self.seen.alarms.is_empty() {
                tracing::info!("no acknowledged votes are missing from vote_audit any more");
                // A later loss is a new alarm, also where this one was accepted.
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
