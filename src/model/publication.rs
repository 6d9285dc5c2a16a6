//! The publication of results: its states, and which change may follow which.
//!
//! Architecture invariant: pure. The caller reads the table and gives a [`Publication`]; nothing here
//! looks at a clock.

use serde_json::{Value, json};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the public sees before the time, whatever the state.
pub const EMBARGOED: &str = "embargoed";

/// The reason on record of a withhold without one. A page has its own words for that.
pub const NO_REASON: &str = "withheld at once; no reason was given";

/// What the public sees of the results, once the time has come.
#[derive(Clone, Copy, Debug, Display, EnumString, IntoStaticStr, PartialEq, Eq, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum State {
    /// No number; what holds without any publication.
    Withheld,
    /// The counts so far, incomplete and unofficial.
    Counting,
    /// All votes are counted; unofficial, and may still move.
    Provisional,
    /// A frozen copy, behind a recount that agrees.
    Final,
}

impl State {
    /// The states in which results are public.
    pub const PUBLIC: [Self; 3] = [Self::Counting, Self::Provisional, Self::Final];

    /// Whether a publication in this state may follow one in `last`. Withholding is always possible.
    pub fn may_follow(self, last: Self) -> bool {
        use State::{Counting, Final, Provisional, Withheld};
        match self {
            Withheld => true,
            Counting => last != Final,
            Provisional => last != Withheld,
            Final => last == Provisional,
        }
    }
}

/// One row of result_publications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    pub id: i64,
    /// The row before it; none for the first.
    pub follows: Option<i64>,
    pub set_at: OffsetDateTime,
    /// The database user.
    pub set_by: String,
    pub state: State,
    /// Before this, nothing is public, whatever the state.
    pub not_before: OffsetDateTime,
    pub reason: String,
    /// A rehearsal's database; the same in all rows.
    pub test: bool,
    /// Of the frozen copy, in hexadecimal digits.
    pub sha256: Option<String>,
}

/// What the public may see at this moment: the row of published_state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub id: i64,
    /// `None` before the time: embargoed.
    pub state: Option<State>,
    pub not_before: OffsetDateTime,
    pub set_at: OffsetDateTime,
    pub test: bool,
    /// `None` before the time.
    pub reason: Option<String>,
    /// Of a final copy, in hexadecimal digits.
    pub sha256: Option<String>,
}

impl Published {
    /// Whether numbers are public.
    pub fn is_public(&self) -> bool {
        self.state.is_some_and(|state| State::PUBLIC.contains(&state))
    }

    pub fn state_name(&self) -> &'static str {
        self.state.map_or(EMBARGOED, Into::into)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "id": self.id,
            "state": self.state_name(),
            "not_before": rfc3339(self.not_before),
            "test": self.test,
        })
    }
}

/// One of all publications, as the public may see it: a row of published_history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedChange {
    pub id: i64,
    pub set_at: OffsetDateTime,
    pub state: State,
    pub not_before: OffsetDateTime,
    /// `None` while it may tell results.
    pub reason: Option<String>,
    /// Of a frozen copy that is public, in hexadecimal digits.
    pub sha256: Option<String>,
}

impl PublishedChange {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "id": self.id,
            "set_at": rfc3339(self.set_at),
            "state": self.state.to_string(),
            "not_before": rfc3339(self.not_before),
            "reason": self.reason,
            "results_sha256": self.sha256,
        })
    }
}

/// What an official asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub state: State,
    /// `None`: as before.
    pub not_before: Option<OffsetDateTime>,
    /// The new time once more, where it is earlier than the one before.
    pub earlier: Option<OffsetDateTime>,
    pub reason: String,
    pub test: bool,
}

/// The time and the test flag that a change results in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permitted {
    pub not_before: OffsetDateTime,
    pub test: bool,
}

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "{to} cannot follow {from}: the order is withheld, counting, provisional, final; provisional may \
         go back to counting, final to provisional, and everything to withheld"
    )]
    Order { from: State, to: State },
    #[error(
        "the first publication has to say from when on results may be public: \
         --not-before 2026-11-29T20:00:00+01:00"
    )]
    NoTime,
    #[error(
        "{} is earlier than {}, which holds now: if results may be public that early, give the new time \
         once more, as --earlier {}", rfc3339(*to), rfc3339(*from), rfc3339(*to)
    )]
    Earlier { from: OffsetDateTime, to: OffsetDateTime },
    #[error(
        "this database is {}: the first publication said so, and it cannot be changed. Use another \
         database", if *test { "a test's" } else { "not a test's" }
    )]
    Test { test: bool },
    #[error(
        "PUBLICATION_FOUR_EYES: {user:?} made the last change, and {what} needs another database user"
    )]
    SameUser { user: String, what: &'static str },
}

impl Change {
    /// What `user` may make of it after the last publication.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn after(
        &self,
        last: Option<&Publication>,
        user: &str,
        four_eyes: bool,
    ) -> Result<Permitted, Refusal> {
        let from = last.map_or(State::Withheld, |last| last.state);
        if !self.state.may_follow(from) {
            return Err(Refusal::Order { from, to: self.state });
        }
        let before = last.map(|last| last.not_before);
        let not_before = self.not_before.or(before).ok_or(Refusal::NoTime)?;
        let sooner = before.filter(|before| not_before < *before);
        if let Some(from) = sooner
            && self.earlier != Some(not_before)
        {
            return Err(Refusal::Earlier { from, to: not_before });
        }
        let test = last.map_or(self.test, |last| last.test);
        if self.test && !test {
            return Err(Refusal::Test { test });
        }
        let what = match self.state {
            State::Final => Some("final"),
            _ => sooner.map(|_| "an earlier time"),
        };
        match (last, what) {
            (Some(last), Some(what)) if four_eyes && last.set_by == user => {
                Err(Refusal::SameUser { user: user.to_owned(), what })
            }
            _ => Ok(Permitted { not_before, test }),
        }
    }
}

/// A time as it is typed, with its offset.
pub fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const EIGHT: OffsetDateTime = datetime!(2026-11-29 20:00 +1);
    const SEVEN: OffsetDateTime = datetime!(2026-11-29 19:00 +1);

    fn last(state: State) -> Publication {
        Publication {
            id: 3,
            follows: Some(2),
            set_at: SEVEN,
            set_by: "alice".to_owned(),
            state,
            not_before: EIGHT,
            reason: "the law".to_owned(),
            test: false,
            sha256: None,
        }
    }

    fn change(state: State) -> Change {
        Change { state, not_before: None, earlier: None, reason: "r".to_owned(), test: false }
    }

    #[test]
    fn every_pair_of_states_is_allowed_or_refused() {
        let allowed = "withheld→withheld withheld→counting counting→withheld counting→counting \
                       counting→provisional provisional→withheld provisional→counting \
                       provisional→provisional provisional→final final→withheld final→provisional";
        let mut found = Vec::new();
        for from in State::VARIANTS {
            for to in State::VARIANTS {
                match change(*to).after(Some(&last(*from)), "bob", false) {
                    Ok(_) => found.push(format!("{from}→{to}")),
                    Err(refusal) => {
                        assert_eq!(refusal, Refusal::Order { from: *from, to: *to });
                    }
                }
            }
        }
        assert_eq!(found.join(" "), allowed);
    }

    #[test]
    fn the_first_says_the_time_and_a_test_and_follows_withheld() {
        let first = Change { not_before: Some(EIGHT), test: true, ..change(State::Counting) };
        let permitted = Permitted { not_before: EIGHT, test: true };
        assert_eq!(first.after(None, "bob", true), Ok(permitted));
        assert_eq!(change(State::Counting).after(None, "bob", false), Err(Refusal::NoTime));
        let order = Refusal::Order { from: State::Withheld, to: State::Provisional };
        assert_eq!(change(State::Provisional).after(None, "bob", false), Err(order));
    }

    #[test]
    fn an_earlier_time_is_typed_twice_and_a_later_one_is_not() {
        let counting = last(State::Counting);
        let at = |not_before, earlier| {
            let change =
                Change { not_before: Some(not_before), earlier, ..change(State::Counting) };
            change.after(Some(&counting), "bob", false)
        };
        let permitted = |not_before| Ok(Permitted { not_before, test: false });
        let later = datetime!(2026-11-30 08:00 +1);
        assert_eq!(at(later, None), permitted(later));
        let refused = Err(Refusal::Earlier { from: EIGHT, to: SEVEN });
        assert_eq!(at(SEVEN, None), refused);
        assert_eq!(at(SEVEN, Some(EIGHT)), refused);
        // The same moment in another zone.
        assert_eq!(at(SEVEN, Some(datetime!(2026-11-29 18:00 UTC))), permitted(SEVEN));
        let text = Refusal::Earlier { from: EIGHT, to: SEVEN }.to_string();
        assert!(text.ends_with("--earlier 2026-11-29T19:00:00+01:00"), "{text}");
    }

    #[test]
    fn real_votes_cannot_become_a_test_and_a_test_stays_one() {
        let test = Change { test: true, ..change(State::Counting) };
        let refused = Err(Refusal::Test { test: false });
        assert_eq!(test.after(Some(&last(State::Counting)), "bob", false), refused);
        let rehearsal = Publication { test: true, ..last(State::Counting) };
        let permitted = change(State::Counting).after(Some(&rehearsal), "bob", false);
        assert!(permitted.is_ok_and(|permitted| permitted.test));
    }

    #[test]
    fn four_eyes_are_for_final_and_for_an_earlier_time() {
        let provisional = last(State::Provisional);
        let refused = |what| Err(Refusal::SameUser { user: "alice".to_owned(), what });
        let as_alice = |change: &Change| change.after(Some(&provisional), "alice", true);
        assert_eq!(as_alice(&change(State::Final)), refused("final"));
        let earlier =
            Change { not_before: Some(SEVEN), earlier: Some(SEVEN), ..change(State::Provisional) };
        assert_eq!(as_alice(&earlier), refused("an earlier time"));
        assert!(as_alice(&change(State::Counting)).is_ok());
        assert!(as_alice(&change(State::Withheld)).is_ok(), "one person may pull the plug");
        for change in [change(State::Final), earlier] {
            assert!(change.after(Some(&provisional), "bob", true).is_ok());
            assert!(change.after(Some(&provisional), "alice", false).is_ok());
        }
    }
}
