//! Every span: its name and attributes, once, after OpenTelemetry's semantic conventions for
//! messaging and databases. One span a batch, linked to the trace of every message in it; children
//! for each transaction and for each ack.
//!
//! Without a collector no span is made: each costs a look at a flag.
//! No span carries a body or a citizen_id.

use std::future::Future;
use std::sync::Arc;

use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_semantic_conventions::attribute as semconv;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::model::ports::{Class, Counted, Fault, TraceContext};
use crate::platform::config::{Config, Hosts, ServerAddress};

const TRACEPARENT: &str = "traceparent";

/// Makes spans that name the servers they are about.
#[derive(Clone, Debug, Default)]
pub struct Spans(Arc<Names>);

#[derive(Debug, Default)]
struct Names {
    queue: String,
    rabbitmq: Server,
    database: String,
    postgres: Server,
}

/// All addresses of a server.
#[derive(Debug, Default)]
struct Server(Option<(Hosts, Vec<ServerAddress>)>);

impl Server {
    fn in_use(&self) -> Option<&ServerAddress> {
        self.0.as_ref().and_then(|(hosts, addresses)| addresses.get(hosts.in_use()))
    }
}

impl Spans {
    pub fn new(config: &Config) -> Self {
        let (rabbitmq, postgres) = (&config.rabbitmq, &config.postgres);
        Self(Arc::new(Names {
            queue: rabbitmq.queue.clone(),
            rabbitmq: Server(Some((rabbitmq.host.clone(), rabbitmq.addresses()))),
            database: postgres.database.clone(),
            postgres: Server(Some((postgres.host.clone(), postgres.addresses()))),
        }))
    }

    /// A batch, from complete to acked, linked to the traces of its messages.
    pub fn batch<'c>(&self, messages: impl ExactSizeIterator<Item = &'c TraceContext>) -> Span {
        let Names { queue, rabbitmq, .. } = &*self.0;
        let server = rabbitmq.in_use();
        let span = tracing::info_span!(
            "process",
            otel.name = format_args!("process {queue}"),
            otel.kind = "consumer",
            { semconv::MESSAGING_SYSTEM } = "rabbitmq",
            { semconv::MESSAGING_OPERATION_NAME } = "process",
            { semconv::MESSAGING_OPERATION_TYPE } = "process",
            { semconv::MESSAGING_DESTINATION_NAME } = queue,
            { semconv::MESSAGING_BATCH_MESSAGE_COUNT } = messages.len(),
            { semconv::SERVER_ADDRESS } = server.map(|it| it.host.as_str()),
            { semconv::SERVER_PORT } = server.map(|it| it.port),
        );
        // Links cost most of what tracing does, and a span that is not sampled is never sent.
        if !span.is_disabled() && span.context().span().span_context().is_sampled() {
            for context in messages {
                if let Some(traceparent) = context.traceparent() {
                    // An invalid one links to nothing.
                    span.add_link(remote(traceparent).span().span_context().clone());
                }
            }
        }
        span
    }

    /// One transaction of `votes`, within the batch at hand; notes how it failed.
    pub async fn transaction(
        &self,
        votes: usize,
        counting: impl Future<Output = Result<Counted, Fault>>,
    ) -> Result<Counted, Fault> {
        let Names { database, postgres, .. } = &*self.0;
        let server = postgres.in_use();
        let span = tracing::info_span!(
            "transaction",
            otel.name = "INSERT vote_audit",
            otel.kind = "client",
            otel.status_code = Empty,
            { semconv::DB_SYSTEM_NAME } = "postgresql",
            { semconv::DB_NAMESPACE } = database,
            { semconv::DB_QUERY_SUMMARY } = "INSERT vote_audit INSERT vote_results",
            { semconv::DB_OPERATION_BATCH_SIZE } = votes,
            { semconv::SERVER_ADDRESS } = server.map(|it| it.host.as_str()),
            { semconv::SERVER_PORT } = server.map(|it| it.port),
            { semconv::DB_RESPONSE_STATUS_CODE } = Empty,
            { semconv::ERROR_TYPE } = Empty,
        );
        let counted = counting.instrument(span.clone()).await;
        // A known hash is no error: the batch is inserted again with ON CONFLICT.
        if let Err(fault) = &counted
            && fault.class != Class::KnownHash
        {
            span.record("otel.status_code", "ERROR");
            let kind = fault.sqlstate.as_deref().unwrap_or(fault.class.as_str());
            span.record(semconv::ERROR_TYPE, kind);
            if let Some(sqlstate) = &fault.sqlstate {
                span.record(semconv::DB_RESPONSE_STATUS_CODE, sqlstate);
            }
        }
        counted
    }

    /// An ack behind `batch`; the last one ends it.
    pub async fn ack<R>(&self, batch: &Span, acking: impl Future<Output = R>) -> R {
        let Names { queue, rabbitmq, .. } = &*self.0;
        let server = rabbitmq.in_use();
        let span = tracing::info_span!(
            parent: batch,
            "ack",
            otel.name = format_args!("ack {queue}"),
            otel.kind = "client",
            { semconv::MESSAGING_SYSTEM } = "rabbitmq",
            { semconv::MESSAGING_OPERATION_NAME } = "ack",
            { semconv::MESSAGING_OPERATION_TYPE } = "settle",
            { semconv::MESSAGING_DESTINATION_NAME } = queue,
            { semconv::SERVER_ADDRESS } = server.map(|it| it.host.as_str()),
            { semconv::SERVER_PORT } = server.map(|it| it.port),
        );
        // Within the batch as well: a span ends when it was last left.
        acking.instrument(span).instrument(batch.clone()).await
    }
}

/// The sending of one message of `size` bytes to `queue`.
pub fn send(queue: &str, size: usize) -> Span {
    tracing::info_span!(
        "send",
        otel.name = format_args!("send {queue}"),
        otel.kind = "producer",
        { semconv::MESSAGING_SYSTEM } = "rabbitmq",
        { semconv::MESSAGING_OPERATION_NAME } = "send",
        { semconv::MESSAGING_OPERATION_TYPE } = "send",
        { semconv::MESSAGING_DESTINATION_NAME } = queue,
        { semconv::MESSAGING_MESSAGE_BODY_SIZE } = size,
    )
}

/// What a message has to carry to be found in this span's trace; empty without a collector.
pub fn context(span: &Span) -> TraceContext {
    if span.is_disabled() {
        return TraceContext::default();
    }
    let mut carrier = Carrier::default();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    TraceContext::new(&carrier.0)
}

fn remote(traceparent: &str) -> Context {
    let carrier = Carrier(traceparent.to_owned());
    TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
}

/// The one header that is carried; W3C's `tracestate` adds nothing to a link.
#[derive(Default)]
struct Carrier(String);

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = value;
        }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        (key == TRACEPARENT).then_some(&*self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}
