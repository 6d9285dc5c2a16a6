//! `dlq purge`, and the question before anything is done.

use super::*;

#[tokio::test]
async fn a_purge_writes_down_what_it_removes_and_removes_only_that() {
    let stage = Stage::migrated(Servers::shared(), "dlq_purge").await;
    let good: Vec<Vec<u8>> = votes(0, 700).iter().map(message).collect();
    let bad: Vec<Vec<u8>> = (0..450)
        .map(|number| format!("no vote {number}").into_bytes())
        .chain(malformed())
        .collect();
    // Creates the queues.
    stage.publish(&[]).await;
    put(&stage, &good, &[("x-sqlstate", "23514")]).await;
    put(&stage, &bad, &[]).await;
    let all = good.len() + bad.len();
    until_dead(&stage, all).await;
    let file = new_file(&stage);
    let path = file.to_str().expect("UTF-8");

    assert!(expect(&stage, 2, &["purge"]).await.stderr.contains("--yes"));
    let dry = expect(&stage, 0, &["purge", "--reason", "malformed", "--dry-run"]).await;
    assert!(dry.row("would be removed").is_some_and(|row| row.ends_with("454")), "{}", dry.stdout);
    until_dead(&stage, all).await;

    let purge = ["purge", "--reason", "malformed", "--save", path, "--yes"];
    let purged = expect(&stage, 0, &purge).await;
    assert!(purged.row("removed").is_some_and(|row| row.ends_with("454")), "{}", purged.stdout);
    until_dead(&stage, good.len()).await;
    let saved = std::fs::read_to_string(&file).expect("the file");
    let mode = std::fs::metadata(&file).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it names citizens");
    let kept = saved.lines().map(|line| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert!(line["reason"].is_string() && line["headers"].is_object(), "{line}");
        match &line["body"] {
            Value::String(text) => text.clone().into_bytes(),
            _ => STANDARD.decode(line["body_base64"].as_str().expect("base64")).expect("base64"),
        }
    });
    assert_eq!(sorted(kept.collect()), sorted(bad));

    let again = expect(&stage, 2, &["purge", "--save", path, "--yes"]).await;
    assert!(again.stderr.contains(path), "{}", again.stderr);
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), saved, "as it was");
    // Nowhere to write to: nothing is removed.
    let nowhere = format!("{path}.none/removed.ndjson");
    let nowhere = expect(&stage, 70, &["purge", "--save", &nowhere, "--yes"]).await;
    assert!(nowhere.stderr.contains("cannot write"), "{}", nowhere.stderr);
    until_dead(&stage, good.len()).await;
    let some = expect(&stage, 0, &["purge", "--yes", "--max", "100"]).await;
    assert!(some.row("removed").is_some_and(|row| row.ends_with("100")), "{}", some.stdout);
    until_dead(&stage, good.len() - 100).await;
    let left: BTreeSet<Vec<u8>> = taken(&stage).await.into_iter().collect();
    assert!(left.is_subset(&good.into_iter().collect()), "none of the others, and no other");
    assert_eq!(left.len(), 600);
    std::fs::remove_file(&file).expect("removed");
}

#[tokio::test]
async fn on_a_terminal_they_ask_and_take_nothing_but_a_yes() {
    let stage = Stage::migrated(Servers::shared(), "dlq_asked").await;
    stage.publish(&[]).await;
    put(&stage, &[message(&vote(1, "law-001", Choice::Oui))], &[]).await;
    put(&stage, &[b"no vote".to_vec()], &[]).await;
    until_dead(&stage, 2).await;
    for (what, answer, code, left) in [
        ("replay", "n", 1, 2),
        ("purge --reason malformed", "", 1, 2),
        ("purge --reason malformed", "y", 0, 1),
        ("replay", "yes", 0, 0),
    ] {
        // util-linux's script gives the command a terminal.
        let on_terminal = format!(
            "printf '%s\\n' '{answer}' | script --quiet --return --command \
             '{BINARY} dlq {what}' /dev/null"
        );
        let mut command = command(&stage, "bash", &["-c", &on_terminal]);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let asked = ended(command).await;
        assert!(asked.stdout.contains("1 messages") && asked.stdout.contains("[y/N]"));
        assert_eq!(asked.code, Some(code), "{what} {answer:?}: {}", asked.stdout);
        until_dead(&stage, left).await;
    }
    assert_eq!(stage.ready(&stage.queue).await, Some(1));
}
