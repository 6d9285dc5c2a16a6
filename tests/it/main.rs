//! The service against a real RabbitMQ and a real PostgreSQL, run by `script/test`.

mod broker;
mod counting;
mod demo;
mod deploy;
mod deployment;
mod health;
mod help;
mod hostile;
mod metrics;
mod outage;
mod planted;
mod poison;
mod process;
mod publish;
mod readme;
mod reconcile;
mod recount;
mod results;
mod roles;
mod schema;
mod service_manager;
mod start;
mod support;
mod telemetry;
mod tls;
mod traces;
