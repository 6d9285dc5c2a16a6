//! What the pipeline needs: a stream of deliveries, a channel that settles them, a store that counts,
//! and a place for votes that cannot be stored. The broker and the store implement these; so does a
//! simulation of both.

mod broker;
mod store;

pub use self::broker::{
    Broker, BrokerError, Channel, DeadLetter, DeadLetters, Delivery, DeliveryTag, OpenError,
    Session, TraceContext,
};
pub use self::store::{Class, Counted, Fault, Insert, LawCount, Store, Votes};
