//! What a consumer costs that does nothing with what it gets: the least that any can cost.

use futures::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};

const PREFETCH: u16 = 2_000;
const ACK_EVERY: u64 = 100;

/// Takes `votes` messages off the queue that the service's own variables name, and writes to
/// standard error how many it has acked. On one thread like the service, which is compared with it.
#[tokio::main(flavor = "current_thread")]
pub async fn run(votes: u64) {
    let [host, port, user, password, queue] = ["HOST", "PORT", "USER", "PASSWORD", "QUEUE"]
        .map(|name| std::env::var(format!("RABBITMQ_{name}")).expect("set by the comparison"));
    let address = format!("amqp://{user}:{password}@{host}:{port}/%2f");
    let connection =
        Connection::connect(&address, ConnectionProperties::default()).await.expect("connected");
    let channel = connection.create_channel().await.expect("a channel");
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.expect("a prefetch");
    let mut deliveries = channel
        .basic_consume(
            queue.into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await
        .expect("a consumer");
    let mut taken = 0;
    while taken < votes {
        let delivery = deliveries.next().await.expect("more messages").expect("a delivery");
        taken += 1;
        if taken % ACK_EVERY == 0 || taken == votes {
            let multiple = BasicAckOptions { multiple: true };
            assert!(delivery.acker.ack(multiple).await.expect("acked"), "on a live channel");
            if taken % (10 * ACK_EVERY) == 0 || taken == votes {
                eprintln!("{taken}");
            }
        }
    }
    connection.close(200, "OK".into()).await.expect("closed");
    // Until it is ended, so that its memory can still be read.
    std::future::pending().await
}
