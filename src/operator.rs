//! Tools beside the counting: the public board, checks, dead letters, publishing, verification, sealing.

pub mod board;
pub mod check;
pub mod dlq;
pub mod files;
pub mod publish;
pub mod seal;
pub mod verify;
