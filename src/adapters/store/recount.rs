//! The totals against the audit: every law counted anew from its audit rows.

use std::fmt;
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::Error;
use sqlx::postgres::PgConnection;

const RECOUNT: &str = include_str!("recount.sql");

/// Longest time for reading all of vote_audit; far above what a night's votes take.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);
/// The server has given up by then, or is not there any more.
pub(super) const DEADLINE: Duration = STATEMENT_TIMEOUT.saturating_add(Duration::from_secs(20));

/// One law's counts, `[oui, non]` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LawCounts {
    pub law_id: String,
    /// Rows of vote_audit.
    pub audit: [i64; 2],
    /// What vote_results says; 0 where it has no such law. Less than 0 is wrong, and possible.
    pub results: [i64; 2],
}

impl LawCounts {
    /// Votes that the totals have too many or too few, of both choices together.
    pub fn drift(&self) -> u64 {
        let drifts = self.audit.iter().zip(self.results).map(|(a, r)| a.abs_diff(r));
        drifts.fold(0, u64::saturating_add)
    }
}

impl fmt::Display for LawCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { law_id, audit, results } = self;
        // Quoted: a row that was written without the service may have any law_id.
        write!(
            f,
            "{law_id:?} audit {} oui {} non, results {} oui {} non",
            audit[0], audit[1], results[0], results[1]
        )
    }
}

/// The totals beside the audit, as one snapshot has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Laws in either table.
    pub laws: u64,
    /// Votes in the audit.
    pub votes: u64,
    /// Laws that differ.
    pub drift_laws: u64,
    /// Sum of what they differ by, law by law and choice by choice.
    pub drift_votes: u64,
    /// Those laws in the order of their names; not more than were asked for.
    pub differing: Vec<LawCounts>,
}

impl Comparison {
    pub const fn agrees(&self) -> bool {
        self.drift_laws == 0
    }

    /// Takes in one law; keeps it when it differs and fewer than `keep` are kept.
    pub(super) fn add(&mut self, law: LawCounts, keep: usize) {
        self.laws += 1;
        self.votes += law.audit.iter().map(|count| count.unsigned_abs()).sum::<u64>();
        let drift = law.drift();
        if drift > 0 {
            self.drift_laws += 1;
            self.drift_votes = self.drift_votes.saturating_add(drift);
            if self.differing.len() < keep {
                self.differing.push(law);
            }
        }
    }
}

/// Compares all laws in one statement; keeps at most `keep` of those that differ.
pub(super) async fn compare(
    connection: &mut PgConnection,
    keep: usize,
) -> Result<Comparison, Error> {
    let mut comparison = Comparison::default();
    let mut laws = sqlx::query_as(RECOUNT).persistent(false).fetch(connection);
    while let Some((law_id, audit_oui, audit_non, oui, non)) = laws.try_next().await? {
        let law = LawCounts { law_id, audit: [audit_oui, audit_non], results: [oui, non] };
        comparison.add(law, keep);
    }
    Ok(comparison)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn law(law_id: &str, audit: [i64; 2], results: [i64; 2]) -> LawCounts {
        LawCounts { law_id: law_id.to_owned(), audit, results }
    }

    #[test]
    fn drift_is_what_laws_and_choices_differ_by_and_does_not_cancel_out() {
        let mut comparison = Comparison::default();
        for law in [
            law("equal", [3, 4], [3, 4]),
            law("moved", [3, 4], [4, 3]),
            law("negative", [1, 0], [-1, 0]),
            law("lost", [5, 0], [0, 0]),
            law("empty", [0, 0], [0, 0]),
        ] {
            comparison.add(law, 2);
        }
        let kept: Vec<&str> = comparison.differing.iter().map(|l| l.law_id.as_str()).collect();
        assert_eq!(kept, ["moved", "negative"], "the first two of three");
        assert_eq!((comparison.drift_laws, comparison.drift_votes), (3, 2 + 2 + 5));
        assert_eq!((comparison.laws, comparison.votes), (5, 20));
        assert!(!comparison.agrees() && Comparison::default().agrees());
    }

    #[test]
    fn a_law_is_shown_with_both_counts_and_its_name_quoted() {
        let shown = law("a\nb", [3, 4], [4, -3]).to_string();
        assert_eq!(shown, r#""a\nb" audit 3 oui 4 non, results 4 oui -3 non"#);
        assert_eq!(law("far", [i64::MAX, i64::MAX], [i64::MIN, 0]).drift(), u64::MAX);
    }
}
