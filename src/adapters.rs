//! RabbitMQ and PostgreSQL behind the ports: the only modules that know AMQP and SQL.

pub mod broker;
pub mod store;
