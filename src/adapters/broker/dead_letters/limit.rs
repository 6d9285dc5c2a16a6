//! How often a message may be requeued.

/// The lowest delivery limit seen in use: assumed where policies are unknown.
const ASSUMED_LIMIT: i64 = 3;
/// RabbitMQ 4's default; 3.x has none.
const DEFAULT_LIMIT: i64 = 20;

/// How often a quorum queue takes a message back before it drops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryLimit {
    /// By an argument of the queue, or by a policy.
    Set(i64),
    /// Neither argument nor policy: none on RabbitMQ 3, 20 on RabbitMQ 4.
    Unset,
    /// No argument, and policies are unknown without the management API.
    Unknown,
}

impl DeliveryLimit {
    /// Whether a message with this delivery count should not be requeued again. One requeue is kept
    /// in reserve, for a command that is killed half-way.
    pub(super) fn is_near(self, delivery_count: i64) -> bool {
        let limit = match self {
            Self::Set(limit) => limit,
            Self::Unset => DEFAULT_LIMIT,
            Self::Unknown => ASSUMED_LIMIT,
        };
        delivery_count >= limit - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_requeue_is_kept_in_reserve() {
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
