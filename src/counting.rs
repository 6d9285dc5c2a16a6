//! Deliveries to counted votes: the pipeline of a session, and the supervisor of sessions.

pub mod pipeline;
pub mod supervisor;
