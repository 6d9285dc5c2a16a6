//! Counts votes from a RabbitMQ queue into PostgreSQL, each exactly once.
//!
//! Where to start reading: [`pipeline`] is the dataflow, on one screen. [`supervisor`] keeps it on
//! a session, [`service`] puts it together.
//!
//! | room | knows | never knows |
//! |---|---|---|
//! | [`pipeline`] | the chain | AMQP, SQL |
//! | [`ports`] | what the chain needs from the outside: session, store, dead letters | how it is done |
//! | [`vote`] | the message | I/O |
//! | [`broker`] | AMQP | SQL |
//! | [`store`] | SQL, SQLSTATE | AMQP |
//! | [`tls`] | rustls, PEM files | AMQP, SQL |
//! | [`supervisor`] | sessions, the breaker | AMQP, SQL |
//! | [`retry`] | time | what is retried |
//! | [`telemetry`] | names, units, help texts | who calls |
//! | [`http`] | `/metrics`, `/livez`, `/readyz`, `/startupz` | the pipeline's inside |
//! | [`service_manager`] | `sd_notify` | the pipeline's inside |
//! | [`config`] | every setting | everything else |
//! | [`check`] | findings: rules over the configuration, what the broker's facts mean | AMQP, SQL |
//! | [`dlq`] | why a message is a dead letter, and which are meant | AMQP, SQL |
//! | [`publish`] | sample votes, files of votes | how votes are counted |
//! | [`results`] | sums, shares, rates | where a reading comes from |
//! | [`terminal`] | what a terminal obeys | what is shown |
//! | [`service`] | all of them, in the order of a start | |

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod broker;
pub mod check;
pub mod config;
pub mod dlq;
pub mod http;
pub mod pipeline;
pub mod ports;
pub mod publish;
pub mod results;
pub mod retry;
pub mod service;
pub mod service_manager;
pub mod store;
pub mod supervisor;
pub mod telemetry;
pub mod terminal;
pub mod tls;
pub mod vote;
