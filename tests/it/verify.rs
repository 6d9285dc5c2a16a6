//! `verify`: each way to tamper with a log, or with what was exported with it, is found; by this program, and by another
//! one that shares no code with it.

mod written;

use std::path::{Path, PathBuf};

use serde_json::Value;
use vote_aggregator::model::tlog::entry::{Entry, Withdrawal, Withdrawn};

use self::written::{Exported, Written, row, write};
use crate::support::repository::{ROOT, files_below, run};
use crate::support::{BINARY, Ended, Files};

/// The log that the formats are held to, of which docs/log.md tells.
const GOLDEN: &str = "tests/data/log";

/// An export that is written to a folder.
struct Export {
    files: Files,
}

impl Export {
    fn of(files: &Exported) -> Self {
        let export = Self { files: Files::new("log") };
        write(Path::new(&export.files.path()), files);
        export
    }

    fn path(&self, name: &str) -> String {
        self.files.file(name)
    }

    fn verify(&self, what: &str, more: &[&str]) -> Ended {
        let (dir, policy) = (self.files.path(), self.path("policy"));
        run(BINARY, &[&["verify", what, &dir, "--policy", &policy, "--json"], more].concat())
    }

    fn log(&self) -> Ended {
        self.verify("log", &[])
    }

    fn sums(&self) -> Ended {
        self.verify("sums", &["--totals", &self.path("results.json")])
    }

    fn rows(&self) -> Ended {
        self.verify("rows", &["--rows", &self.path("rows.ndjson")])
    }

    /// Of the second implementation.
    fn python(&self) -> Ended {
        let policy = std::fs::read_to_string(self.path("policy")).expect("a policy");
        let key = policy.split_whitespace().nth(1).expect("a key").to_owned();
        let (dir, rows, totals) =
            (self.files.path(), self.path("rows.ndjson"), self.path("results.json"));
        run("python3", &["tests/log/verify.py", &dir, &key, "--rows", &rows, "--totals", &totals])
    }
}

/// Whether the second implementation says that something is wrong. It also ends with 1 if it fails itself.
fn is_wrong(python: &Ended) -> bool {
    python.code == Some(1) && python.stdout.contains("\"wrong\"")
}

trait Verdict {
    fn passes(self) -> Value;
    fn finds(self, text: &str);
}

impl Verdict for Ended {
    #[track_caller]
    fn passes(self) -> Value {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self.json()
    }

    #[track_caller]
    fn finds(self, text: &str) {
        assert_eq!(self.code, Some(1), "{}{}", self.stdout, self.stderr);
        assert!(self.stdout.contains(text), "{text:?} in {}", self.stdout);
    }
}

/// A change of any format changes these files: logs that were signed before could no longer be verified.
#[test]
fn the_formats_are_those_of_the_log_in_the_repository() {
    let mut written = Written::closed().export();
    written.insert("opened.tlog-proof".into(), Written::closed().proof(123, true).into_bytes());
    written.insert("closed.tlog-proof".into(), Written::closed().proof(123, false).into_bytes());
    if std::env::var_os("WRITE_GOLDEN_LOG").is_some() {
        write(&Path::new(ROOT).join(GOLDEN), &written);
    }
    let paths = files_below(GOLDEN);
    let names: Vec<String> = written.keys().map(|name| format!("{GOLDEN}/{name}")).collect();
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), names);
    for (name, content) in written {
        let found = std::fs::read(PathBuf::from(ROOT).join(GOLDEN).join(&name)).expect("a file");
        assert!(found == content, "{name}");
    }
}

#[test]
fn two_implementations_agree_about_a_log_that_is_right() {
    let export = Export::of(&Written::closed().export());
    let log = export.log().passes();
    assert_eq!(log["checkpoint"]["size"], 302);
    assert_eq!(log["checkpoints"], 5);
    let python = export.python().passes();
    assert_eq!(python["root"], log["checkpoint"]["root"]);
    let sums = export.sums().passes();
    assert_eq!(sums["laws"], python["laws"]);
    assert_eq!(sums["closed"], true);
    let rows = export.rows().passes();
    assert_eq!((&rows["rows"], &rows["timed"]), (&300.into(), &297.into()));
}

/// The smallest change of any file of the log or of what was exported with it.
#[test]
fn a_flipped_bit_in_any_file_is_found() {
    let files = Written::closed().export();
    for (name, content) in files.iter().filter(|(name, _)| *name != "policy") {
        // Of a checkpoint, its root: a signature of a witness does not matter to all.
        let places = [0, content.len() / 7, content.len() / 2, content.len() - 2];
        for place in places {
            let mut changed = files.clone();
            changed.get_mut(name).expect("a file")[place] ^= 1;
            let export = Export::of(&changed);
            let ours = [export.log(), export.sums(), export.rows()];
            let wrong = ours.iter().any(|it| it.code == Some(1) || it.code == Some(2));
            assert!(wrong, "{name}, byte {place}");
            let is_witness = name.starts_with("checkpoint") && place > 200;
            let python = export.python();
            assert!(is_witness || is_wrong(&python), "{name}, byte {place}: {}", python.stderr);
        }
    }
}

#[test]
fn a_file_that_is_missing_or_shorter_is_found() {
    let files = Written::closed().export();
    for name in files.keys().filter(|name| name.starts_with("tile/")) {
        let mut changed = files.clone();
        changed.remove(name);
        Export::of(&changed).log().finds(name);
        let mut changed = files.clone();
        changed.get_mut(name).expect("a file").pop();
        Export::of(&changed).log().finds(name);
    }
}

/// As the log-tiles format allows where the tile has become full since.
#[test]
fn a_part_of_a_tile_is_read_from_the_full_one() {
    let mut files = Written::closed().export();
    let mut tile = files.remove("tile/0/001.p/46").expect("a part");
    tile.resize(256 * 32, 0);
    files.insert("tile/0/001".into(), tile.clone());
    Export::of(&files).log().passes();
    tile[45 * 32] ^= 1;
    files.insert("tile/0/001".into(), tile);
    Export::of(&files).log().finds("make");
}

/// The policy needs the key that the log began with, which the opening names.
#[test]
fn a_log_that_has_another_key_by_now_is_verified_with_both() {
    let mut log = Written::open(1);
    let policy = |log: &Written| String::from_utf8(log.export()["policy"].clone()).expect("text");
    let first = policy(&log).lines().next().expect("a key").to_owned();
    log.rotate(2);
    log.segment(&[row(1, 60)], &[], 70);
    let mut files = log.export();
    Export::of(&files).log().finds("which is not that of");
    files.insert("policy".into(), format!("{first}\n{}", policy(&log)).into_bytes());
    Export::of(&files).log().passes();
}

/// `export` with the rows' lines changed.
fn with_rows(change: impl Fn(&mut Vec<Value>)) -> Export {
    let mut files = Written::closed().export();
    let text = String::from_utf8(files["rows.ndjson"].clone()).expect("text");
    let mut rows = text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
    change(&mut rows);
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    files.insert("rows.ndjson".into(), text.into_bytes());
    Export::of(&files)
}

#[test]
fn a_row_that_was_changed_after_it_was_sealed_is_found() {
    let others: [(&str, Value); 6] = [
        ("vote_hash", "hash-99999999".into()),
        ("citizen_id", "citoyen-00000000-e".into()),
        ("law_id", "law-009".into()),
        ("choice", "none".into()),
        ("timestamp", 0.into()),
        ("recorded_at", 1_795_939_261_000_001_i64.into()),
    ];
    for (column, other) in others {
        let export = with_rows(|rows| rows[20][column] = other.clone());
        export.rows().finds("entry 21: its row is not the one that was sealed");
        assert!(is_wrong(&export.python()), "{column}");
    }
}

/// A recount of the audit agrees with the totals then, and shows nothing.
#[test]
fn two_choices_that_were_exchanged_are_found_although_all_sums_agree() {
    let export = with_rows(|rows| {
        let same_law = |choice: &str| {
            let found =
                rows.iter().position(|row| row["law_id"] == "law-001" && row["choice"] == choice);
            found.expect("such a row")
        };
        let (oui, non) = (same_law("oui"), same_law("non"));
        rows[oui]["choice"] = "non".into();
        rows[non]["choice"] = "oui".into();
    });
    export.sums().passes();
    let ended = export.rows();
    assert_eq!(ended.json()["findings_total"], 2);
    ended.finds("its row is not the one that was sealed");
}

#[test]
fn rows_that_were_removed_added_or_repeated_are_found() {
    with_rows(|rows| drop(rows.remove(20))).rows().finds("entry 21: no row is exported for it");
    with_rows(|rows| rows.truncate(299)).rows().finds("no row is exported for it");
    with_rows(|rows| rows.insert(20, rows[20].clone())).rows().finds("has a row already");
    with_rows(|rows| rows.push(serde_json::json!({"index": 900, "vote_hash": "x", "citizen_id": "y",
        "law_id": "law-001", "choice": "oui", "timestamp": 0, "recorded_at": 0, "nonce": "00".repeat(32)})))
    .rows()
    .finds("a row is exported for entry 900");
    with_rows(|rows| rows[3] = "no row".into()).rows().finds("line 4 is not a row of an export");

    let mut log = Written::open(1);
    log.segment(&[row(1, 60)], &[], 70);
    log.segment(&[row(1, 660)], &[], 670);
    Export::of(&log.export()).rows().finds("1 rows have the vote_hash of another row");
}

#[test]
fn a_row_with_a_time_at_which_it_was_not_there_is_found() {
    for (second, side) in
        [(60, "earlier than the checkpoint before it"), (5_000, "later than its checkpoint")]
    {
        let mut log = Written::open(1);
        log.segment(&[row(1, 60)], &[], 70);
        log.segment(&[row(2, 660)], &[], 670);
        log.segment(&[row(3, second)], &[], 1_270);
        Export::of(&log.export()).rows().finds(side);
    }
}

#[test]
fn a_citizen_who_is_not_in_the_register_is_found_and_not_named() {
    let export = Export::of(&Written::closed().export());
    let all: String = (0..300).map(|number| format!("{}\n", row(number, 0).citizen_id)).collect();
    export.files.write("register", &all);
    let rows = export.path("rows.ndjson");
    let verify =
        || export.verify("rows", &["--rows", &rows, "--register", &export.path("register")]);
    verify().passes();
    export.files.write("register", all.replace("citoyen-00000123-é\n", ""));
    let ended = verify();
    assert!(!format!("{}{}", ended.stdout, ended.stderr).contains("citoyen"), "{}", ended.stdout);
    ended.finds("its citizen_id is not in the register");
}

#[test]
fn results_that_are_not_the_sums_of_the_log_are_found() {
    let mut files = Written::closed().export();
    let results = String::from_utf8(files["results.json"].clone()).expect("text");
    let more = results.replacen("\"oui\":", "\"oui\":1", 1);
    files.insert("results.json".into(), more.into_bytes());
    Export::of(&files).sums().finds("the results");
    files.insert("results.json".into(), b"{\"laws\":[]}".to_vec());
    Export::of(&files).sums().finds("law-000: the log has");
    files.insert("results.json".into(), b"[]".to_vec());
    assert_eq!(Export::of(&files).sums().code, Some(2), "no results");
}

/// The owner of the key can sign another history; only a checkpoint from elsewhere shows that.
#[test]
fn another_log_of_the_same_key_is_found_by_an_older_checkpoint_alone() {
    let (seen, mut fork) = (Written::closed().export(), Written::open(1));
    fork.segment(&[row(1_000, 60)], &[], 70);
    fork.close(&[]);
    let export = Export::of(&fork.export());
    let ended = export.log();
    assert_eq!(ended.json()["since"], 0);
    ended.passes();
    let text =
        run(BINARY, &["verify", "log", &export.files.path(), "--policy", &export.path("policy")]);
    text.assert(0, &["no checkpoint from elsewhere is given (--since)"]);

    export.files.write("first", &seen["checkpoints/1"]);
    export.files.write("longer", &seen["checkpoint"]);
    let since = |name: &str| export.verify("log", &["--since", &export.path(name)]);
    assert_eq!(since("first").passes()["since"], 1, "both begin in the same way");
    since("longer").finds("the log had 302 entries, and its newest checkpoint has 3");

    let mut longer = Written::open(1);
    longer.segment(&(1_000..1_400).map(|number| row(number, 60)).collect::<Vec<_>>(), &[], 70);
    let export = Export::of(&longer.export());
    export.files.write("longer", &seen["checkpoint"]);
    export.verify("log", &["--since", &export.path("longer")]).finds("and the log's leaves make");
}

#[test]
fn a_log_that_other_keys_or_too_few_witnesses_signed_is_not_accepted() {
    let mut files = Written::open(2).export();
    files.insert("policy".into(), Written::open(1).export()["policy"].clone());
    Export::of(&files).log().finds("no log of the policy signed it");

    let mut files = Written::closed().export();
    let text = String::from_utf8(files["checkpoint"].clone()).expect("text");
    let without: Vec<&str> =
        text.lines().filter(|line| !line.contains("witness.example")).collect();
    files.insert("checkpoint".into(), format!("{}\n", without.join("\n")).into_bytes());
    Export::of(&files).log().finds("too few witnesses");
}

#[test]
fn entries_out_of_order_and_votes_after_the_close_are_found() {
    let mut log = Written::closed();
    log.segment(&[row(900, 3_700)], &[], 3_710);
    let export = Export::of(&log.export());
    export.log().finds("a vote after the close");

    let mut log = Written::open(1);
    let lost = Withdrawal { index: 0, kind: Withdrawn::Lost, reason: "test".into() };
    log.segment(&[row(1, 60)], &[Entry::Withdrawal(lost)], 70);
    Export::of(&log.export()).log().finds("it withdraws entry 0, which is not a vote");

    // Two segments become one, whose votes are not in order.
    let mut files = Written::closed().export();
    files.remove("checkpoints/101");
    Export::of(&files).log().finds("not in the order of its segment");
}

#[test]
fn a_lost_vote_is_taken_off_the_sums_and_an_erased_one_is_not() {
    let mut log = Written::open(1);
    let rows: Vec<_> = (0..50).map(|number| row(number, 60)).collect();
    log.segment(&rows, &[], 70);
    let (lost, erased) = (log.index(5), log.index(6));
    let withdraw = |index: usize, kind| {
        Entry::Withdrawal(Withdrawal { index: index as u64, kind, reason: "test".into() })
    };
    log.segment(&[], &[withdraw(lost, Withdrawn::Lost), withdraw(erased, Withdrawn::Erased)], 80);
    log.close(&[lost]);
    let mut files = log.export();
    let is_lost = |line: &&str| !line.contains("hash-00000005");
    let text = String::from_utf8(files["rows.ndjson"].clone()).expect("text");
    let kept: Vec<&str> = text.lines().filter(is_lost).collect();
    let kept = kept.join("\n").replace("\"citoyen-00000006-é\"", "null");
    files.insert("rows.ndjson".into(), kept.into_bytes());
    let export = Export::of(&files);
    export.log().passes();
    let rows = export.rows().passes();
    assert_eq!((&rows["rows"], &rows["erased"]), (&48.into(), &1.into()));
    let exported = String::from_utf8(files["rows.ndjson"].clone()).expect("text");
    let is_erased = |line: &&str| line.contains("\"citizen_id\":null");
    let row = exported.lines().find(is_erased).expect("an erased row");
    let changed = row.replace("law-", "lot-");
    export.files.write("rows.ndjson", exported.replace(row, &changed));
    export.rows().finds("its row is not the one that was sealed");
    let without: Vec<&str> = exported.lines().filter(|line| !is_erased(line)).collect();
    export.files.write("rows.ndjson", without.join("\n"));
    export.rows().finds("no row is exported for it");
    export.sums().finds("law-002: the log has");
    let results = String::from_utf8(files["results.json"].clone()).expect("text");
    let mut results: Value = serde_json::from_str(&results).expect("JSON");
    let oui = results["laws"][2]["oui"].as_i64().expect("a number");
    results["laws"][2]["oui"] = (oui - 1).into();
    export.files.write("results.json", results.to_string());
    export.sums().passes();
}

#[test]
fn a_proof_shows_a_vote_to_its_owner_and_no_other() {
    let log = Written::closed();
    let export = Export::of(&log.export());
    let verify = |text: &str| {
        let file = export.files.write("vote.tlog-proof", text);
        run(BINARY, &["verify", "proof", &file, "--policy", &export.path("policy"), "--json"])
    };
    let opened = verify(&log.proof(123, true)).passes();
    assert_eq!(opened["opened"]["vote_hash"], "hash-00000123");
    assert_eq!(opened["opened"]["choice"], "oui");
    assert!(!opened.to_string().contains("citoyen"));
    let closed = verify(&log.proof(123, false)).passes();
    assert_eq!((&closed["index"], &closed["opened"]), (&opened["index"], &Value::Null));

    let proof = log.proof(123, false);
    let other = log.proof(124, false);
    let (index, extra) =
        (proof.lines().nth(2).expect("index"), proof.lines().nth(1).expect("extra"));
    let exchanged = [
        proof.replace(index, other.lines().nth(2).expect("index")),
        proof.replace(extra, other.lines().nth(1).expect("extra")),
    ];
    for wrong in exchanged {
        verify(&wrong).finds("the entry is not in the log");
    }
    assert_eq!(verify(&proof.replace("extra ", "extra")).code, Some(2));
    assert_eq!(verify("no proof").code, Some(2));
}
