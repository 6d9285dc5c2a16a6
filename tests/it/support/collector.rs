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

use super::{Authority, Validity};

/// A running collector; it ends with this value.
pub struct Collector {
    endpoint: String,
    protocol: &'static str,
    kept: Kept,
    server: JoinHandle<()>,
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<(ExportTraceServiceRequest, String)>>>);

impl Kept {
    fn keep(&self, request: ExportTraceServiceRequest, authorization: &str) {
        let mut kept = self.0.lock().expect("no panic while held");
        kept.push((request, authorization.to_owned()));
    }
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let authorization = authorization.to_owned();
        self.keep(request.into_inner(), &authorization);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

async fn export(State(kept): State<Kept>, headers: HeaderMap, body: Bytes) -> Vec<u8> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let request = ExportTraceServiceRequest::decode(body).expect("protobuf");
    let authorization = headers.get("authorization").and_then(|value| value.to_str().ok());
    kept.keep(request, authorization.unwrap_or_default());
    ExportTraceServiceResponse::default().encode_to_vec()
}

impl Collector {
    /// On a free port; `protocol` is `grpc` or `http/protobuf`.
    pub async fn listen(protocol: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let kept = Kept::default();
        let state = kept.clone();
        let server = tokio::spawn(async move {
            if protocol == "grpc" {
                let service = TraceServiceServer::new(state);
                let incoming = TcpListenerStream::new(listener);
                let server = Server::builder().add_service(service);
                server.serve_with_incoming(incoming).await.expect("serves");
            } else {
                let router = Router::new().route("/v1/traces", post(export)).with_state(state);
                axum::serve(listener, router).await.expect("serves");
            }
        });
        Self { endpoint, protocol, kept, server }
    }

    /// Over gRPC and TLS, and the certificate of the authority that vouches for it, as PEM.
    pub async fn listen_tls() -> (Self, String) {
        let authority = Authority::new("collector's authority");
        let localhost = authority.issue("localhost", Validity::Today);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let kept = Kept::default();
        let service = TraceServiceServer::new(kept.clone());
        let identity = Identity::from_pem(localhost.certificate, localhost.key);
        let server = tokio::spawn(async move {
            let tls = ServerTlsConfig::new().identity(identity);
            let mut server = Server::builder().tls_config(tls).expect("a good certificate");
            let incoming = TcpListenerStream::new(listener);
            server.add_service(service).serve_with_incoming(incoming).await.expect("serves");
        });
        let endpoint = format!("https://localhost:{port}");
        (Self { endpoint, protocol: "grpc", kept, server }, authority.pem)
    }

    /// The variables that lead a process to this collector, and have it send soon.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.endpoint.clone()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", self.protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20token".to_owned()),
            ("OTEL_SERVICE_NAME", "votes".to_owned()),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".to_owned()),
            ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
        ]
    }

    /// Every span so far.
    pub fn spans(&self) -> Vec<Span> {
        let kept = self.kept.0.lock().expect("no panic while held");
        let resources = kept.iter().flat_map(|(request, _)| &request.resource_spans);
        let scopes = resources.flat_map(|resource| &resource.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    /// What came with them: attributes of the resources, and the header `authorization`.
    pub fn resources(&self) -> Vec<(BTreeMap<String, String>, String)> {
        let kept = self.kept.0.lock().expect("no panic while held");
        kept.iter()
            .flat_map(|(request, authorization)| {
                let of = |attributes: &[KeyValue]| (texts(attributes), authorization.clone());
                let resources = request.resource_spans.iter();
                resources.filter_map(move |spans| Some(of(&spans.resource.as_ref()?.attributes)))
            })
            .collect()
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
