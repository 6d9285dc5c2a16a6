//! What was acknowledged, compared with the audit, while no instance runs: a vote that the broker confirmed
//! is then in the queue, or it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::select_all;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicNackOptions};
use lapin::types::{FieldTable, ShortString};
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use vote_aggregator::model::vote::decode;

use crate::phase::Phase;
use crate::tables::{RECOUNT, RESULTS, totals};
use crate::{PATIENCE, Result, lock};

/// The service's default, which no instance changes.
const MAX_MESSAGE_BYTES: usize = 16_384;
/// What a quorum queue delivers to one consumer without a prefetch, at most.
const PER_CONSUMER: u32 = 2_000;

#[derive(Clone, Debug, Serialize)]
pub struct Census {
    /// The fault before it.
    pub after: String,
    pub confirmed: usize,
    pub in_queue: usize,
    pub in_audit: usize,
    /// Confirmed, and neither in the queue nor in the audit: acknowledged and lost.
    pub lost: Vec<String>,
    /// Laws whose totals are not those of their audit rows.
    pub differing: usize,
    /// What RabbitMQ lists as consumers although every connection is closed.
    pub stale_consumers: Option<String>,
}

impl Phase {
    /// Kills every instance, looks, and lets them start again.
    pub async fn census(&self, after: &str) -> Result<Census> {
        let confirmed: Vec<String> = {
            let ledger = lock(&self.ledger);
            let confirmed = ledger.votes.iter();
            let confirmed = confirmed.filter(|(_, casts)| casts.iter().any(|cast| cast.confirmed));
            confirmed.map(|(hash, _)| hash.clone()).collect()
        };
        let mut held = Vec::new();
        for member in &self.members {
            held.push(member.instance.hold_down().await?);
        }
        let stale_consumers = self.until_no_consumer().await?;
        let in_queue = timeout(2 * PATIENCE, self.in_queue()).await??;
        let mut sql =
            self.setup.servers.sql_on(self.setup.servers.primary().await?, &self.database).await?;
        let hashes: Vec<String> =
            sqlx::query_scalar("SELECT vote_hash FROM vote_audit").fetch_all(&mut sql).await?;
        let audit = BTreeSet::from_iter(hashes);
        let [results, recounted]: [BTreeMap<_, _>; 2] =
            [totals(&mut sql, RESULTS).await?, totals(&mut sql, RECOUNT).await?];
        drop(held);

        let is_lost = |hash: &String| !audit.contains(hash) && !in_queue.contains(hash);
        let laws: BTreeSet<_> = results.keys().chain(recounted.keys()).collect();
        Ok(Census {
            after: after.to_owned(),
            confirmed: confirmed.len(),
            in_queue: in_queue.len(),
            in_audit: audit.len(),
            lost: confirmed.into_iter().filter(is_lost).collect(),
            differing: laws.iter().filter(|law| results.get(**law) != recounted.get(**law)).count(),
            stale_consumers,
        })
    }

    /// Waits until no consumer is left: what it held is ready again. RabbitMQ 4.3.6 can keep one whose channel
    /// was closed on a node that was cut off, if the queue's leader hears in the same moment that the node is
    /// gone and back. Another leader finds out that it is gone: as an operator would, ends the node of this one.
    async fn until_no_consumer(&self) -> Result<Option<String>> {
        let servers = self.setup.servers;
        if self.has_no_consumer().await? {
            return Ok(None);
        }
        let list =
            ["ctl", "1", "--", "--quiet", "list_consumers", "queue_name", "channel_pid", "active"];
        let stale = servers.script(&list).await?;
        let leader = servers.leader(&self.queue).await?;
        servers.act("kill", &[leader], &["rabbitmq"]).await?;
        servers.act("start", &[leader], &["rabbitmq"]).await?;
        servers.until_node(leader, &self.queue).await?;
        if self.has_no_consumer().await? {
            return Ok(Some(stale));
        }
        Err(format!("consumers although no instance runs, also with another leader: {stale}")
            .into())
    }

    async fn has_no_consumer(&self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while self.setup.servers.queue(&self.queue).await?.1 > 0 {
            if Instant::now() > deadline {
                return Ok(false);
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(true)
    }

    /// The hashes in the queue, which has no consumer.
    async fn in_queue(&self) -> Result<BTreeSet<String>> {
        let (ready, _) = self.setup.servers.queue(&self.queue).await?;
        let connection = self.setup.servers.amqp_anywhere().await?;
        let channel = connection.create_channel().await?;
        let tags: Vec<ShortString> =
            (0..=ready / PER_CONSUMER).map(|number| format!("census-{number}").into()).collect();
        let consuming = tags.iter().map(|tag| {
            let (queue, options) = (self.queue.as_str().into(), BasicConsumeOptions::default());
            channel.basic_consume(queue, tag.clone(), options, FieldTable::default())
        });
        let mut deliveries = select_all(try_join_all(consuming).await?);
        let mut hashes = BTreeSet::new();
        // What was published meanwhile comes last.
        for number in 0..ready {
            let next = timeout(PATIENCE, deliveries.next()).await;
            let next = next.map_err(|_| format!("{ready} messages are ready, {number} come"))?;
            let delivery = next.ok_or("the queue is gone")??;
            if let Ok(vote) = decode(&delivery.data, MAX_MESSAGE_BYTES) {
                hashes.insert(vote.vote_hash.to_string());
            }
        }
        for tag in tags {
            channel.basic_cancel(tag, BasicCancelOptions::default()).await?;
        }
        // Unlike a closed channel, this does not count towards the delivery limit.
        let all = BasicNackOptions { multiple: true, requeue: true };
        channel.basic_nack(0, all).await?;
        channel.close(200, "OK".into()).await?;
        connection.close(200, "OK".into()).await?;
        Ok(hashes)
    }
}
