//! The service against a real RabbitMQ and a real PostgreSQL, run by `script/test`.

mod broker;
mod counting;
mod demo;
mod health;
mod metrics;
mod outage;
mod poison;
mod process;
mod readme;
mod schema;
mod start;
mod support;
mod telemetry;
mod traces;
