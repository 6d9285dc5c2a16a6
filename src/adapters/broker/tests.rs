//! Waiting for a broker that takes connections and then sends nothing.

use futures::future::join_all;
use tokio::net::TcpListener;

use super::*;
use crate::platform::config::{Config as Whole, Sources};

/// On a virtual clock, which advances only while everything waits.
#[tokio::test(start_paused = true)]
async fn waiting_for_other_dead_letters_does_not_count_against_a_confirm() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let environment = [("RABBITMQ_HOST".to_owned(), "127.0.0.1".into())].into();
    let sources = Sources { environment, ..Sources::default() };
    let mut config = Whole::load(&sources).expect("good settings").rabbitmq;
    config.port = listener.local_addr().expect("an address").port();
    let broker = RabbitMq::new(config);
    let dead_letter = DeadLetter {
        body: Vec::new(),
        vote_hash: "h".to_owned(),
        sqlstate: "23514".to_owned(),
        replays: 0,
    };
    // Each connects for five seconds: the last one begins later than a confirm may take.
    let publishing = (0..10).map(|_| broker.publish(&dead_letter));
    for published in join_all(publishing).await {
        let lost = published.expect_err("the broker does not answer").to_string();
        assert!(lost.contains("did not answer within 5s"), "{lost}");
    }
}
