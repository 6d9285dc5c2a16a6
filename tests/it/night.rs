//! A whole election night as a rehearsal: votes are counted before the opening, while results are public, and after the
//! final one, and each version that the public could read is compared with the audit. `NIGHT_VOTES` sets how many.

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use crate::browser::publish;
use crate::support::tables::Totals;
use crate::support::{BINARY, Files, PATIENCE, Servers, Service, Stage, eventually_within, login};

/// A build without optimisation counts them in less than a minute.
const VOTES: &str = "40000";
const LATE: u64 = 30;
const LAWS: i64 = 5;

/// Everything that was public, in order.
struct Night<'s> {
    stage: &'s Stage<'s>,
    folder: Files,
    last: Option<Value>,
    /// How many different versions each state had.
    versions: BTreeMap<String, usize>,
}

impl Night<'_> {
    /// Reads what is public now and checks it against what was before, and against the audit.
    async fn look(&mut self) -> Option<Value> {
        let text = fs::read_to_string(self.folder.join("results.json")).ok()?;
        let now: Value = serde_json::from_str(&text).expect("whole at any time");
        assert_eq!(now["test"], true, "a rehearsal from the first version on");
        let state = now["publication"]["state"].as_str().expect("a state").to_owned();
        let is_new =
            |last: &Value| (&last["as_of"], &last["laws"]) != (&now["as_of"], &now["laws"]);
        if self.last.as_ref().is_none_or(is_new) {
            *self.versions.entry(state.clone()).or_default() += 1;
            let before = self.last.as_ref().map(counts).unwrap_or_default();
            let shown = counts(&now);
            if now["as_of"].is_null() {
                assert!(shown.is_empty(), "{state}: {shown:?}");
            } else {
                self.check(&state, &before, &shown, &now).await;
            }
            self.last = Some(now.clone());
        }
        Some(now)
    }

    async fn check(&self, state: &str, before: &Totals, shown: &Totals, now: &Value) {
        let as_of = time(&now["as_of"]);
        let opens = time(&now["publication"]["not_before"]);
        assert!(as_of >= opens, "{as_of} is before {opens}");
        // A transaction that has ended by then began before it.
        let audit: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT law_id, count(*) FILTER (WHERE choice = 'oui'), \
                 count(*) FILTER (WHERE choice = 'non') \
             FROM vote_audit WHERE recorded_at <= $1 GROUP BY law_id",
        )
        .bind(as_of)
        .fetch_all(&self.stage.sql)
        .await
        .expect("the audit can be read");
        let audit: Totals = audit.into_iter().map(|(law, oui, non)| (law, [oui, non])).collect();
        for (law, [oui, non]) in shown {
            let [counted_oui, counted_non] = audit.get(law).copied().unwrap_or_default();
            assert!(
                *oui <= counted_oui && *non <= counted_non,
                "{law} at {as_of}: {shown:?}, {audit:?}"
            );
            let Some([old_oui, old_non]) = before.get(law) else { continue };
            assert!(oui >= old_oui && non >= old_non, "{law} went down: {before:?}, {shown:?}");
            let step = oui + non - old_oui - old_non;
            assert!(step == 0 || step >= 10 || state != "counting", "{law}: a step of {step}");
        }
        let missing = before.keys().find(|law| !shown.contains_key(*law));
        assert_eq!(missing, None, "a law is gone");
    }

    /// Looks until what is public is as wanted.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        self.until_within(PATIENCE, what, async |now| holds(now)).await
    }

    async fn until_within(
        &mut self,
        limit: Duration,
        what: &str,
        mut holds: impl AsyncFnMut(&Value) -> bool,
    ) -> Value {
        let mut found = Value::Null;
        eventually_within(limit, what, async || match self.look().await {
            Some(now) if holds(&now).await => {
                found = now;
                true
            }
            _ => false,
        })
        .await;
        found
    }
}

fn time(value: &Value) -> OffsetDateTime {
    let text = value.as_str().expect("a time");
    OffsetDateTime::parse(text, &Rfc3339).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The laws with numbers.
fn counts(results: &Value) -> Totals {
    let laws = results["laws"].as_array().expect("laws").iter();
    let laws = laws.filter(|law| !law["oui"].is_null());
    laws.map(|law| {
        let count = |choice: &str| law[choice].as_i64().expect("a number");
        (law["law_id"].as_str().expect("a law").to_owned(), [count("oui"), count("non")])
    })
    .collect()
}

fn is(state: &str) -> impl FnMut(&Value) -> bool {
    move |now| now["publication"]["state"] == state
}

#[tokio::test]
async fn every_version_of_a_night_agrees_with_the_audit() {
    let votes = std::env::var("NIGHT_VOTES").unwrap_or_else(|_| VOTES.to_owned());
    let number: u32 = votes.parse().expect("NIGHT_VOTES is a number");
    let began = Instant::now();
    let stage = Stage::with_roles(Servers::shared(), "wholenight").await;
    publish(&stage, "counting", &["--not-before", &stage.soon("1 hour").await, "--test"]).await;
    let folder = Files::new("night");
    let role = stage.role("board", "IN ROLE vote_board").await;
    let environment = stage.environment_with(&login(&role));
    let out = folder.path();
    let arguments = ["board", "--admin", "127.0.0.1:0", "--out", &out];
    let board = Service::spawn(&stage.queue, &arguments, &environment).await;
    let mut night = Night { stage: &stage, folder, last: None, versions: BTreeMap::new() };
    night.until("embargoed", is("embargoed")).await;

    // Counting begins long before the opening, and ends long after it.
    let service = stage.start(&[("METRICS_TOTALS", "sums")]).await;
    let rate = (number / 40).max(1).to_string();
    let sample = ["publish", "--count", &votes, "--laws", &LAWS.to_string(), "--rate", &rate];
    let mut publisher = stage.command(BINARY, &sample);
    publisher.stdout(Stdio::null()).stderr(Stdio::null());
    let mut publisher = publisher.spawn().expect("it runs");
    stage.until_counted(1_000).await;
    let embargoed = night.look().await.expect("written");
    assert_eq!(embargoed["publication"]["state"], "embargoed");
    let opening = stage.soon("4 seconds").await;
    publish(&stage, "counting", &["--not-before", &opening, "--earlier", &opening]).await;
    night.until("public", is("counting")).await;
    let limit = PATIENCE + Duration::from_millis(2) * number;
    let counted = "SELECT (sum(oui_count + non_count))::bigint FROM vote_results";
    let all = i64::from(number);
    let all_counted = async |_: &Value| stage.number(counted).await == all;
    night.until_within(limit, "every vote counted", all_counted).await;
    assert!(publisher.wait().await.expect("it ran").success());
    // Of each law up to nine votes are not shown yet.
    let settled = night
        .until("nearly every vote shown", |now| {
            let shown: i64 = counts(now).values().flatten().sum();
            shown > all - 10 * LAWS
        })
        .await;
    eprintln!("{number} votes counted in {:?}: {:?}", began.elapsed(), night.versions);

    // Somebody changes a count: it is neither shown nor final, and repaired with a reason that is.
    stage
        .execute("UPDATE vote_results SET oui_count = oui_count - 50 WHERE law_id = 'law-002'")
        .await;
    let stale = night.until("stale", |now| now["stale_reason"] == "decrease").await;
    assert_eq!(counts(&stale), counts(&settled));
    let repair = ["--repair", "--yes", "--reason", "typing error in the register"];
    stage.run("recount", &repair).await.assert(0, &["corrected"]);
    let repaired = night.until("repaired", |now| now["stale"] == false).await;
    assert_eq!(repaired["corrections"][0]["reason"], "typing error in the register");
    assert_eq!(counts(&repaired)["law-002"], stage.results().await["law-002"]);

    publish(&stage, "provisional", &[]).await;
    let provisional = night.until("provisional", is("provisional")).await;
    assert_eq!(counts(&provisional), stage.recount().await, "nothing is held back any more");
    publish(&stage, "final", &[]).await;
    let certified = night.until("final", is("final")).await;
    let lines = counts(&certified).into_iter();
    let lines = lines.map(|(law, [oui, non])| format!("{law},{oui},{non}\n")).collect::<String>();
    let hash: String = Sha256::digest(lines).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(certified["publication"]["results_sha256"], json!(hash));

    // Late votes are counted, alert, and do not move the page.
    stage.publish_new(90_000_000, LATE).await;
    board.until_metric("board_votes_since_final", LATE as f64).await;
    let late = night.look().await.expect("written");
    assert_eq!(late["laws"], certified["laws"]);
    let page = fs::read_to_string(night.folder.join("en/index.html")).expect("a page");
    assert!(page.contains("<title>TEST – Final results"), "{page}");
    let versions = &night.versions;
    assert_eq!((versions["provisional"], versions["final"]), (1, 1), "{versions:?}");
    assert!(versions["counting"] >= 3, "{versions:?}");
    for service in [service, board] {
        service.stop().await;
    }
}
