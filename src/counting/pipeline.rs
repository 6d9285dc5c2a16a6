//! The whole dataflow: deliveries in, exact counts out, then acks.
//!
//! ```text
//! deliveries ─ those that are there ─ take_until(stop)
//!            ─ track, decode (what is malformed keeps no body) ─ take
//!            ─ reject what is malformed ─ chunks_timeout(size, timeout)
//!            ─ map(upsert with retry) ─ buffered(in flight) ─ ack the contiguous settled prefix
//! ```
//!
//! Generic over the session with the broker and over the store. Architecture invariants: nothing
//! here knows AMQP or SQL; no ack leaves before the votes it covers are committed; the stream is
//! always run to its end, so a failure drops no transaction half-way.

mod ack_tracker;
mod acknowledged;
mod batch_log;
mod interface;
mod plain_inserts;
mod unacked;
mod upsert;

use std::future::{Future, pending, ready};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use compact_str::CompactString;
use futures::FutureExt;
use futures::channel::mpsc;
use futures::stream::{self, Stream, StreamExt, TryReadyChunksError, TryStreamExt};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

pub use self::ack_tracker::{AckPoint, AckTracker};
pub use self::acknowledged::{Acknowledged, Remembered};
use self::batch_log::BatchLog;
pub use self::interface::{Ended, Failure, Limits, Mode, Tools};
pub use self::plain_inserts::PLAIN_AFTER;
use self::plain_inserts::PlainInserts;
use self::unacked::Unacked;
pub use self::upsert::{IsolationBudget, RetryPolicy};
use self::upsert::{Unsettled, Upsert};
use crate::model::ports::{
    BrokerError, Channel, DeadLetters, Delivery, DeliveryTag, Session, Store, TraceContext, Votes,
};
use crate::model::vote::{self, Rejection, Vote};

/// How long the broker may take to confirm that it stopped delivering.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// Most deliveries that are taken at once. They mostly arrive many at a time, and work that is done once
/// for all of them (a lock, a check for the stop, a slot in a channel) adds up.
const AT_ONCE: usize = 100;
/// A half-open chain has proved the queue empty when, so long after its beginning, everything delivered
/// is settled and nothing came for a second: the prefetch allows a batch, and a broker with messages
/// delivers it at once.
const EMPTY_AFTER: Duration = Duration::from_secs(5);
const SILENT_FOR: Duration = Duration::from_secs(1);
/// The log message for a malformed message; it is rate-limited.
const MALFORMED: &str = "malformed message rejected";

/// A delivery is held for a little longer than it seems to us: at most by this part of the time-out.
const CLOCKS_DIFFER: u32 = 10;

/// Runs the chain on one session until `stop`, a failure, or the end of a trial.
pub async fn run<S: Session, T: Store, D: DeadLetters>(
    session: &mut S,
    tools: &Tools<'_, T, D>,
    mode: Mode,
    stop: &CancellationToken,
) -> Ended {
    let (channel, deliveries) = session.split();
    let flow = Flow::new(channel, tools, mode);
    let Limits { batch_size, batch_timeout, in_flight, .. } = *tools.limits;

    let chunks = deliveries
        .try_ready_chunks(AT_ONCE)
        .take_until(flow.until_stopped(stop))
        .map_ok(|deliveries| flow.decode(deliveries));
    let (take, taken) = flow.take(chunks);
    let valid = taken.then(|chunk| flow.reject_malformed(chunk)).flat_map(stream::iter);
    let chain = tokio_stream::StreamExt::chunks_timeout(valid, batch_size, batch_timeout)
        .map(|batch| {
            let span = tools.instruments.spans.batch(batch.iter().map(|delivery| &delivery.trace));
            flow.upsert(batch, span.clone()).instrument(span)
        })
        .buffered(in_flight)
        .for_each(|settled| flow.ack(settled));
    futures::join!(take, chain);

    flow.ended()
}

/// A valid vote, with what is needed to settle its delivery.
struct ValidDelivery {
    tag: DeliveryTag,
    body: Vec<u8>,
    vote: Vote,
    published_at: Option<SystemTime>,
    trace: TraceContext,
    replays: u32,
    redelivered: bool,
    taken: Instant,
}

/// A malformed message, with all that may be logged of it. Its body is dropped: it may be of any size.
struct Malformed {
    tag: DeliveryTag,
    size: usize,
    rejection: Rejection,
}

/// Deliveries that were taken at once, decoded.
struct DecodedChunk {
    valid: Vec<ValidDelivery>,
    malformed: Vec<Malformed>,
}

/// The stages of one chain and what they share.
struct Flow<'a, C, T, D> {
    channel: &'a C,
    tools: &'a Tools<'a, T, D>,
    mode: Mode,
    acks: Mutex<AckTracker>,
    unacked: Unacked<'a>,
    plain_inserts: PlainInserts,
    /// The first failure; all later ones follow from it.
    failure: OnceLock<Failure>,
    halt: CancellationToken,
    acked: AtomicBool,
    committed: AtomicBool,
    last_delivery: Mutex<Instant>,
    empty: AtomicBool,
}

/// A committed batch.
struct Settled {
    tags: Vec<DeliveryTag>,
    /// Votes that were counted or found counted; the others were refused and dead-lettered.
    stored: u64,
    marker: Option<CompactString>,
    span: Span,
}

impl<'a, C: Channel, T: Store, D: DeadLetters> Flow<'a, C, T, D> {
    fn new(channel: &'a C, tools: &'a Tools<'a, T, D>, mode: Mode) -> Self {
        Self {
            channel,
            tools,
            mode,
            acks: Mutex::default(),
            unacked: Unacked::new(tools.instruments),
            plain_inserts: PlainInserts::new(tools.limits.plain_after),
            failure: OnceLock::new(),
            halt: CancellationToken::new(),
            acked: AtomicBool::new(false),
            committed: AtomicBool::new(false),
            last_delivery: Mutex::new(Instant::now()),
            empty: AtomicBool::new(false),
        }
    }

    /// Resolves when no further delivery shall be taken. On a stop the consumer is cancelled first, so
    /// that the broker sends nothing that would only be requeued.
    async fn until_stopped(&self, stop: &CancellationToken) {
        tokio::select! {
            biased;
            () = self.halt.cancelled() => {}
            () = stop.cancelled() => self.cancel().await,
            () = self.proved_empty() => self.cancel().await,
        }
    }

    /// Resolves when a half-open chain has found the queue empty: no batch will show that the store takes
    /// votes again.
    async fn proved_empty(&self) {
        if self.mode != Mode::HalfOpen {
            return pending().await;
        }
        sleep(EMPTY_AFTER).await;
        while self.acks().unsettled() > 0 || self.last_delivery().elapsed() < SILENT_FOR {
            sleep(SILENT_FOR / 4).await;
        }
        self.empty.store(true, Ordering::Relaxed);
    }

    async fn cancel(&self) {
        let cancelled = tokio::time::timeout(CANCEL_TIMEOUT, self.channel.cancel()).await;
        let unconfirmed =
            || BrokerError::Timeout("the broker did not confirm the end of consuming".to_owned());
        if let Err(lost) = cancelled.unwrap_or_else(|_| Err(unconfirmed())) {
            self.fail(Failure::Lost(lost));
        }
    }

    /// Tracks deliveries as they arrive, in the order of the tags. Returns the time.
    fn track(&self, deliveries: &[Delivery]) -> Instant {
        let taken = Instant::now();
        *self.last_delivery() = taken;
        let mut acks = self.acks();
        deliveries.iter().for_each(|delivery| acks.track(delivery.tag, taken));
        self.gauge(&acks);
        taken
    }

    /// Takes chunks as they come, also while the chain is full and polls for none: a full chain
    /// is waiting for the store, and must learn that its session is lost. At most the prefetch
    /// waits in between, and of that only votes with their bodies.
    fn take<V>(
        &self,
        chunks: impl Stream<Item = Result<V, TryReadyChunksError<Delivery, BrokerError>>>,
    ) -> (impl Future<Output = ()>, impl Stream<Item = V>) {
        let (sender, taken) = mpsc::unbounded();
        let take = chunks
            // What arrived right before the loss is not taken: its session is over.
            .map_err(|TryReadyChunksError(_, lost)| self.fail(Failure::Lost(self.named(lost))))
            .try_for_each(move |chunk| ready(sender.unbounded_send(chunk).map_err(drop)))
            .map(drop);
        (take, taken)
    }

    /// Recognises a consumer time-out, which the broker does not name when it ends a consumer: it comes exactly
    /// when a delivery has been held for so long.
    fn named(&self, lost: BrokerError) -> BrokerError {
        let held = self.acks().oldest().map(|taken| taken.elapsed());
        match (lost, held) {
            (BrokerError::ConsumerEnded { timeout: Some(timeout) }, Some(held))
                if held + timeout / CLOCKS_DIFFER > timeout =>
            {
                let held = held.as_secs_f64();
                BrokerError::ConsumerTimeout(format!(
                    "held for {held:.1} s, the limit is {timeout:?}"
                ))
            }
            (lost, _) => lost,
        }
    }

    fn decode(&self, deliveries: Vec<Delivery>) -> DecodedChunk {
        let taken = self.track(&deliveries);
        let mut chunk =
            DecodedChunk { valid: Vec::with_capacity(deliveries.len()), malformed: Vec::new() };
        let Limits { max_message_bytes: max_bytes, cell, .. } = *self.tools.limits;
        for Delivery { tag, body, published_at, trace, replays, valid_properties, redelivered } in
            deliveries
        {
            match vote::decode_message(&body, valid_properties, max_bytes, cell) {
                Ok(vote) => {
                    let delivery = ValidDelivery {
                        tag,
                        body,
                        vote,
                        published_at,
                        trace,
                        replays,
                        redelivered,
                        taken,
                    };
                    chunk.valid.push(delivery);
                }
                Err(rejection) => {
                    chunk.malformed.push(Malformed { tag, size: body.len(), rejection });
                }
            }
        }
        chunk
    }

    /// Rejects malformed messages at once; returns the valid votes.
    async fn reject_malformed(&self, chunk: DecodedChunk) -> Vec<ValidDelivery> {
        // A lost session takes no rejects: each further one would wait for its time-out.
        let malformed = chunk.malformed.into_iter().take_while(|_| !self.halt.is_cancelled());
        for Malformed { tag, size, rejection } in malformed {
            if let Err(lost) = self.channel.reject(tag).await {
                self.fail(Failure::Lost(lost));
                continue;
            }
            let mut acks = self.acks();
            acks.rejected(tag);
            self.gauge(&acks);
            drop(acks);
            self.tools.instruments.rejected(rejection.reason);
            let reason = rejection.reason.as_str();
            if self.tools.instruments.log_limiter.admit(MALFORMED, reason) {
                tracing::warn!(
                    reason,
                    field = rejection.field,
                    detail = rejection.detail,
                    delivery_tag = tag,
                    size,
                    vote_hash = rejection.vote_hash,
                    "{MALFORMED}"
                );
            }
        }
        chunk.valid
    }

    /// Commits one batch; run to its end in any case.
    async fn upsert(&self, batch: Vec<ValidDelivery>, span: Span) -> Option<Settled> {
        if self.halt.is_cancelled() {
            return None;
        }
        let began = Instant::now();
        let taken = batch.first().map_or(began, |first| first.taken);
        let waited = began.saturating_duration_since(taken);
        let in_flight = self.tools.instruments.batch_complete(waited);
        let redelivered = batch.iter().any(|delivery| delivery.redelivered);
        let tags: Vec<DeliveryTag> = batch.iter().map(|delivery| delivery.tag).collect();
        let replays: Vec<u32> = batch.iter().map(|delivery| delivery.replays).collect();
        let published: Vec<SystemTime> =
            batch.iter().filter_map(|delivery| delivery.published_at).collect();
        let (votes, bodies): (Vec<Vote>, Vec<Vec<u8>>) =
            batch.into_iter().map(|delivery| (delivery.vote, delivery.body)).unzip();
        let Tools { limits, instruments, health, .. } = *self.tools;
        let votes = Votes::new(votes);
        let stage = Upsert {
            tools: self.tools,
            deadline: taken + limits.batch_deadline,
            halt: &self.halt,
            batch_log: &BatchLog::new(in_flight.number, votes.clone(), began, instruments),
            unacked: &self.unacked,
            insert: self.plain_inserts.choose(redelivered),
            plain_inserts: &self.plain_inserts,
        };
        match stage.settle(votes, bodies, &replays).await {
            Ok(counted) => {
                instruments.batch_settled(tags.len(), began.elapsed(), &published);
                let stored = counted.deliveries();
                if stored > 0 {
                    health.postgres_answers();
                }
                Some(Settled { tags, stored, marker: counted.marker, span })
            }
            Err(Unsettled::Halted) => None,
            Err(Unsettled::Failed(failure)) => {
                self.fail(failure);
                None
            }
        }
    }

    /// Acks as far as everything is settled.
    async fn ack(&self, settled: Option<Settled>) {
        let Some(Settled { tags, stored, mut marker, span }) = settled else { return };
        // At a consumer time-out the broker has its deliveries again, and takes a late ack without an effect.
        if matches!(self.failure.get(), Some(Failure::Lost(_))) {
            return;
        }
        self.acks().done(tags);
        let next = || self.acks().ack_point(self.tools.limits.most_acked);
        while let Some(AckPoint { tag, deliveries }) = next() {
            let acking = self.channel.ack_up_to(tag);
            if let Err(lost) = self.tools.instruments.spans.ack(&span, acking).await {
                return self.fail(Failure::Lost(lost));
            }
            self.acked.store(true, Ordering::Relaxed);
            self.unacked.acked(deliveries);
            self.tools.instruments.acked(deliveries);
            self.gauge(&self.acks());
            // After the first of several acks: the next may fail.
            self.tools.acknowledged.remember(marker.take());
        }
        // Its ack waits for a delivery before it.
        self.tools.acknowledged.remember(marker);
        // A batch of which every vote was refused proves nothing about the store.
        let first = stored > 0 && !self.committed.swap(true, Ordering::Relaxed);
        if self.mode == Mode::HalfOpen && first {
            self.cancel().await;
        }
    }

    fn fail(&self, failure: Failure) {
        // An error means that another failure came first, and this one follows from it.
        let _later = self.failure.set(failure);
        self.halt.cancel();
    }

    fn acks(&self) -> MutexGuard<'_, AckTracker> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn last_delivery(&self) -> MutexGuard<'_, Instant> {
        self.last_delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, acks: &AckTracker) {
        self.tools.instruments.unacked(acks.unsettled(), acks.oldest());
    }

    fn ended(self) -> Ended {
        let held = self.acks().unsettled();
        // The tags end with the session.
        self.tools.instruments.unacked(0, None);
        Ended {
            held,
            failure: self.failure.into_inner(),
            acked: self.acked.into_inner(),
            committed: self.committed.into_inner(),
            empty: self.empty.into_inner(),
        }
    }
}

#[cfg(test)]
mod tests;
