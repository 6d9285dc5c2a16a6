//! Counts votes from a RabbitMQ queue into PostgreSQL, each exactly once.
//!
//! Where to start reading: [`counting::pipeline`] is the dataflow, on one screen.
//! [`counting::supervisor`] keeps it on a session, [`service`] puts it together.
//!
//! | folder | holds | never uses |
//! |---|---|---|
//! | [`service`] | the composition: a start and a stop, in their order | `cli` |
//! | [`operator`] | tools beside the counting: check, dead letters, publishing | `counting`, `service` |
//! | [`counting`] | the pipeline of a session, the supervisor of sessions | `adapters`, `operator`, `service` |
//! | [`adapters`] | AMQP and SQL behind the ports | `counting`, `operator`, `service` |
//! | [`platform`] | configuration, telemetry, TLS, HTTP, the service manager, retries | all above |
//! | [`model`] | votes, results, what counting asks of broker and store | everything else |

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod adapters;
pub mod counting;
pub mod model;
pub mod operator;
pub mod platform;
pub mod service;
