//! Malformed messages, when the session is lost while they are rejected.

use super::*;

/// A channel whose broker is gone: each reject waits for a time-out.
struct DeadChannel(Mutex<u32>);

struct DeadSession {
    channel: DeadChannel,
    deliveries: Option<BoxStream<'static, Result<Delivery, BrokerError>>>,
}

impl Channel for DeadChannel {
    async fn ack_up_to(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        Err(BrokerError::disconnected("settle", "dead channel"))
    }

    async fn reject(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        *self.0.lock().expect("no panic while held") += 1;
        tokio::time::sleep(Duration::from_secs(10)).await;
        Err(BrokerError::Timeout("reject: not done within 10s".to_owned()))
    }

    async fn cancel(&self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl Session for DeadSession {
    type Channel = DeadChannel;
    type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

    fn split(&mut self) -> (&DeadChannel, Self::Deliveries) {
        (&self.channel, self.deliveries.take().expect("taken once"))
    }

    async fn requeue(self) {}

    async fn close(self) -> Result<(), BrokerError> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_lost_session_no_further_reject_is_tried() {
    let metrics = Metrics::new(10, Arc::new(Health::default())).expect("metrics");
    let world = World::default();
    let tools = Tools {
        store: &world,
        dead_letters: &world,
        limits: &limits(10, 1),
        budget: &IsolationBudget::default(),
        jitter: &Jitter::seeded(1),
        instruments: &metrics.instruments,
        health: &Health::default(),
        acknowledged: &Acknowledged::default(),
    };
    // Several chunks of what is taken in one go.
    let malformed = deliveries(vec![b"no vote".to_vec(); 5 * AT_ONCE]);
    let mut session =
        DeadSession { channel: DeadChannel(Mutex::new(0)), deliveries: Some(endless(malformed)) };
    let began = Instant::now();
    let ended = run(&mut session, &tools, Mode::Flowing, &CancellationToken::new()).await;
    assert!(matches!(ended.failure, Some(Failure::Lost(_))), "{:?}", ended.failure);
    assert_eq!(*session.channel.0.lock().expect("no panic while held"), 1);
    assert!(began.elapsed() < Duration::from_secs(11), "{:?}", began.elapsed());
}
