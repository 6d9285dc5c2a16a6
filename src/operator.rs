//! Tools beside the counting: checks, dead letters, publishing.

pub mod check;
pub mod dlq;
pub mod publish;
