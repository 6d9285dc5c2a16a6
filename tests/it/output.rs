//! Commands whose answer is not read, or cannot be written.

use std::fs::File;
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{BINARY, PATIENCE, Servers, Stage, command, execute, votes};

/// The exit code and standard error of a command that writes its answer to `stdout`.
async fn into(mut command: Command, stdout: impl Into<Stdio>) -> (Option<i32>, String) {
    let spawned = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("it runs");
    let output = timeout(PATIENCE, spawned.wait_with_output()).await.expect("ends in time");
    let output = output.expect("it ran");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("Linux has it")
}

/// With a reader that is gone it ends with `code`, and with a full disk with 70. `done` is what a
/// command that changed something still says of it.
async fn assert_ends(made: impl Fn() -> Command, code: i32, done: Option<&str>) {
    let what = format!("{:?}", made().as_std().get_args());
    // The reading end is dropped here.
    let (_, closed) = std::io::pipe().expect("a pipe");
    let (was, message) = into(made(), closed).await;
    assert_eq!(was, Some(code), "{what}: {message}");
    let complains = message.contains("standard output") || message.contains("panicked");
    assert!(!complains, "{what}: {message}");
    let (was, message) = into(made(), full()).await;
    assert_eq!(was, Some(70), "{what}: {message}");
    let lines: Vec<&str> =
        message.lines().filter(|line| line.contains("standard output")).collect();
    assert_eq!(lines.len(), 1, "{what}: {message}");
    assert!(lines[0].contains("No space left on device"), "{what}: {message}");
    assert!(lines[0].contains(done.unwrap_or_default()), "{what}: {message}");
    assert_eq!(lines[0].contains("the work is done"), done.is_some(), "{what}: {message}");
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
        let made = || {
            let mut command = Command::new(BINARY);
            command.env_clear().args(arguments.split(' ')).stdin(Stdio::null()).kill_on_drop(true);
            command.current_dir(env!("CARGO_TARGET_TMPDIR"));
            command
        };
        assert_ends(made, code, None).await;
    }
}

#[tokio::test]
async fn commands_say_what_they_did_where_that_can_be_written() {
    let stage = Stage::migrated(Servers::shared(), "output").await;
    stage.publish_votes(&votes(0, 20)).await;
    stage.publish(&vec![b"no vote".to_vec(); 8]).await;
    let service = stage.start(&[]).await;
    stage.until_counted(20).await;
    let dead_letters = stage.dead_letter_queue();
    stage.until_ready(&dead_letters, 8).await;

    let address = service.address().await;
    let (_, port) = address.rsplit_once(':').expect("a port");
    let with = |arguments: &'static str, port: &str| {
        let mut command = command(&stage, BINARY, &arguments.split(' ').collect::<Vec<&str>>());
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
    execute(&stage, broken).await;
    assert_ends(|| with("recount", port), 1, None).await;
    let (code, message) = into(with("recount --repair --yes", port), full()).await;
    assert_eq!(code, Some(70), "{message}");
    assert!(message.contains("the work is done: corrected: "), "{message}");
    assert_ends(|| with("recount --json", port), 0, None).await;
}
