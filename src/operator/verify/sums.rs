//! `verify sums`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::contents::votes;
use super::folder::Folder;
use super::{Findings, VerifyError, text};
use crate::model::tlog::entry::Counts;
use crate::model::tlog::policy::Policy;

/// The sums of a log's votes.
#[derive(Debug)]
pub struct Sums {
    /// By law, without lost votes; `None` where the log cannot be read.
    pub laws: Option<BTreeMap<String, Counts>>,
    /// Whether the log has its end, so that no further vote can follow.
    pub closed: bool,
    pub findings: Findings,
}

/// Results as `vote-aggregator results --json` and the board write them. Other fields do not matter.
#[derive(Deserialize)]
struct Totals {
    laws: Vec<Law>,
}

#[derive(Deserialize)]
struct Law {
    law_id: String,
    oui: i64,
    non: i64,
}

/// Adds up the votes of an opened log, and compares them with results and with what the log says at its end.
///
/// # Errors
/// [`VerifyError`]: files that cannot be read, and results that are not in this format.
pub fn sums(dir: &Path, policy: &Policy, totals: &Path) -> Result<Sums, VerifyError> {
    let read: Totals = serde_json::from_str(&text(totals)?).map_err(|error| {
        let problem = format!("not results in JSON, with laws, law_id, oui and non: {error}");
        VerifyError::Input { path: totals.to_owned(), problem }
    })?;
    let (folder, mut findings) = (Folder::new(dir), Findings::default());
    let Some(newest) = folder.newest(policy, &mut findings)? else {
        return Ok(Sums { laws: None, closed: false, findings });
    };
    let kept = folder.checkpoints(policy, &mut findings)?;
    let mut laws: BTreeMap<String, Counts> = BTreeMap::new();
    let contents = votes(
        &folder,
        (policy, &newest.checkpoint),
        &kept,
        &mut findings,
        |index, vote, contents, _| {
            if contents.counts(index) {
                *laws.entry(vote.law_id.clone()).or_default().of(vote.choice) += 1;
            }
        },
    );
    let Some(contents) = contents else {
        return Ok(Sums { laws: None, closed: false, findings });
    };
    let mut results: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    for Law { law_id, oui, non } in &read.laws {
        if results.insert(law_id, [*oui, *non]).is_some() {
            findings.add(format_args!("{}: {law_id} is there twice", totals.display()));
        }
    }
    let names: BTreeSet<&str> =
        laws.keys().map(String::as_str).chain(results.keys().copied()).collect();
    for law_id in names {
        let Counts { oui, non } = laws.get(law_id).copied().unwrap_or_default();
        let [total_oui, total_non] = results.get(law_id).copied().unwrap_or_default();
        if [Ok(oui), Ok(non)] != [u64::try_from(total_oui), u64::try_from(total_non)] {
            findings.add(format_args!(
                "{law_id}: the log has {oui} oui and {non} non, the results {total_oui} and {total_non}"
            ));
        }
    }
    if let Some(close) = &contents.close {
        let rows = laws.values().map(|law| law.oui + law.non).sum::<u64>();
        // Corrections and erasures may follow; votes may not.
        if close.laws != laws || close.rows != rows {
            findings.add("the sums in the log's close entry are not those of its votes");
        }
    }
    Ok(Sums { laws: Some(laws), closed: contents.close.is_some(), findings })
}
