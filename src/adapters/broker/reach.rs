//! Whether the queue of a session can be reached. A node that was cut off from the others keeps its
//! connections open and delivers nothing, although they have votes to deliver.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::{Connection, Error};
use tokio::time::{Instant, sleep, timeout_at};

use super::connect::{amqp_code, describe};
use super::refusal::is_out_of_reach;
use super::topology::{self, QueueStatus};
use crate::model::ports::BrokerError;
use crate::platform::config::RabbitMq as Config;

/// How often a session looks at its queue while nothing is delivered.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How long a queue may be out of reach: an election, or a node that restarts, takes seconds.
const OUT_OF_REACH_FOR: Duration = Duration::from_secs(30);

/// Reply codes of a get that the queue or the permissions never allow.
const REFUSED: [u16; 4] = [403, 405, 406, 540];

/// Resolves when the queue is out of reach on a connection that stays open. `delivered` is set by each
/// delivery, which proves the opposite.
pub(super) async fn lost(
    connection: Arc<Connection>,
    config: Config,
    delivered: Arc<AtomicBool>,
) -> BrokerError {
    let gets = AtomicBool::new(true);
    let ask = || ask_about(&connection, &config.queue, &gets);
    let what = until_out_of_reach(ask, &delivered).await;
    let place = describe(&config);
    BrokerError::OutOfReach(format!(
        "the queue {:?} is out of reach: {what}; {place}",
        config.queue
    ))
}

/// A passive declare, and an empty queue is asked for a message: the leader of a quorum queue answers a
/// declare out of what it knows, also where it was cut off, and a get only with the majority's consent.
/// Without consumers it is no leader that answered: a get would then end the whole connection (541), or
/// take a vote that is ready after all. `gets` is cleared where a get is refused.
async fn ask_about(
    connection: &Connection,
    queue: &str,
    gets: &AtomicBool,
) -> Result<Option<QueueStatus>, Error> {
    let status = topology::status(connection, queue).await?;
    let is_empty = status.is_some_and(|it| it.ready == 0 && it.consumers > 0);
    if is_empty && gets.load(Ordering::Relaxed) {
        let channel = connection.create_channel().await?;
        let got = match channel.basic_get(queue.into(), BasicGetOptions::default()).await {
            // As by a queue with a single active consumer; each refusal is an error in the broker's log.
            Err(error) if amqp_code(&error).is_some_and(|code| REFUSED.contains(&code)) => {
                gets.store(false, Ordering::Relaxed);
                return Ok(status);
            }
            got => got?,
        };
        // It has arrived since the declare, while the consumer holds as many as it may.
        if let Some(message) = got {
            let requeue = BasicNackOptions { multiple: false, requeue: true };
            channel.basic_nack(message.delivery.delivery_tag, requeue).await?;
        }
        channel.close(200, "OK".into()).await?;
    }
    Ok(status)
}

async fn until_out_of_reach<L>(mut ask: impl FnMut() -> L, delivered: &AtomicBool) -> String
where
    L: Future<Output = Result<Option<QueueStatus>, Error>>,
{
    // Since when no look has reached it.
    let mut since = None;
    loop {
        sleep(ASK_EVERY).await;
        if delivered.swap(false, Ordering::Relaxed) {
            since = None;
            continue;
        }
        let began = *since.get_or_insert_with(Instant::now);
        let what = match timeout_at(began + OUT_OF_REACH_FOR, ask()).await {
            Err(_) => "a request about it was not answered",
            // RabbitMQ's answer for a quorum queue whose leader it cannot ask. This session consumes.
            Ok(Ok(Some(QueueStatus { consumers: 0, .. }))) => "it has no leader",
            Ok(Err(error)) if is_out_of_reach(&error) => return error.to_string(),
            // The broker ends the consumer of a queue that was deleted, and each look would be an error in
            // its log.
            Ok(Ok(None)) => std::future::pending().await,
            // The consumer reports a connection that is lost.
            Ok(_) => {
                since = None;
                continue;
            }
        };
        if began.elapsed() >= OUT_OF_REACH_FOR && !delivered.load(Ordering::Relaxed) {
            return format!("{what} for {OUT_OF_REACH_FOR:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use lapin::ErrorKind;
    use lapin::protocol::AMQPError;

    use super::*;

    fn consumers(consumers: u32) -> Result<Option<QueueStatus>, Error> {
        Ok(Some(QueueStatus { ready: 0, consumers }))
    }

    /// The answers to the looks, the last one again and again, for an hour; after how many seconds the
    /// queue is taken to be out of reach.
    async fn after(answers: &[Result<Option<QueueStatus>, Error>]) -> Option<u64> {
        let (began, mut asked) = (Instant::now(), 0);
        let ask = || {
            asked += 1;
            ready(answers[answers.len().min(asked) - 1].clone())
        };
        let delivered = AtomicBool::new(false);
        let lost =
            tokio::time::timeout(Duration::from_secs(3600), until_out_of_reach(ask, &delivered));
        lost.await.ok().map(|_| began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_without_a_leader_is_out_of_reach_after_thirty_seconds() {
        assert_eq!(after(&[consumers(1)]).await, None);
        assert_eq!(after(&[consumers(0)]).await, Some(40));
        let election = [consumers(0), consumers(0), consumers(0), consumers(1)];
        assert_eq!(after(&election).await, None, "an election takes a while");
        assert_eq!(after(&[consumers(1), consumers(0)]).await, Some(50));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_without_an_answer_counts_from_when_it_began() {
        let (began, delivered) = (Instant::now(), AtomicBool::new(false));
        let what = until_out_of_reach(pending, &delivered).await;
        assert_eq!(
            (began.elapsed().as_secs(), what.contains("not answered")),
            (40, true),
            "{what}"
        );
        // A broker that is slow for less than that, at every look.
        let slow = || async {
            sleep(Duration::from_secs(29)).await;
            consumers(1)
        };
        let lost = until_out_of_reach(slow, &delivered);
        assert!(tokio::time::timeout(Duration::from_secs(3600), lost).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_delivered_proves_that_the_queue_is_there() {
        let delivered = AtomicBool::new(false);
        let delivering = async {
            loop {
                delivered.store(true, Ordering::Relaxed);
                sleep(Duration::from_secs(15)).await;
            }
        };
        let ask = || ready(consumers(0));
        tokio::select! {
            what = until_out_of_reach(ask, &delivered) => panic!("{what}"),
            () = delivering => {}
            () = sleep(Duration::from_secs(3600)) => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_session_only_where_it_names_a_node_that_is_down() {
        let refused = |code: u16, text: &str| {
            let error = AMQPError::from_id(code, text.into()).expect("a reply code");
            Err(Error::from(ErrorKind::ProtocolError(error)))
        };
        let down = "home node 'b' of durable queue 'votes' in vhost '/' is down or inaccessible";
        assert_eq!(after(&[refused(404, down)]).await, Some(10));
        assert_eq!(after(&[refused(403, "no")]).await, None);
        assert_eq!(after(&[Ok(None)]).await, None, "a queue that was deleted");
    }
}
