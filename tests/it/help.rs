//! What the program says of itself: completions, manual pages, and colours only where they belong.

use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{BINARY, PATIENCE, Service};

/// What a command line of sh writes, with util-linux's script giving it a terminal or without.
async fn written(line: &str, terminal: bool, no_color: Option<&str>) -> String {
    let mut command = if terminal {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", line, "/dev/null"]);
        command
    } else {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    };
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("TERM", "xterm-256color")
        .env("SHELL", "/bin/sh")
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    let output = timeout(PATIENCE, command.output()).await.expect("ends in time");
    let output = output.expect("it runs");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn colours_are_for_terminals_and_not_for_those_who_refuse_them() {
    let help = format!("{BINARY} --help");
    // Ends at once, with an error in the log, and needs no server for it.
    let log = format!("{BINARY} publish --file nowhere.ndjson");
    for (line, text) in [(help, "Exit codes:"), (log, "nowhere.ndjson")] {
        for (terminal, no_color, coloured) in [
            (true, None, true),
            (true, Some(""), true),
            (true, Some("1"), false),
            (false, None, false),
        ] {
            let written = written(&line, terminal, no_color).await;
            assert!(written.contains(text), "{written}");
            let case = format!("terminal {terminal}, NO_COLOR {no_color:?}: {written:?}");
            assert_eq!(written.contains("\x1b["), coloured, "{case}");
        }
    }
}

#[tokio::test]
async fn a_dumb_terminal_gets_no_escape_sequence() {
    let line = format!(
        "{BINARY} --help; {BINARY} publish --file nowhere.ndjson; \
         {BINARY} results --watch; echo $?"
    );
    for term in ["env TERM=dumb", "env --unset=TERM"] {
        let line = format!("{term} sh -c '{line}'");
        let written = written(&line, true, None).await;
        assert!(written.contains("nowhere.ndjson") && written.contains("--json"), "{written}");
        assert!(written.ends_with("2\r\n") && !written.contains('\x1b'), "{written:?}");
    }
}

#[tokio::test]
async fn completions_and_manual_pages_need_no_configuration() {
    for (shell, text) in
        [("bash", "complete -F"), ("zsh", "#compdef vote-aggregator"), ("fish", "complete -c")]
    {
        let (code, script) = Service::output(&["completions", shell]).await;
        assert_eq!(code, Some(0), "{shell}");
        assert!(script.contains(text) && script.contains("checkpoint"), "{shell}");
    }
    let bash = format!("bash -n <({BINARY} completions bash) && echo fine");
    let checked = written(&format!("bash -c '{bash}'"), false, None).await;
    assert_eq!(checked, "fine\n");
    let (code, _) = Service::output(&["completions", "cmd.exe"]).await;
    assert_eq!(code, Some(2));

    let (code, page) = Service::output(&["man"]).await;
    assert_eq!(code, Some(0));
    assert!(page.contains(".SH NAME") && page.contains(".SS publish"), "{page}");
    let folder = format!("{}/man-{}", env!("CARGO_TARGET_TMPDIR"), std::process::id());
    let (code, _) = Service::output(&["man", "--dir", &folder]).await;
    assert_eq!(code, Some(0));
    let whole = std::fs::read_to_string(format!("{folder}/vote-aggregator.1")).expect("written");
    assert_eq!(whole, page);
    assert!(std::path::Path::new(&folder).join("vote-aggregator-results.1").exists());
    std::fs::remove_dir_all(&folder).ok();

    // A reader who has seen enough.
    let cut = written(&format!("{BINARY} man | head -n 1"), false, None).await;
    assert!(!cut.contains("panicked"), "{cut}");
}
