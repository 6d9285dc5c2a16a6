//! Commands whose answer is not read, or cannot be written.

use std::fs::File;

use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{BINARY, PATIENCE, Stage, assert_contains, assert_lacks, bare, ended_into};

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("Linux has it")
}

/// With a reader that is gone it ends with `code`, and with a full disk with 70. `done` is what a
/// command that changed something still says of it.
async fn assert_ends(made: impl Fn() -> Command, code: i32, done: Option<&str>) {
    let what = format!("{:?}", made().as_std().get_args());
    // The reading end is dropped here.
    let (_, closed) = std::io::pipe().expect("a pipe");
    let message = ended_into(made(), closed).await.assert(code, &[]).stderr;
    assert_lacks(&message, &["standard output", "panicked"]);
    let message = ended_into(made(), full()).await.assert(70, &[]).stderr;
    let lines = message.lines().filter(|line| line.contains("standard output"));
    let [line] = lines.collect::<Vec<_>>()[..] else { panic!("{what}: {message}") };
    assert_contains(line, &["No space left on device", done.unwrap_or_default()]);
    assert_eq!(line.contains("the work is done"), done.is_some(), "{what}: {message}");
    // Without standard error it is no panic either.
    let mut silent = made();
    let status = silent.stdout(full()).stderr(full()).status();
    let status = timeout(PATIENCE, status).await.expect("ends in time").expect("it ran");
    assert_eq!(status.code(), Some(70), "{what}");
}

#[tokio::test]
async fn commands_without_a_server_end_as_they_should() {
    for (arguments, code) in [
        ("--help", 0),
        ("--version", 0),
        ("help dlq", 0),
        ("man", 0),
        ("completions zsh", 0),
        ("migrate --print", 0),
        ("check", 0),
        ("check --json --set batch.size=0", 78),
        ("publish --file /dev/null --dry-run", 0),
    ] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        assert_ends(|| bare(BINARY, &arguments), code, None).await;
    }
}

#[tokio::test]
async fn commands_say_what_they_did_where_that_can_be_written() {
    let (stage, service) = Stage::started("output", &[]).await;
    stage.publish(&vec![b"no vote".to_vec(); 8]).await;
    stage.count(0, 20).await;
    let dead_letters = stage.dead_letter_queue();
    stage.until_ready(&dead_letters, 8).await;

    let port = &*service.port().await;
    let with = |arguments: &'static str, port: &str| {
        let mut command = stage.command(BINARY, &arguments.split(' ').collect::<Vec<&str>>());
        command.env("PROMETHEUS_PORT", port);
        command
    };
    for (arguments, code, done) in [
        ("health-check", 0, None),
        ("check --connect", 0, None),
        ("results", 0, None),
        ("results --csv", 0, None),
        ("recount", 0, None),
        ("migrate", 0, Some("up to date")),
        ("publish --count 3", 0, Some("3 messages")),
        ("dlq list", 0, None),
        ("dlq list --json --max 0", 0, None),
        ("dlq show", 0, None),
        ("dlq show --json", 0, None),
        ("dlq list --law nowhere", 0, None),
        ("dlq purge --dry-run", 0, None),
        ("dlq replay --dry-run", 0, None),
        // Each of the three runs takes one.
        ("dlq purge --yes --max 1", 0, Some("removed 1")),
        ("dlq replay --yes --max 1 --force", 0, Some("put back 1")),
    ] {
        assert_ends(|| with(arguments, port), code, done).await;
        if arguments.starts_with("dlq purge") && done.is_some() {
            stage.until_ready(&dead_letters, 5).await;
        }
    }
    service.stop().await;
    let broken = "UPDATE vote_results SET oui_count = oui_count + 1";
    stage.execute(broken).await;
    assert_ends(|| with("recount", port), 1, None).await;
    let repaired = ended_into(with("recount --repair --yes", port), full()).await;
    repaired.assert(70, &["the work is done: corrected: "]);
    assert_ends(|| with("recount --json", port), 0, None).await;
}
