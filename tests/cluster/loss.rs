//! Asynchronous replication on purpose: a failover to a standby that lagged loses acknowledged votes. That
//! must raise the alarm, and publishing the ledger again must end it.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Confirmation};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::invariants::Verdict;
use crate::messages::fields;
use crate::phase::{Phase, Setup, prepare};
use crate::publisher::Publisher;
use crate::report::Report;
use crate::servers::{HOSTS, address, get};
use crate::{PATIENCE, Result, lock};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
const LOST: &str = "acknowledged_votes_lost_total";

/// Runs it.
///
/// # Errors
/// When the run itself fails; what the service does wrong is in the report.
pub async fn run(setup: Setup) -> Result<Report> {
    let servers = setup.servers;
    let edit =
        ["--force", "--set", "synchronous_mode=off", "--set", "synchronous_mode_strict=false"];
    servers
        .script(&[&["patronictl", "1", "--", "edit-config", "votes"], &edit[..]].concat())
        .await?;
    let phase = prepare(setup).await?;
    let no_more = CancellationToken::new();
    let mut publishing = JoinSet::new();
    publishing.spawn(Publisher::new(phase, no_more.clone()).run());
    let some = phase.setup.rate * 5;
    phase.until("votes are counted", async || phase.rows().await >= some.into()).await?;

    // Both standbys miss what is acknowledged now.
    let primary = servers.primary().await?;
    let standbys = Vec::from_iter(HOSTS.into_iter().filter(|host| *host != primary));
    servers.act("kill", &standbys, &["patroni", "postgres"]).await?;
    let more = phase.rows().await + i64::from(some);
    phase.until("more votes are counted", async || phase.rows().await >= more).await?;
    no_more.cancel();
    while let Some(published) = publishing.join_next().await {
        published??;
    }
    phase.drain().await?;
    let before = phase.rows().await;
    phase.progress("the primary is lost");
    servers.act("kill", &[primary], &["etcd", "patroni", "postgres"]).await?;
    servers.act("start", &standbys, &["patroni"]).await?;
    servers.primary_after(primary).await?;
    servers.act("start", &[primary], &["etcd", "patroni"]).await?;
    let lost = before - phase.rows().await;

    let alarmed = phase.until_all("each instance shows the loss", |status, body| {
        status == 503 && body["checks"]["acknowledged_votes"]["ok"] == false
    });
    let alarmed = alarmed.await;
    let mut noticed = 0.0;
    for member in &phase.members {
        noticed += member.metric(LOST).await.unwrap_or_default();
    }

    phase.progress("the ledger is published again");
    phase.publish_again().await?;
    let drained_after = phase.drain().await?;
    let mended = phase.until_all("each instance is ready again", |status, _| status == 200);
    let mended = mended.await;
    let seconds = phase.began.elapsed().as_secs_f64();
    phase.stop().await?;
    let evidence = phase.evidence(drained_after, Default::default()).await?;
    let ledger = lock(&phase.ledger);
    let mut report = Report::new(phase, seconds, &ledger, &evidence, Vec::new(), Vec::new());
    // No faults, no watch: nothing to say about these.
    let judged = |verdict: &Verdict| {
        ["I1 ", "I2 ", "I3 ", "I4 ", "I6 "].iter().any(|name| verdict.name.starts_with(name))
    };
    report.verdicts.retain(judged);
    let said = |held: Result<()>| {
        held.map_or_else(|error| (false, error.to_string()), |()| (true, String::new()))
    };
    let ((alarmed, why_not), (mended, why_unready)) = (said(alarmed), said(mended));
    report.verdicts.extend([
        Verdict { name: "the failover lost votes", held: lost > 0, detail: format!("{lost} rows") },
        Verdict {
            name: "the alarm is raised",
            held: alarmed && noticed > 0.0,
            detail: format!("{LOST} is {noticed} in all; {why_not}"),
        },
        Verdict { name: "the ledger ends it", held: mended, detail: why_unready },
    ]);
    report.passed = report.verdicts.iter().filter(|verdict| verdict.held).count();
    report.failed = report.verdicts.len() - report.passed;
    Ok(report)
}

impl Phase {
    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            if Instant::now() > deadline {
                return Err(format!("not in {PATIENCE:?}: {what}").into());
            }
            sleep(EVERY).await;
        }
        Ok(())
    }

    /// Waits until the readiness of every instance is so.
    async fn until_all(&self, what: &str, holds: impl Fn(u16, &Value) -> bool) -> Result<()> {
        self.until(what, async || {
            for member in &self.members {
                let answer = get(&address(member.host), member.port, "/readyz").await;
                let Ok((status, body)) = answer else { return false };
                if !holds(status, &serde_json::from_str(&body).unwrap_or_default()) {
                    return false;
                }
            }
            true
        })
        .await
    }

    /// Of the audit, 0 while there is no primary.
    async fn rows(&self) -> i64 {
        let Ok(mut sql) = self.setup.servers.sql(&self.database).await else { return 0 };
        let count = "SELECT count(*) FROM vote_audit";
        sqlx::query_scalar(count).fetch_one(&mut sql).await.unwrap_or_default()
    }

    /// Publishes every vote of the ledger once more.
    async fn publish_again(&self) -> Result<()> {
        let votes: Vec<String> = {
            let ledger = lock(&self.ledger);
            ledger.votes.values().flatten().map(|cast| fields(&cast.vote).to_string()).collect()
        };
        let connection = self.setup.servers.amqp_anywhere().await?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        let mandatory = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        for chunk in votes.chunks(500) {
            let mut confirms = Vec::new();
            for body in chunk {
                let properties = BasicProperties::default().with_delivery_mode(2);
                let publish = channel.basic_publish(
                    "".into(),
                    self.queue.as_str().into(),
                    mandatory,
                    body.as_bytes(),
                    properties,
                );
                confirms.push(publish.await?);
            }
            for confirm in confirms {
                if !matches!(confirm.await?, Confirmation::Ack(None)) {
                    return Err("a vote of the ledger was not confirmed".into());
                }
            }
        }
        Ok(connection.close(200, "OK".into()).await?)
    }
}
