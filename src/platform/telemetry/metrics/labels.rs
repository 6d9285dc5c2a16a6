//! Values of labels: each a closed set, so that series stay bounded whatever happens.

use strum::{IntoStaticStr, VariantArray};

/// Value of the label `error_type`.
#[derive(Clone, Copy, Debug, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(super) enum ErrorType {
    /// An invalid message.
    Malformed,
    /// A transaction failed.
    Database,
    /// A session with the broker failed, or could not be opened.
    Broker,
    /// A valid vote that the database refuses for what is in it.
    Unstorable,
    /// A mistake of this service.
    Internal,
}

/// State of the session with the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SessionState {
    /// Not open yet, or lost.
    #[default]
    Connecting,
    Consuming,
    /// Closed by us, since no votes can be stored.
    Waiting,
    Stopped,
}

/// State of the breaker before the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum BreakerState {
    #[default]
    Closed,
    /// Nothing is consumed until a probe write succeeds.
    Open,
    /// One batch at a time, until one commits.
    HalfOpen,
}

/// How a plain INSERT of a batch ended.
#[derive(Clone, Copy, Debug, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum PlainInsert {
    Committed,
    /// A `vote_hash` of the batch was in the audit already.
    Conflict,
}

/// Servers that are reconnected to.
pub(super) const SIDES: [&str; 2] = ["rabbitmq", "postgres"];

/// How a delivery was settled.
pub(super) const OUTCOMES: [&str; 2] = ["acked", "rejected"];

/// Classes of the SQLSTATEs that are retried, `none` without a SQLSTATE, `other` for the rest.
pub(super) const SQLSTATE_CLASSES: [&str; 10] =
    ["08", "23", "25", "26", "40", "53", "55", "57", "none", "other"];

/// The label of a SQLSTATE: its first two characters, when they are one of those known.
pub(super) fn sqlstate_class(sqlstate: Option<&str>) -> &'static str {
    let Some(sqlstate) = sqlstate else { return "none" };
    let class = sqlstate.get(..2).unwrap_or_default();
    SQLSTATE_CLASSES.into_iter().find(|known| *known == class).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unlisted_sqlstate_makes_no_series_of_its_own() {
        assert_eq!(sqlstate_class(Some("40P01")), "40");
        assert_eq!(sqlstate_class(None), "none");
        for odd in ["", "4", "é", "ZZ999", "none"] {
            assert_eq!(sqlstate_class(Some(odd)), "other", "{odd:?}");
        }
    }
}
