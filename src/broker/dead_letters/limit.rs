//! How often a message may be given back.

/// The lowest delivery limit seen in use: what is assumed where policies can't be seen.
const UNSEEN_LIMIT: i64 = 3;
/// What RabbitMQ 4 takes where nothing is set; 3.x takes none for it.
const DEFAULT_LIMIT: i64 = 20;

/// How often a quorum queue lets a message be given back before it drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryLimit {
    /// By an argument of the queue, or by a policy.
    Set(i64),
    /// Neither argument nor policy: none on RabbitMQ 3, 20 on RabbitMQ 4.
    Unset,
    /// No argument, and policies can't be seen without the management API.
    Unknown,
}

impl DeliveryLimit {
    /// Whether a message that was given back so often had better not be given back again. One time
    /// is kept in reserve, for a look that is killed half-way.
    pub(super) fn is_near(self, given_back: i64) -> bool {
        let limit = match self {
            Self::Set(limit) => limit,
            Self::Unset => DEFAULT_LIMIT,
            Self::Unknown => UNSEEN_LIMIT,
        };
        given_back >= limit - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_time_of_giving_back_is_kept_in_reserve() {
        for (limit, last_safe) in [
            (DeliveryLimit::Set(5), Some(3)),
            (DeliveryLimit::Set(1), None),
            // RabbitMQ 3.10 drops at the first requeue; 4.x means no limit.
            (DeliveryLimit::Set(-1), None),
            (DeliveryLimit::Unset, Some(18)),
            (DeliveryLimit::Unknown, Some(1)),
        ] {
            let safe = (0..100).take_while(|count| !limit.is_near(*count)).last();
            assert_eq!(safe, last_safe, "{limit:?}");
        }
    }
}
