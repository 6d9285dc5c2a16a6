//! Traces, as a real OTLP receiver gets them, and without a working receiver.

use std::collections::BTreeSet;
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::collector::texts;
use crate::support::{
    Collector, Files, Servers, Service, Stage, assert_lacks, listen, messages, settings, votes,
};

const ACCEPTS_NO_SPANS: &str = "the collector does not accept spans";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn named(spans: &[Span], name: &str) -> Vec<Span> {
    spans.iter().filter(|span| span.name == name).cloned().collect()
}

/// The spans of batches.
fn batches(stage: &Stage<'_>, collector: &Collector) -> Vec<Span> {
    named(&collector.spans(), &format!("process {}", stage.queue))
}

/// A service that sends to this collector.
async fn start(stage: &Stage<'_>, collector: &Collector, more: &[(&str, &str)]) -> Service {
    stage.start(&[&collector.settings()[..], more].concat()).await
}

/// Asserts that a line has every field of lines about a batch, each a number.
fn assert_batch_fields(line: &str) {
    let fields: Value = serde_json::from_str(line).expect("JSON");
    for name in ["batch", "votes", "law_count", "attempt", "elapsed"] {
        assert!(fields[name].is_number(), "{name} in {line}");
    }
}

#[tokio::test]
async fn over_grpc_and_http_a_batch_is_one_span_linked_to_all_its_messages() {
    assert_linked("grpc").await;
    assert_linked("http/protobuf").await;
}

async fn assert_linked(protocol: &'static str) {
    let stage = Stage::migrated(Servers::shared(), "traced").await;
    let collector = Collector::listen(protocol).await;
    let sample = ["publish", "--count", "200"];
    stage.run_with(&sample, &collector.settings()).await.assert(0, &[]);
    let one_batch = settings("BATCH_SIZE=200 RABBITMQ_PREFETCH_COUNT=200 LOG_LEVEL=DEBUG");
    let service = start(&stage, &collector, &one_batch).await;
    stage.until_counted(200).await;
    let log = service.stop().await;

    // Stopped: everything is sent.
    let (spans, batches) = (collector.spans(), batches(&stage, &collector));
    let sent = named(&spans, &format!("send {}", stage.queue));
    assert!(sent.iter().all(|span| span.kind() == SpanKind::Producer));
    let sent: BTreeSet<_> = sent.iter().map(|span| (&span.trace_id, &span.span_id)).collect();
    let links = batches.iter().flat_map(|batch| &batch.links);
    let links: BTreeSet<_> = links.map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!(sent.len(), 200);
    assert_eq!(links, sent, "every message is linked, and nothing else is");
    assert!(batches.iter().any(|batch| batch.links.len() > 128), "past OpenTelemetry's default");
    for batch in &batches {
        assert_eq!(batch.kind(), SpanKind::Consumer);
        assert!(batch.parent_span_id.is_empty(), "a trace of its own");
        let attributes = texts(&batch.attributes);
        for (name, value) in [
            ("messaging.system", "rabbitmq"),
            ("messaging.operation.name", "process"),
            ("messaging.operation.type", "process"),
            ("messaging.destination.name", &stage.queue),
            ("messaging.batch.message_count", &batch.links.len().to_string()),
            ("server.port", stage.servers.get("RABBITMQ_PORT")),
        ] {
            assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}");
        }
        let children = Vec::from_iter(spans.iter().filter(|it| it.parent_span_id == batch.span_id));
        let child = |name: &str| {
            let found = children.iter().find(|child| child.name == name);
            found.unwrap_or_else(|| panic!("{name} among {children:?}"))
        };
        let transaction = child("INSERT vote_audit");
        let ack = child(&format!("ack {}", stage.queue));
        assert_eq!(transaction.kind(), SpanKind::Client);
        let attributes = texts(&transaction.attributes);
        assert_eq!(attributes["db.system.name"], "postgresql");
        assert_eq!(attributes["db.namespace"], stage.database);
        assert_eq!(texts(&ack.attributes)["messaging.operation.type"], "settle");
        for child in &children {
            assert_eq!(child.trace_id, batch.trace_id);
            let within = batch.start_time_unix_nano..=batch.end_time_unix_nano;
            assert!(within.contains(&child.start_time_unix_nano), "{child:?}");
            assert!(within.contains(&child.end_time_unix_nano), "{child:?}");
        }
        let [trace, span] = [&batch.trace_id, &batch.span_id].map(|id| hex(id));
        let ids = format!("\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"");
        let line = log.lines().find(|line| line.contains("batch committed") && line.contains(&ids));
        assert_batch_fields(line.unwrap_or_else(|| panic!("{ids} in {log}")));
    }
    for line in log.lines() {
        serde_json::from_str::<Value>(line).expect("every line is JSON still");
    }
    for resource in collector.resources() {
        assert_eq!(resource["service.name"], "votes");
        assert_eq!(resource["deployment.environment.name"], "test");
    }
    let password = stage.servers.get("POSTGRES_PASSWORD");
    assert_lacks(&collector.everything(), &["citizen", "choice", "oui", password]);
}

#[tokio::test]
async fn over_tls_a_collector_is_trusted_for_its_authority_and_not_without() {
    let stage = Stage::migrated(Servers::shared(), "tls").await;
    let (collector, authority) = Collector::listen_tls().await;
    let service = start(&stage, &collector, &[]).await;
    stage.publish_votes(&votes(0, 5)).await;
    service.until_logged(ACCEPTS_NO_SPANS).await;
    service.stop().await;
    assert_eq!(collector.spans(), []);

    // Replaces the system's authorities.
    let files = Files::new("collector");
    let authority = files.write("authority.pem", &authority);
    let service = start(&stage, &collector, &[("SSL_CERT_FILE", &authority)]).await;
    stage.count(0, 10).await;
    let log = service.stop().await;
    assert!(!log.contains(ACCEPTS_NO_SPANS), "{log}");
    assert!(!batches(&stage, &collector).is_empty());
}

#[tokio::test]
async fn a_storm_of_retries_is_summarised_in_the_log_and_complete_in_the_traces() {
    let stage = Stage::migrated(Servers::shared(), "storm").await;
    let in_the_way = "CREATE FUNCTION in_the_way() RETURNS trigger LANGUAGE plpgsql AS \
        $$BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '40001'; END$$; \
        CREATE TRIGGER in_the_way BEFORE INSERT ON vote_audit EXECUTE FUNCTION in_the_way();";
    let collector = Collector::listen("http/protobuf").await;
    let small = settings("BATCH_SIZE=10 RABBITMQ_PREFETCH_COUNT=40 MAX_RETRY_ATTEMPTS=0");
    let service = start(&stage, &collector, &small).await;
    stage.execute(in_the_way).await;
    stage.publish_votes(&votes(0, 40)).await;
    service.until_logged("consuming stops until a write succeeds").await;
    let log = service.stop().await;

    let retrying = "batch not committed, trying again";
    let batches = batches(&stage, &collector);
    let events = batches.iter().flat_map(|batch| &batch.events);
    let events: Vec<_> = events.filter(|event| event.name.starts_with(retrying)).collect();
    assert!(events.len() > 20, "a storm: {}", events.len());
    for event in &events {
        assert_eq!(texts(&event.attributes)["sqlstate"], "40001");
    }
    for attempt in named(&collector.spans(), "INSERT vote_audit") {
        assert_eq!(attempt.status.map(|status| status.code()), Some(StatusCode::Error));
        assert_eq!(texts(&attempt.attributes)["db.response.status_code"], "40001");
    }
    let lines = log.lines().filter(|line| line.contains(retrying));
    let (summary, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("not logged"));
    assert_eq!(lines.len(), 10, "{log}");
    assert_eq!(summary.len(), 1, "{log}");
    let summary: Value = serde_json::from_str(summary[0]).expect("JSON");
    assert_eq!(summary["suppressed"], events.len() - 10, "{summary}");
    assert_eq!(summary["reason"], "retry");
    let given_up = log.lines().find(|line| line.contains("batch abandoned")).expect("in the log");
    lines.into_iter().chain([given_up]).for_each(assert_batch_fields);
    assert!(given_up.contains("\"attempt\":21"), "{given_up}");
    assert!(log.contains("\"sqlstate\":\"40001\""), "{log}");
}

/// It refuses connections, or accepts them and says nothing.
#[tokio::test]
async fn a_collector_that_does_not_answer_costs_neither_votes_nor_time_nor_more_than_a_line() {
    let stage = Stage::migrated(Servers::shared(), "dead").await;
    let ((_silent, silent), (listener, closed)) = (listen().await, listen().await);
    drop(listener);
    let mut all = Vec::new();
    let cases = [&silent, &closed].map(|port| [(port, "grpc"), (port, "http/protobuf")]);
    for (port, protocol) in cases.concat() {
        let traced = format!(
            "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:{port} \
             OTEL_EXPORTER_OTLP_PROTOCOL={protocol} OTEL_EXPORTER_OTLP_TIMEOUT=300 \
             OTEL_BSP_SCHEDULE_DELAY=50 OTEL_BSP_MAX_QUEUE_SIZE=16 BATCH_SIZE=10"
        );
        let mut service = stage.start(&settings(&traced)).await;
        let more = votes(all.len() as u64, 1_500);
        stage.publish_votes(&more).await;
        all.extend(more);
        stage.until_counted(all.len()).await;
        service.until_logged(ACCEPTS_NO_SPANS).await;
        let asked = Instant::now();
        service.signal(Signal::TERM);
        assert_eq!(service.exit_code().await, Some(0), "{port} {protocol}");
        // Two seconds for the spans at most; the rest is for a busy machine.
        assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
        let log = service.log();
        // A busy machine may cost a session or an attempt.
        let usual = ["session with RabbitMQ lost", "batch not committed", "exceeded slow"];
        let is_any = |line: &str, texts: &[&str]| texts.iter().any(|text| line.contains(text));
        let warned = log.lines().filter(|line| is_any(line, &["\"WARN\"", "\"ERROR\""]));
        let warned: Vec<_> = warned.filter(|line| !is_any(line, &usual)).collect();
        assert!(warned.len() == 1 && warned[0].contains(ACCEPTS_NO_SPANS), "{log}");
    }
    stage.assert_counted_exactly(&all).await;
}

#[tokio::test]
async fn without_the_variables_there_are_no_traces_and_nonsense_in_them_is_refused() {
    let (stage, service) = Stage::started("untraced", &[("LOG_LEVEL", "DEBUG")]).await;
    let traced = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")];
    stage.publish_to(&stage.queue, messages(&votes(0, 5)), &traced).await;
    stage.until_counted(5).await;
    let log = service.stop().await;
    assert!(log.contains("batch committed") && !log.contains("trace_id"), "{log}");

    let refused = stage.spawn(&[("OTEL_TRACES_EXPORTER", "zipkin")]).await;
    refused.assert_ends(78, &["OTEL_TRACES_EXPORTER is \"zipkin\""]).await;
}
