//! An OTLP receiver, over gRPC or HTTP, that keeps what it gets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use super::{Authority, Validity, listen};

/// What a client has to send in the header `authorization`.
const AUTHORIZATION: &str = "Bearer token";

/// A running collector, ended with this value.
pub struct Collector {
    endpoint: String,
    protocol: &'static str,
    kept: Kept,
    server: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Kept {
    fn keep(&self, request: ExportTraceServiceRequest) {
        self.0.lock().expect("no panic while held").push(request);
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        match request.metadata().get("authorization") {
            Some(value) if value == AUTHORIZATION => self.keep(request.into_inner()),
            _ => return Err(Status::unauthenticated("no token")),
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn export(State(kept): State<Kept>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["authorization"], AUTHORIZATION);
    kept.keep(ExportTraceServiceRequest::decode(body).expect("protobuf"));
    ExportTraceServiceResponse::default().encode_to_vec()
}

impl Collector {
    /// On a free port; `protocol` is `grpc` or `http/protobuf`.
    pub async fn listen(protocol: &'static str) -> Self {
        let (listener, port) = listen().await;
        let kept = Kept::default();
        let server = if protocol == "grpc" {
            Self::serve_grpc(Server::builder(), listener, kept.clone())
        } else {
            let router = Router::new().route("/v1/traces", post(export)).with_state(kept.clone());
            tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") })
        };
        Self { endpoint: format!("http://127.0.0.1:{port}"), protocol, kept, server }
    }

    /// Over gRPC and TLS; also returns the certificate of its authority, as PEM.
    pub async fn listen_tls() -> (Self, String) {
        let authority = Authority::new("collector's authority");
        let localhost = authority.issue("localhost", Validity::Today);
        let identity = Identity::from_pem(localhost.certificate, localhost.key);
        let tls = ServerTlsConfig::new().identity(identity);
        let builder = Server::builder().tls_config(tls).expect("a good certificate");
        let (listener, port) = listen().await;
        let kept = Kept::default();
        let server = Self::serve_grpc(builder, listener, kept.clone());
        let endpoint = format!("https://localhost:{port}");
        (Self { endpoint, protocol: "grpc", kept, server }, authority.pem)
    }

    fn serve_grpc(mut builder: Server, listener: TcpListener, kept: Kept) -> JoinHandle<()> {
        let server = builder.add_service(TraceServiceServer::new(kept));
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(async move { server.serve_with_incoming(incoming).await.expect("serves") })
    }

    /// The settings that lead a process to this collector, and have it send soon.
    pub fn settings(&self) -> [(&'static str, &str); 6] {
        [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &self.endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token"),
            ("OTEL_SERVICE_NAME", "votes"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ]
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.kept.0.lock().expect("no panic while held");
        let resources = kept.iter().flat_map(|request| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// The attributes of the resource of each request.
    pub fn resources(&self) -> Vec<BTreeMap<String, String>> {
        let kept = self.kept.0.lock().expect("no panic while held");
        let spans = kept.iter().flat_map(|request| &request.resource_spans);
        let resources = spans.filter_map(|spans| spans.resource.as_ref());
        resources.map(|resource| texts(&resource.attributes)).collect()
    }

    /// Everything that was received, for looking into.
    pub fn everything(&self) -> String {
        format!("{:?}", self.kept.0.lock().expect("no panic while held"))
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Attributes as text, whatever their type.
pub fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let value = |pair: &KeyValue| pair.value.as_ref().and_then(|any| any.value.as_ref().map(text));
    attributes.iter().map(|pair| (pair.key.clone(), value(pair).unwrap_or_default())).collect()
}
