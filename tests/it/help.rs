//! Completions, manual pages, and colours only where they belong.

use std::fs;

use crate::support::{BINARY, Ended, Files, bare, ended, on_path};

/// The binary with nothing in its environment.
async fn run(arguments: &[&str]) -> Ended {
    ended(bare(BINARY, arguments)).await
}

/// What a command line of sh writes, with or without a terminal, which util-linux's script makes.
async fn written(line: &str, terminal: bool, no_color: Option<&str>) -> String {
    let (program, arguments) = if terminal {
        ("script", vec!["--quiet", "--return", "--command", line, "/dev/null"])
    } else {
        ("sh", vec!["-c", line])
    };
    let mut command = bare(program, &arguments);
    command
        .envs([("TERM", "xterm-256color"), ("SHELL", "/bin/sh")])
        .envs(no_color.map(|value| ("NO_COLOR", value)));
    let ended = ended(on_path(command)).await;
    ended.stdout + &ended.stderr
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
    let line = format!("{BINARY} --help; {BINARY} publish --file nowhere.ndjson");
    for term in ["env TERM=dumb", "env --unset=TERM"] {
        let line = format!("{term} sh -c '{line}'");
        let written = written(&line, true, None).await;
        assert!(written.contains("nowhere.ndjson") && !written.contains('\x1b'), "{written:?}");
    }
}

#[tokio::test]
async fn completions_and_manual_pages_need_no_configuration() {
    for (shell, text) in
        [("bash", "complete -F"), ("zsh", "#compdef vote-aggregator"), ("fish", "complete -c")]
    {
        run(&["completions", shell]).await.assert(0, &[text, "checkpoint"]);
    }
    let bash = format!("bash -n <({BINARY} completions bash) && echo fine");
    assert_eq!(written(&format!("bash -c '{bash}'"), false, None).await, "fine\n");
    run(&["completions", "cmd.exe"]).await.assert(2, &[]);

    let page = run(&["man"]).await.assert(0, &[".SH NAME", ".SS publish"]);
    let files = Files::new("man");
    run(&["man", "--dir", &files.path()]).await.assert(0, &[]);
    let whole = fs::read_to_string(files.join("vote-aggregator.1")).expect("written");
    assert_eq!(whole, page.stdout);
    assert!(files.join("vote-aggregator-results.1").exists());
}
