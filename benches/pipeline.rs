//! What decoding costs per message, what a batch costs until it is columns, and what the chain
//! itself costs per vote: with a session and a store that do nothing, all that is left is
//! combinators, ack tracker and decoding.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio_util::sync::CancellationToken;
use vote_aggregator::adapters::store::columns::DedupedBatch;
use vote_aggregator::counting::pipeline::{
    self, Acknowledged, IsolationBudget, Limits, Mode, RetryPolicy, Tools,
};
use vote_aggregator::model::ports::{
    BrokerError, Channel, Counted, DeadLetter, DeadLetters, Delivery, DeliveryTag, Fault, Session,
    Store, Votes,
};
use vote_aggregator::model::vote;
use vote_aggregator::operator::publish::{Samples, Shape};
use vote_aggregator::platform::config::ShownTotals;
use vote_aggregator::platform::retry::Jitter;
use vote_aggregator::platform::telemetry::{Health, Metrics};

const VOTES: usize = 10_000;

fn samples(count: usize) -> Vec<Vec<u8>> {
    Samples::new(Shape::distinct(count, 5, 1)).collect()
}

struct Nothing;

impl Channel for Nothing {
    async fn ack_up_to(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        Ok(())
    }
    async fn reject(&self, _: DeliveryTag) -> Result<(), BrokerError> {
        Ok(())
    }
    async fn cancel(&self) -> Result<(), BrokerError> {
        Ok(())
    }
}

impl Store for Nothing {
    async fn count(&self, votes: Votes) -> Result<Counted, Fault> {
        black_box(&votes);
        Ok(Counted::default())
    }
    async fn probe(&self) -> Result<(), Fault> {
        Ok(())
    }
}

impl DeadLetters for Nothing {
    async fn publish(&self, _: &DeadLetter) -> Result<(), BrokerError> {
        Ok(())
    }
}

struct Memory(Nothing, Option<BoxStream<'static, Result<Delivery, BrokerError>>>);

impl Session for Memory {
    type Channel = Nothing;
    type Deliveries = BoxStream<'static, Result<Delivery, BrokerError>>;

    fn split(&mut self) -> (&Nothing, Self::Deliveries) {
        (&self.0, self.1.take().unwrap_or_else(|| stream::empty().boxed()))
    }
    async fn requeue(self) {}
    async fn close(self) -> Result<(), BrokerError> {
        Ok(())
    }
}

fn decode(criterion: &mut Criterion) {
    let bodies = samples(1_000);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(bodies.len() as u64));
    group.bench_function("valid votes", |bencher| {
        bencher.iter(|| {
            for body in &bodies {
                black_box(vote::decode(black_box(body), 16_384)).ok();
            }
        });
    });
    group.finish();
}

fn columns(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("dedupe, sort, columns");
    for size in [100, 2_000] {
        let batch: Vec<_> =
            samples(size).iter().map(|body| vote::decode(body, 16_384).expect("a vote")).collect();
        group.throughput(Throughput::Elements(size as u64));
        group.bench_function(format!("batches of {size}"), |bencher| {
            bencher.iter(|| DedupedBatch::of(black_box(&batch)).firsts());
        });
    }
    group.finish();
}

fn chain(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let metrics =
        Metrics::new(100, ShownTotals::Full, Arc::new(Health::default()), None).expect("metrics");
    let deliveries: Vec<Delivery> = samples(VOTES)
        .into_iter()
        .enumerate()
        .map(|(index, body)| Delivery {
            published_at: Some(SystemTime::now()),
            ..Delivery::new(index as u64 + 1, body)
        })
        .collect();
    let mut group = criterion.benchmark_group("chain");
    group.throughput(Throughput::Elements(VOTES as u64));
    for (name, batch_size, in_flight) in [("batches of 100", 100, 1), ("batches of 2000", 2_000, 4)]
    {
        let limits = Limits {
            batch_size,
            batch_timeout: Duration::from_secs(1),
            batch_deadline: Duration::from_secs(900),
            in_flight,
            max_message_bytes: 16_384,
            cell: None,
            most_acked: 500,
            plain_after: 64,
            retry: RetryPolicy { max_attempts: 3, delay: Duration::from_secs(1) },
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || Memory(Nothing, Some(stream::iter(deliveries.clone()).map(Ok).boxed())),
                |mut session| {
                    let tools = Tools {
                        store: &Nothing,
                        dead_letters: &Nothing,
                        limits: &limits,
                        budget: &IsolationBudget::default(),
                        jitter: &Jitter::seeded(1),
                        instruments: &metrics.instruments,
                        health: &Health::default(),
                        acknowledged: &Acknowledged::default(),
                    };
                    let never = CancellationToken::new();
                    runtime.block_on(pipeline::run(&mut session, &tools, Mode::Flowing, &never))
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, decode, columns, chain);
criterion_main!(benches);
