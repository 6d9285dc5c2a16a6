//! `results`: what it reads and how it shows it, as which role, and what becomes of it when
//! PostgreSQL is not there.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{
    BINARY, Ended, PATIENCE, Servers, Stage, command, ended, eventually, execute, run,
};

const ROLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/roles.sql");

/// Three laws, one of them with a name that only a hand can have written.
const LAWS: &str = "INSERT INTO vote_results (law_id, oui_count, non_count, updated_at) VALUES \
    ('law-001', 1, 2, '2026-11-25 21:00:00+00'), \
    ('law-002', 999999, 1, '2026-11-25 22:15:03.25+01'), \
    (E'=1+1\\x1b[2J', 0, 0, 'infinity')";

impl Ended {
    fn rows(&self) -> Vec<Vec<&str>> {
        self.stdout.lines().map(|line| line.split_whitespace().collect()).collect()
    }
}

fn on_path(mut command: Command) -> Command {
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

async fn results(stage: &Stage<'_>, arguments: &[&str]) -> Ended {
    run(stage, "results", arguments).await
}

#[tokio::test]
async fn it_shows_the_counts_for_people_and_for_programs() {
    let stage = Stage::migrated(Servers::shared(), "results").await;
    let none = results(&stage, &[]).await;
    assert_eq!(none.code, Some(0), "{}", none.stderr);
    assert!(none.stdout.starts_with("no votes are counted yet (read at 2"), "{}", none.stdout);

    execute(&stage, LAWS).await;
    let all = results(&stage, &[]).await;
    assert_eq!(all.code, Some(0), "{}", all.stderr);
    let rows = all.rows();
    let first = "law-002 999,999 1 1,000,000 >99.9 <0.1 2026-11-25 21:15:03Z";
    assert_eq!(rows[2].join(" "), first);
    assert_eq!(rows[3][..6], ["law-001", "1", "2", "3", "33.3", "66.7"]);
    assert_eq!(rows[4], ["=1+1\\u{1b}[2J", "0", "0", "0", "-", "-", "-"]);
    assert_eq!(rows[5][..6], ["all", "1,000,000", "3", "1,000,003", ">99.9", "<0.1"]);
    assert!(all.stdout.contains("\n3 laws, read at 2"), "{}", all.stdout);
    assert!(!all.stdout.contains('\x1b'), "nothing for a terminal to obey");

    let one = results(&stage, &["--law", "law-001", "--law", "law-9", "--json"]).await;
    let mut object: Value = serde_json::from_str(&one.stdout).expect("one JSON object");
    assert!(object["read_at"].take().as_str().is_some_and(|at| at.ends_with('Z')), "{object}");
    let shares = (100.0 / 3.0, 200.0 / 3.0);
    let expected = json!({
        "read_at": null,
        "laws": [{
            "law_id": "law-001", "oui": 1, "non": 2, "total": 3,
            "oui_percent": shares.0, "non_percent": shares.1, "updated_at": "2026-11-25T21:00:00Z",
        }],
        "totals": {
            "laws": 1, "oui": 1, "non": 2, "total": 3,
            "oui_percent": shares.0, "non_percent": shares.1, "updated_at": "2026-11-25T21:00:00Z",
        },
        "not_counted": ["law-9"],
    });
    assert_eq!(object, expected);

    let csv = results(&stage, &["--csv", "--sort", "law"]).await;
    let lines: Vec<&str> = csv.stdout.split("\r\n").collect();
    assert_eq!(lines[1], "\"'=1+1\\u{1b}[2J\",0,0,0,,,");
    assert_eq!(lines[2], "law-001,1,2,3,33.333333333333336,66.66666666666667,2026-11-25T21:00:00Z");
    assert_eq!(lines[3], "law-002,999999,1,1000000,99.9999,0.0001,2026-11-25T21:15:03.25Z");

    // A reader who has seen enough.
    let head = format!("{BINARY} results --csv | true; {BINARY} results --csv | head -n 1");
    let head = ended(on_path(command(&stage, "sh", &["-c", &head]))).await;
    assert!(head.stdout.starts_with("law_id,") && head.stderr.is_empty(), "{}", head.stderr);

    let top = results(&stage, &["--sort", "updated", "--top", "1"]).await;
    assert_eq!((top.rows()[2][0], top.rows()[3][0]), ("law-002", "all"));
    assert!(top.stdout.contains("the first 1 of 3 laws"), "{}", top.stdout);
}

#[tokio::test]
async fn select_on_the_results_is_enough_and_what_is_missing_has_a_code() {
    let stage = Stage::new(Servers::shared(), "resultcodes").await;
    let with = async |settings: &[(&str, &str)]| {
        let mut command = command(&stage, BINARY, &["results"]);
        command.envs(settings.iter().copied());
        let ended = ended(command).await;
        (ended.code, ended.stdout + &ended.stderr)
    };
    let (code, message) = with(&[]).await;
    assert!(code == Some(78) && message.contains("vote-aggregator migrate"), "no table: {message}");
    let (code, message) = with(&[("POSTGRES_DB", "nowhere")]).await;
    assert!(code == Some(78) && message.contains("nowhere"), "{message}");

    stage.store().await;
    execute(&stage, LAWS).await;
    stage.servers.script(&["psql", "--", "-d", &stage.database, "-X", "-q", "-f", ROLES]);
    let role = format!("reader_{}", stage.database);
    execute(&stage, &format!("CREATE ROLE {role} LOGIN PASSWORD 'least'")).await;
    let login = [("POSTGRES_USER", role.as_str()), ("POSTGRES_PASSWORD", "least")];
    let (code, message) = with(&login).await;
    assert!(code == Some(77) && message.contains("42501"), "no grant: {message}");
    execute(&stage, &format!("GRANT SELECT ON vote_results TO {role}")).await;
    let (code, message) = with(&login).await;
    assert!(code == Some(0) && message.contains("3 laws"), "{message}");

    // No terminal, no live view.
    let piped = results(&stage, &["--watch"]).await;
    assert!(piped.code == Some(2) && piped.stderr.contains("--json"), "{}", piped.stderr);
    assert_eq!(piped.stdout, "");
    assert_eq!(results(&stage, &["--json", "--csv"]).await.code, Some(2));
}

#[tokio::test]
async fn a_server_that_is_down_is_waited_for() {
    let servers = Servers::private("resultswait");
    let stage = Stage::migrated(&servers, "resultswait").await;
    execute(&stage, LAWS).await;
    servers.script(&["stop", "postgres"]);
    let mut waiting = command(&stage, BINARY, &["results", "--csv"]);
    let log =
        std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", stage.database));
    waiting.stdout(Stdio::piped()).stderr(std::fs::File::create(&log).expect("a file"));
    let waiting = waiting.spawn().expect("it runs");
    eventually("it says that it waits", async || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("waiting for PostgreSQL"))
    })
    .await;
    servers.script(&["start", "postgres"]);
    let output = timeout(PATIENCE, waiting.wait_with_output()).await.expect("ends in time");
    let output = output.expect("it ran");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 4);
}

/// One-shot commands give up, and say on whom.
#[tokio::test]
async fn a_server_that_stays_away_or_read_only_is_given_up() {
    let stage = Stage::new(Servers::shared(), "givenup").await;
    for name in ["results", "recount", "migrate"] {
        let mut command = command(&stage, BINARY, &[name, "--retry-for", "1"]);
        command.env("POSTGRES_PORT", "1");
        let Ended { code, stderr, .. } = ended(command).await;
        assert_eq!(code, Some(75), "{name}: {stderr}");
        assert!(
            stderr.contains("waiting for PostgreSQL, for 1 s more at most"),
            "{name}: {stderr}"
        );
        assert!(stderr.contains("gave up after 1 s (--retry-for)"), "{name}: {stderr}");
        assert!(stderr.contains(&stage.database), "{name}: {stderr}");
    }
    let read_only =
        format!("ALTER DATABASE {} SET default_transaction_read_only = on", stage.database);
    execute(&stage, &read_only).await;
    let refused = run(&stage, "migrate", &["--retry-for", "0"]).await;
    assert_eq!(refused.code, Some(75), "{}", refused.stderr);
    assert!(refused.stderr.contains("25006"), "{}", refused.stderr);
}

/// util-linux's script gives the command a terminal; what is drawn there goes to a file.
#[tokio::test]
async fn the_live_view_outlives_an_outage_and_gives_the_terminal_back() {
    let servers = Servers::private("resultswatch");
    let stage = Stage::migrated(&servers, "resultswatch").await;
    execute(&stage, LAWS).await;
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let typescript = folder.join(format!("{}.typescript", stage.database));
    let watch = format!(
        "stty rows 24 cols 120; {BINARY} results --watch --interval 0.2; \
         echo \"ended with $?\"; stty -a"
    );
    let mut command = on_path(command(&stage, "script", &["--quiet", "--return", "--flush"]));
    command
        .args(["--command", &watch])
        .arg(&typescript)
        .env("TERM", "xterm-256color")
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut watching = command.spawn().expect("script runs");
    let drawn = || {
        let bytes = std::fs::read(&typescript).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let until = async |text: &str| {
        eventually(&format!("{text:?} is drawn"), async || drawn().contains(text)).await;
    };
    until("1,000,003").await;
    servers.script(&["stop", "postgres"]);
    until("is away since").await;
    servers.script(&["start", "postgres"]);
    execute(&stage, "UPDATE vote_results SET oui_count = 4444 WHERE law_id = 'law-001'").await;
    until("4,446").await;

    let mut keyboard = watching.stdin.take().expect("piped");
    tokio::io::AsyncWriteExt::write_all(&mut keyboard, b"q").await.expect("typed");
    let status = timeout(PATIENCE, watching.wait()).await.expect("ends in time");
    assert!(status.expect("a child of ours").success());
    let drawn = drawn();
    let (_, after) = drawn.rsplit_once("\x1b[?1049l").expect("back from the alternate screen");
    assert!(after.contains("ended with 0"), "{after}");
    assert!(after.contains(" icanon") && after.contains(" echo "), "as it was: {after}");
    assert!(!drawn.contains("\x1b[2J[2J") && !drawn.contains("=1+1\x1b"), "no law is obeyed");
}
