//! What any service needs: configuration, telemetry, TLS, HTTP, the service manager, retries.

pub mod config;
pub mod http;
pub mod retry;
pub mod service_manager;
pub mod telemetry;
pub mod terminal;
pub mod tls;
