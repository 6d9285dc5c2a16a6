//! What a vote is, what a result is and when it is public, what a log of counted votes is, and what counting asks of a
//! broker and of a store.

pub mod cell;
pub mod hex;
pub mod ports;
pub mod publication;
pub mod results;
pub mod tlog;
pub mod vote;
