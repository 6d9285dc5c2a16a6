//! Traces, as a real OTLP receiver gets them; and a collector that is not there.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::time::Instant;
use vote_aggregator::adapters::broker::RabbitMq;

use crate::support::collector::texts;
use crate::support::{Collector, Servers, Service, Stage, message, votes};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Publishes `count` votes, each in a trace of its own; the ids of these traces.
async fn publish_traced(stage: &Stage<'_>, count: u64) -> BTreeSet<String> {
    let rabbitmq = RabbitMq::new(stage.config(&[]).rabbitmq);
    let publisher = rabbitmq.publisher().await.expect("RabbitMQ takes a publisher");
    let mut traces = BTreeSet::new();
    for (number, vote) in votes(0, count).iter().enumerate() {
        let trace = format!("{:032x}", 0xabcd_0000 + number);
        let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
        let headers = [("traceparent", traceparent.as_str())];
        let confirm = publisher.publish(&stage.queue, &message(vote), &headers).await;
        confirm.expect("sent").await.expect("confirmed");
        traces.insert(trace);
    }
    publisher.close().await.expect("closed");
    traces
}

fn named(spans: &[Span], name: &str) -> Vec<Span> {
    spans.iter().filter(|span| span.name == name).cloned().collect()
}

fn variables(of: &Collector) -> Vec<(&'static str, String)> {
    of.variables()
}

async fn start(stage: &Stage<'_>, variables: &[(&'static str, String)]) -> Service {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &**value)).collect();
    stage.start(&variables).await
}

async fn a_batch_is_one_span_linked_to_all_its_messages(protocol: &'static str) {
    let stage = Stage::migrated(Servers::shared(), "traced").await;
    let collector = Collector::listen(protocol).await;
    let sent = publish_traced(&stage, 200).await;
    let mut settings = variables(&collector);
    settings.extend(
        [("BATCH_SIZE", "200"), ("RABBITMQ_PREFETCH_COUNT", "200"), ("LOG_LEVEL", "DEBUG")]
            .map(|(name, value)| (name, value.to_owned())),
    );
    let service = start(&stage, &settings).await;
    stage.until_counted(200).await;
    let log = service.stop().await;

    // Stopped: everything is sent.
    let spans = collector.spans();
    let batches = named(&spans, &format!("process {}", stage.queue));
    let links: BTreeSet<_> =
        batches.iter().flat_map(|batch| &batch.links).map(|link| hex(&link.trace_id)).collect();
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
        let children: Vec<_> =
            spans.iter().filter(|span| span.parent_span_id == batch.span_id).collect();
        let child = |name: &str| {
            let mut named = children.iter().filter(|child| child.name == name);
            named.next().unwrap_or_else(|| panic!("{name} among {children:?}"))
        };
        let (transaction, ack) =
            (child("INSERT vote_audit"), child(&format!("ack {}", stage.queue)));
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
        let ids = format!(
            "\"trace_id\":\"{}\",\"span_id\":\"{}\"",
            hex(&batch.trace_id),
            hex(&batch.span_id)
        );
        let line = log.lines().find(|line| line.contains("batch committed") && line.contains(&ids));
        let line = line.unwrap_or_else(|| panic!("{ids} in {log}"));
        assert_eq!(batch_fields(line), ["attempt", "batch", "elapsed", "law_count", "votes"]);
    }
    for line in log.lines() {
        serde_json::from_str::<serde_json::Value>(line).expect("every line is JSON still");
    }
    for (resource, authorization) in collector.resources() {
        assert_eq!(resource["service.name"], "votes");
        assert_eq!(resource["deployment.environment.name"], "test");
        assert_eq!(authorization, "Bearer token");
    }
    let everything = collector.everything();
    for secret in ["citizen", "choice", "oui", stage.servers.get("POSTGRES_PASSWORD")] {
        assert!(!everything.contains(secret), "{secret:?} in a trace");
    }
}

#[tokio::test]
async fn over_grpc_a_batch_is_one_span_linked_to_all_its_messages() {
    a_batch_is_one_span_linked_to_all_its_messages("grpc").await;
}

#[tokio::test]
async fn over_http_a_batch_is_one_span_linked_to_all_its_messages() {
    a_batch_is_one_span_linked_to_all_its_messages("http/protobuf").await;
}

#[tokio::test]
async fn over_tls_a_collector_is_trusted_for_its_authority_and_not_without() {
    let stage = Stage::migrated(Servers::shared(), "tls").await;
    let (collector, authority) = Collector::listen_tls().await;
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.pem", stage.queue));
    std::fs::write(&file, authority).expect("written");
    let mut settings = variables(&collector);
    let service = start(&stage, &settings).await;
    publish_traced(&stage, 5).await;
    service.until_logged("the collector takes no spans").await;
    service.stop().await;
    assert_eq!(collector.spans(), []);

    // Where the system's authorities are looked for.
    settings.push(("SSL_CERT_FILE", file.display().to_string()));
    let service = start(&stage, &settings).await;
    publish_traced(&stage, 10).await;
    stage.until_counted(10).await;
    let log = service.stop().await;
    assert!(!log.contains("the collector takes no spans"), "{log}");
    assert!(!named(&collector.spans(), &format!("process {}", stage.queue)).is_empty());
}

#[tokio::test]
async fn a_retry_is_an_event_with_its_sqlstate_and_its_try_a_failed_span() {
    let stage = Stage::migrated(Servers::shared(), "retried").await;
    let collector = Collector::listen("http/protobuf").await;
    let service = start(&stage, &variables(&collector)).await;
    let mut other = stage.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("LOCK TABLE vote_audit").execute(&mut *other).await.expect("locked");
    publish_traced(&stage, 5).await;
    service.until_logged("batch not committed, trying again").await;
    other.rollback().await.expect("unlocked");
    stage.until_counted(5).await;
    service.stop().await;

    let spans = collector.spans();
    let batches = named(&spans, &format!("process {}", stage.queue));
    let events: Vec<_> = batches.iter().flat_map(|batch| &batch.events).collect();
    let retry = events.iter().find(|event| texts(&event.attributes).contains_key("sqlstate"));
    let retry = retry.unwrap_or_else(|| panic!("an event of the retry in {events:?}"));
    assert_eq!(texts(&retry.attributes)["sqlstate"], "55P03");
    let tries = named(&spans, "INSERT vote_audit");
    let codes: Vec<_> = tries
        .iter()
        .map(|span| {
            let code = texts(&span.attributes).get("db.response.status_code").cloned();
            (span.status.as_ref().map(|status| status.code()), code)
        })
        .collect();
    assert!(codes.contains(&(Some(StatusCode::Error), Some("55P03".to_owned()))), "{codes:?}");
    assert!(codes.iter().any(|(_, code)| code.is_none()), "one went well: {codes:?}");
}

#[tokio::test]
async fn a_storm_of_retries_is_summarised_in_the_log_and_told_in_full_by_the_traces() {
    let stage = Stage::migrated(Servers::shared(), "storm").await;
    let in_the_way = "CREATE FUNCTION in_the_way() RETURNS trigger LANGUAGE plpgsql AS \
        $$BEGIN RAISE EXCEPTION 'in the way' USING ERRCODE = '40001'; END$$; \
        CREATE TRIGGER in_the_way BEFORE INSERT ON vote_audit EXECUTE FUNCTION in_the_way();";
    let collector = Collector::listen("http/protobuf").await;
    let mut settings = variables(&collector);
    settings.extend(
        [("BATCH_SIZE", "10"), ("RABBITMQ_PREFETCH_COUNT", "40"), ("MAX_RETRY_ATTEMPTS", "0")]
            .map(|(name, value)| (name, value.to_owned())),
    );
    let service = start(&stage, &settings).await;
    sqlx::raw_sql(in_the_way).execute(&stage.sql).await.expect("a trigger");
    publish_traced(&stage, 40).await;
    service.until_logged("consuming stops until a write succeeds").await;
    let log = service.stop().await;

    let retrying = "batch not committed, trying again";
    let spans = collector.spans();
    let batches = named(&spans, &format!("process {}", stage.queue));
    let events = batches.iter().flat_map(|batch| &batch.events);
    let events: Vec<_> = events.filter(|event| event.name.starts_with(retrying)).collect();
    assert!(events.len() > 20, "a storm: {}", events.len());
    for event in &events {
        assert_eq!(texts(&event.attributes)["sqlstate"], "40001");
    }
    let lines = log.lines().filter(|line| line.contains(retrying));
    let (summary, lines): (Vec<_>, Vec<_>) = lines.partition(|line| line.contains("not logged"));
    assert_eq!(lines.len(), 10, "{log}");
    assert_eq!(summary.len(), 1, "{log}");
    let summary: serde_json::Value = serde_json::from_str(summary[0]).expect("JSON");
    assert_eq!(summary["suppressed"], events.len() - 10, "{summary}");
    assert_eq!(summary["reason"], "retry");
    for line in lines {
        assert_eq!(batch_fields(line), ["attempt", "batch", "elapsed", "law_count", "votes"]);
    }
    let given_up = log.lines().find(|line| line.contains("batch given up")).expect("in the log");
    assert_eq!(batch_fields(given_up), ["attempt", "batch", "elapsed", "law_count", "votes"]);
    assert!(given_up.contains("\"attempt\":21"), "{given_up}");
    assert!(log.contains("\"sqlstate\":\"40001\""), "{log}");
}

/// Which of the fields that every line about a batch has are in this one; each is a number.
fn batch_fields(line: &str) -> Vec<String> {
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let fields = line.as_object().expect("an object");
    let known = ["batch", "votes", "law_count", "attempt", "elapsed"];
    let mut found: Vec<_> = fields
        .iter()
        .filter(|(name, value)| known.contains(&name.as_str()) && value.is_number())
        .map(|(name, _)| name.clone())
        .collect();
    found.sort();
    found
}

#[tokio::test]
async fn publish_sends_a_trace_that_its_votes_are_found_in() {
    let stage = Stage::migrated(Servers::shared(), "sends").await;
    let collector = Collector::listen("grpc").await;
    let service = start(&stage, &variables(&collector)).await;
    let mut environment = stage.environment();
    environment.extend(variables(&collector).into_iter().map(|(name, v)| (name.to_owned(), v)));
    let sample = ["publish", "--count", "50"];
    let mut publisher = Service::spawn(&stage.queue, &sample, &environment).await;
    assert_eq!(publisher.exit_code().await, Some(0));
    stage.until_counted(50).await;
    service.stop().await;

    let spans = collector.spans();
    let sent = named(&spans, &format!("send {}", stage.queue));
    assert!(sent.iter().all(|span| span.kind() == SpanKind::Producer));
    let sent: BTreeSet<_> = sent.iter().map(|span| (&span.trace_id, &span.span_id)).collect();
    let batches = named(&spans, &format!("process {}", stage.queue));
    let links = batches.iter().flat_map(|batch| &batch.links);
    let linked: BTreeSet<_> = links.map(|link| (&link.trace_id, &link.span_id)).collect();
    assert_eq!((sent.len(), linked.len()), (50, 50));
    assert_eq!(sent, linked);
}

/// Refuses connections, or takes them and says nothing.
#[tokio::test]
async fn a_collector_that_is_dead_costs_neither_votes_nor_time_nor_more_than_a_line() {
    let stage = Stage::migrated(Servers::shared(), "dead").await;
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let silent = (silent.local_addr().expect("bound").to_string(), Some(silent));
    let refusing = {
        let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        (closed.local_addr().expect("bound").to_string(), None)
    };
    let mut all = Vec::new();
    for (number, (address, _kept)) in [&silent, &refusing].into_iter().enumerate() {
        for protocol in ["grpc", "http/protobuf"] {
            let endpoint = format!("http://{address}");
            let mut service = stage
                .start(&[
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint),
                    ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                    ("OTEL_EXPORTER_OTLP_TIMEOUT", "300"),
                    ("OTEL_BSP_SCHEDULE_DELAY", "50"),
                    ("OTEL_BSP_MAX_QUEUE_SIZE", "16"),
                    ("BATCH_SIZE", "10"),
                ])
                .await;
            let more = votes(all.len() as u64, 1_500);
            stage.publish_votes(&more).await;
            all.extend(more);
            stage.until_counted(all.len()).await;
            service.until_logged("the collector takes no spans").await;
            let asked = Instant::now();
            service.signal(Signal::TERM);
            assert_eq!(service.exit_code().await, Some(0), "{number} {protocol}");
            // Two seconds for the spans at the most, and the rest is a busy machine.
            assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
            assert_eq!(service.logged("the collector takes no spans"), 1, "{}", service.log());
            // A busy machine may cost a session or a try; that is not what is asked here.
            let usual =
                ["session with RabbitMQ lost", "batch not committed", "exceeded slow threshold"];
            let log = service.log();
            let warned = log.lines().filter(|line| {
                (line.contains("\"WARN\"") || line.contains("\"ERROR\""))
                    && !usual.iter().any(|usual| line.contains(usual))
            });
            assert_eq!(warned.count(), 1, "no storm of anybody's making: {log}");
        }
    }
    stage.assert_counted_exactly(&all).await;
}

#[tokio::test]
async fn without_the_variables_there_are_no_traces_and_nonsense_in_them_is_refused() {
    let stage = Stage::migrated(Servers::shared(), "untraced").await;
    let service = stage.start(&[("LOG_LEVEL", "DEBUG")]).await;
    publish_traced(&stage, 5).await;
    stage.until_counted(5).await;
    let log = service.stop().await;
    assert!(log.contains("batch committed") && !log.contains("trace_id"), "{log}");

    let mut refused = stage.spawn(&[("OTEL_TRACES_EXPORTER", "zipkin")]).await;
    assert_eq!(refused.exit_code().await, Some(78));
    assert!(refused.log().contains("OTEL_TRACES_EXPORTER is \"zipkin\""), "{}", refused.log());
}
