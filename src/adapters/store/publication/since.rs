//! What a retried change finds.

use crate::model::publication::{Change, Publication, State};

/// What happened since the attempt before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// Nothing, or nothing that stands in the way.
    Unchanged,
    /// That attempt, whose outcome was unknown, made the change.
    Made,
    /// Another change was made, also if it came behind this one.
    Conflict,
}

impl Since {
    /// `seen` is the id of the last row that the attempt before saw; `None`: there was no such attempt.
    pub(super) fn of(
        change: &Change,
        user: &str,
        seen: Option<Option<i64>>,
        last: Option<&Publication>,
    ) -> Self {
        let Some(seen) = seen else { return Self::Unchanged };
        let is_made = |last: &Publication| {
            (last.follows, last.state, &*last.set_by, &last.reason)
                == (seen, change.state, user, &change.reason)
        };
        if last.is_some_and(is_made) {
            Self::Made
        } else if change.state == State::Withheld || last.map(|last| last.id) == seen {
            Self::Unchanged
        } else {
            Self::Conflict
        }
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use time::macros::datetime;

    use super::*;

    const EIGHT: OffsetDateTime = datetime!(2026-11-29 19:00 UTC);

    fn row(id: i64, state: State, set_by: &str) -> Publication {
        Publication {
            id,
            follows: (id > 1).then_some(id - 1),
            set_at: EIGHT,
            set_by: set_by.to_owned(),
            state,
            not_before: EIGHT,
            reason: "decree".to_owned(),
            test: false,
            sha256: None,
        }
    }

    #[test]
    fn a_retry_behind_another_change_publishes_nothing_and_withholds() {
        use State::{Counting, Withheld};
        let since = |state, seen, last: Option<Publication>| {
            let reason = "decree".to_owned();
            let change = Change { state, not_before: None, earlier: None, reason, test: false };
            Since::of(&change, "alice", seen, last.as_ref())
        };
        let before = || Some(row(3, Counting, "bob"));
        for state in [Counting, Withheld] {
            assert_eq!(since(state, None, before()), Since::Unchanged, "the first attempt");
            assert_eq!(since(state, Some(Some(3)), before()), Since::Unchanged, "not made");
            let made = Some(row(4, state, "alice"));
            assert_eq!(since(state, Some(Some(3)), made), Since::Made);
            let first = Some(row(1, state, "alice"));
            assert_eq!(since(state, Some(None), first), Since::Made);
        }
        // Behind it, before it was made, and after a failover that lost what was seen.
        for other in [
            Some(row(5, Withheld, "bob")),
            Some(row(4, Withheld, "bob")),
            Some(row(4, Counting, "bob")),
            Some(row(2, Counting, "alice")),
            None,
        ] {
            assert_eq!(since(Counting, Some(Some(3)), other.clone()), Since::Conflict, "{other:?}");
            assert_eq!(
                since(Withheld, Some(Some(3)), other.clone()),
                Since::Unchanged,
                "{other:?}"
            );
        }
    }
}
