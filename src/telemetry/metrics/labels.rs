//! Values of labels: each a closed set, so that series stay bounded whatever happens.

/// Value of the label `error_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// A message that is no valid vote.
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

impl ErrorType {
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::Database, Self::Broker, Self::Unstorable, Self::Internal];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Database => "database",
            Self::Broker => "broker",
            Self::Unstorable => "unstorable",
            Self::Internal => "internal",
        }
    }
}

/// Where the session with the broker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SessionState {
    /// Not there yet, or lost and not there again.
    #[default]
    Connecting,
    Consuming,
    /// Given up by us, since no votes can be stored.
    Waiting,
    Stopped,
}

impl SessionState {
    pub const ALL: [Self; 4] = [Self::Connecting, Self::Consuming, Self::Waiting, Self::Stopped];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Consuming => "consuming",
            Self::Waiting => "waiting",
            Self::Stopped => "stopped",
        }
    }
}

/// Where the breaker before the store stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum BreakerState {
    #[default]
    Closed,
    /// Nothing is consumed until a probe write succeeds.
    Open,
    /// One batch at a time, until one commits.
    HalfOpen,
}

impl BreakerState {
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A server this service works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    RabbitMq,
    Postgres,
}

impl Side {
    pub(super) const ALL: [Self; 2] = [Self::RabbitMq, Self::Postgres];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Postgres => "postgres",
        }
    }
}

/// What the broker was told of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Acked,
    Rejected,
}

impl Outcome {
    pub(super) const ALL: [Self; 2] = [Self::Acked, Self::Rejected];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Acked => "acked",
            Self::Rejected => "rejected",
        }
    }
}

/// Classes of the SQLSTATEs that are tried again, `none` without a SQLSTATE, `other` for the rest.
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
    fn a_sqlstate_that_nobody_listed_makes_no_series_of_its_own() {
        assert_eq!(sqlstate_class(Some("40P01")), "40");
        assert_eq!(sqlstate_class(None), "none");
        for odd in ["", "4", "é", "ZZ999", "none"] {
            assert_eq!(sqlstate_class(Some(odd)), "other", "{odd:?}");
        }
    }
}
