//! `check`.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use vote_aggregator::operator::check::{self, Finding, Report, Severity};
use vote_aggregator::platform::config::{Config, ConfigErrors};
use vote_aggregator::platform::terminal::colours;

use super::exit::{self, Exit, Outcome};
use super::output::{self, wrapped};
use super::seconds;

/// Columns of text, with the indent.
const WIDTH: usize = 100;
/// Below the severity and two spaces.
const INDENT: usize = 9;

#[derive(Args)]
#[command(after_help = "\
Examples:
  vote-aggregator check                         the configuration alone, no server is touched
  vote-aggregator check --connect               RabbitMQ and PostgreSQL as well
  vote-aggregator check --connect --strict      1 also for warnings, for a pipeline
  vote-aggregator check --connect --json        the same for programs

Exit code 0: no error; 1: errors, with --strict also warnings; 78: the configuration can't be used.
--connect creates and changes nothing: the queue's arguments are read from the broker's refusals of
declares that differ (each has an argument that RabbitMQ refuses for a new queue, so that none is created),
and a made-up batch is counted in PostgreSQL and rolled back. Pending migrations are applied before that and
rolled back with it, if this role may apply them. Instances that count on these tables wait meanwhile,
usually for a moment, and never longer than --rehearse for a lock and for each statement.")]
pub(super) struct Arguments {
    /// Look at RabbitMQ and PostgreSQL, too
    #[arg(long)]
    connect: bool,
    /// Seconds that a statement of a pending migration may take when it is rehearsed; 0: no rehearsal
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds(), requires = "connect")]
    rehearse: Duration,
    /// End with 1 for warnings as well
    #[arg(long)]
    strict: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) async fn check(config: &Config, arguments: &Arguments) -> Outcome {
    let mut report = check::configuration(config);
    if arguments.connect {
        let database = check::database(config, arguments.rehearse);
        let (broker, database) = tokio::join!(check::broker(config), database);
        report.absorb(broker);
        report.absorb(database);
    }
    // The worst first; of one severity, in the order of the dataflow.
    report.findings.sort_by_key(|finding| finding.severity);
    let failed = report.count(Severity::Error) > 0
        || (arguments.strict && report.count(Severity::Warning) > 0);
    let text =
        if arguments.json { object(&report) } else { text(&report, colours(&std::io::stdout())) };
    output::answer(text, if failed { exit::FINDINGS } else { 0 })
}

/// Reports a configuration that can't be used as every command does, and with --json also as an object.
pub(super) fn unusable(problems: &ConfigErrors, arguments: &Arguments) -> Outcome {
    output::note(problems);
    if arguments.json {
        let findings = problems.problems().iter().map(Finding::from).collect();
        let report = Report { checked: vec!["the configuration".to_owned()], findings };
        output::print(object(&report))?;
    }
    Err(Exit(exit::CONFIG))
}

fn object(report: &Report) -> String {
    let object = json!({
        "findings": report.findings,
        "errors": report.count(Severity::Error),
        "warnings": report.count(Severity::Warning),
        "checked": report.checked,
    });
    format!("{object}\n")
}

fn text(report: &Report, colours: bool) -> String {
    let mut text = String::new();
    for Finding { severity, subject, value, set_by, meaning, remedy } in &report.findings {
        let name = severity.as_str();
        let (on, off) = if colours { (colour(*severity), "\x1b[0m") } else { ("", "") };
        let value = value.as_ref().map(|value| format!(": {value}")).unwrap_or_default();
        text += &format!("{on}{name}{off}{:1$}", "", INDENT - name.len());
        text += &wrapped(&format!("{subject}{value}"), WIDTH, INDENT);
        let paragraphs =
            [("set by: ", set_by.as_ref()), ("", Some(meaning)), ("fix:    ", Some(remedy))];
        for (label, paragraph) in paragraphs {
            if let Some(paragraph) = paragraph {
                let paragraph = wrapped(paragraph, WIDTH, INDENT + label.len());
                text += &format!("\n{:INDENT$}{label}{paragraph}", "");
            }
        }
        text += "\n\n";
    }
    for (index, checked) in report.checked.iter().enumerate() {
        let label = if index == 0 { "checked: " } else { "" };
        text += &format!("{label:INDENT$}{}\n", wrapped(checked, WIDTH, INDENT));
    }
    let [errors, warnings] =
        [(Severity::Error, "error"), (Severity::Warning, "warning")].map(|(severity, name)| {
            match report.count(severity) {
                0 => format!("no {name}s"),
                1 => format!("1 {name}"),
                n => format!("{n} {name}s"),
            }
        });
    format!("{text}{errors}, {warnings}\n")
}

const fn colour(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "\x1b[1;31m",
        Severity::Warning => "\x1b[1;33m",
        Severity::Info => "\x1b[1;36m",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let finding = Finding::new(
            Severity::Error,
            "queue \"votes\"",
            "votes older than 60000 ms are dropped",
            "do \x1b[2J this ".repeat(20),
        );
        let note = Finding::new(Severity::Info, "clock", "it ticks", "wind it up");
        Report {
            checked: vec!["the configuration".to_owned(), "the clock".to_owned()],
            findings: vec![finding.with_value("x-message-ttl=60000"), note],
        }
    }

    #[test]
    fn text_fits_a_terminal_and_escapes_what_a_server_wrote() {
        let text = text(&report(), false);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains('\x1b') && text.contains("\\u{1b}[2J"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "error    queue \"votes\": x-message-ttl=60000");
        assert_eq!(lines[1], "         votes older than 60000 ms are dropped");
        assert!(lines[2].starts_with("         fix:    do "), "{text}");
        assert!(lines[3].starts_with("                 "), "{text}");
        let end = ["checked: the configuration", "         the clock", "1 error, no warnings"];
        assert!(lines.ends_with(&end), "{text}");

        let coloured = super::text(&report(), true);
        assert!(coloured.starts_with("\x1b[1;31merror\x1b[0m    queue"), "{coloured}");
        assert_eq!(coloured.matches("\x1b[0m").count(), 2, "the severities alone: {coloured}");
    }

    #[test]
    fn json_is_one_object_with_every_field() {
        let object: serde_json::Value = serde_json::from_str(&object(&report())).expect("JSON");
        assert_eq!((&object["errors"], &object["warnings"]), (&json!(1), &json!(0)));
        assert_eq!(object["checked"], json!(["the configuration", "the clock"]));
        let expected = json!({
            "severity": "info", "subject": "clock", "value": null, "set_by": null,
            "meaning": "it ticks", "remedy": "wind it up",
        });
        assert_eq!(object["findings"][1], expected);
    }
}
