//! The command line: arguments to commands, results to exit codes.

mod board;
mod check;
mod completions;
mod dlq;
mod embargo;
mod exit;
mod health_check;
mod listen;
mod man;
mod migrate;
mod output;
mod publication;
mod publish;
mod recount;
mod results;
mod run;
mod seal;
mod signals;
mod verify;

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};
use tracing::Level;
use vote_aggregator::adapters::store::init_script;
use vote_aggregator::platform::config::{Config, Overrides, Sources, exposed_passwords};
use vote_aggregator::platform::telemetry::{self, Traces};

use self::exit::{Exit, Outcome};

/// How long the last spans may take on their way to the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Seconds for which a command tries to reach a server that is away, unless `--retry-for` says otherwise.
const RETRY_FOR: &str = "300";

/// Where settings come from, for help and manual page.
const SETTINGS: &str =
    "Settings come from pipeline.toml, .env and the environment; docs/configuration.md lists them.";

const EXAMPLES: &str = "\
Examples:
  vote-aggregator                               count votes, settings from the environment
  vote-aggregator --profile throughput run      larger batches and prefetch
  vote-aggregator check --connect               look for mistakes before counting begins
  vote-aggregator migrate                       create or upgrade the tables
  vote-aggregator publish --count 1000          publish 1,000 sample votes
  vote-aggregator results                       the results by law
  vote-aggregator recount                       compare the results with the audit
  vote-aggregator publication show              what the public sees of the results
  vote-aggregator seal --dir DIR                keep a tamper-evident log of the counted votes
  vote-aggregator dlq list                      show what could not be counted, and why
  vote-aggregator health-check                  ask the service on this host whether it is ready";

const RUN_EXAMPLES: &str = "\
Examples:
  vote-aggregator run                           settings from the environment and pipeline.toml
  vote-aggregator run --profile throughput      larger batches and prefetch
  vote-aggregator run --config /etc/votes.toml --set monitoring.port=9001

SIGINT or SIGTERM stops it: deliveries already received are committed and acknowledged first. A
second signal ends it at once.";

/// Counts votes from a RabbitMQ queue into PostgreSQL, each exactly once.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{}\n\n{SETTINGS}", exit_codes()))]
struct Arguments {
    /// Configuration file, instead of pipeline.toml in the working directory
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Profile: default or throughput
    #[arg(long, global = true, value_name = "NAME")]
    profile: Option<String>,
    /// One setting, overriding all other sources, e.g. --set batch.size=500
    #[arg(long, global = true, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
    /// The same as the command health-check, for containers whose checks are flags
    #[arg(long)]
    health_check: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Count votes until SIGINT or SIGTERM (the default)
    #[command(after_help = RUN_EXAMPLES)]
    Run,
    /// Look for mistakes in the configuration, and with --connect on the servers: exit code 0 or 1
    Check(check::Arguments),
    /// Create or upgrade the tables
    Migrate(migrate::Arguments),
    /// Publish sample votes, or the lines of a file, to the queue
    Publish(publish::Arguments),
    /// Show the results: a table, JSON or CSV
    Results(results::Arguments),
    /// Recount the audit and compare the results with it: exit code 0 or 1
    Recount(recount::Arguments),
    /// Decide what the public sees of the results, and from when on
    Publication(publication::Arguments),
    /// Make the public page of what is published, in a folder or on a port, until SIGINT or SIGTERM
    Board(board::Arguments),
    /// Keep a tamper-evident log of the votes that are counted, until SIGINT or SIGTERM
    Seal(seal::Arguments),
    /// Verify a log of counted votes by its files alone: exit code 0 or 1
    Verify(verify::Arguments),
    /// List dead letters, replay them, remove them
    Dlq(dlq::Arguments),
    /// Ask the service on this host whether it is ready: exit code 0 or 1
    HealthCheck(health_check::Arguments),
    /// Print shell completions for commands and options
    Completions(completions::Arguments),
    /// Print the manual page
    Man(man::Arguments),
}

pub fn main() -> ExitCode {
    let (Ok(code) | Err(Exit(code))) = run_command();
    ExitCode::from(code)
}

fn run_command() -> Outcome {
    let Arguments { config, profile, set, health_check, command } =
        Arguments::try_parse().map_err(|error| output::of_clap(&error))?;
    let command = match command {
        Some(_) if health_check => {
            let both = "--health-check goes without a command";
            let error = Arguments::command().error(ErrorKind::ArgumentConflict, both);
            return Err(output::of_clap(&error));
        }
        None if health_check => Command::HealthCheck(health_check::Arguments::default()),
        command => command.unwrap_or(Command::Run),
    };
    // These need no configuration.
    match &command {
        Command::Migrate(arguments) if arguments.print => {
            return output::answer(init_script(), 0);
        }
        Command::Completions(arguments) => {
            return completions::completions(Arguments::command(), arguments);
        }
        Command::Man(arguments) => return man::man(Arguments::command(), arguments),
        Command::Verify(arguments) => return verify::verify(arguments),
        _ => {}
    }
    let flags = Overrides { config, profile, set };
    for warning in exposed_passwords(&flags) {
        output::note_at(Level::WARN, format_args!("warning: {warning}"));
    }
    let config = match (Config::load(&Sources::from_process(flags)), &command) {
        (Ok(config), Command::HealthCheck(arguments)) => {
            return health_check::check(&config, arguments);
        }
        (Ok(config), _) => config,
        (Err(problems), Command::Check(arguments)) => return check::unusable(&problems, arguments),
        (Err(problems), Command::HealthCheck(_)) => return Err(failed(exit::FINDINGS, problems)),
        (Err(problems), _) => return Err(failed(exit::CONFIG, problems)),
    };
    // One thread: it counts, and reads PostgreSQL's answers itself. With workers beside it each
    // answer goes through two threads, which costs a fifth of the processor time (docs/performance.md).
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
            failed(exit::INTERNAL, format_args!("cannot start the runtime: {error}"))
        })?;
    let ended = runtime.block_on(run_async(command, config));
    // A name that is still being looked up, or a read of standard input, blocks a thread that
    // nothing can end; dropping the runtime would wait for it, past any deadline.
    runtime.shutdown_background();
    telemetry::flush_logs();
    ended
}

async fn run_async(command: Command, config: Config) -> Outcome {
    let traces =
        Traces::from_env(config.batch.size).map_err(|error| failed(exit::CONFIG, error))?;
    let monitoring = &config.monitoring;
    let queued = matches!(command, Command::Run);
    telemetry::init_logs(monitoring.log_level, monitoring.log_format, &traces, queued);
    match command {
        Command::Run => run::run(config, traces).await,
        Command::Check(arguments) => check::check(&config, &arguments).await,
        Command::Results(arguments) => results::results(&config, &arguments).await,
        Command::Recount(arguments) => recount::recount(&config, &arguments).await,
        Command::Publication(arguments) => publication::publication(&config, arguments).await,
        Command::Board(arguments) => board::board(&config, &arguments).await,
        Command::Seal(arguments) => seal::seal(&config, &arguments).await,
        Command::Dlq(arguments) => dlq::dlq(&config, arguments).await,
        Command::Migrate(arguments) => migrate::migrate(&config, &arguments).await,
        Command::Publish(arguments) => {
            let ended = publish::publish(&config, &arguments).await;
            traces.flush(FLUSH_TIMEOUT).await;
            ended
        }
        Command::HealthCheck(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::Verify(_) => {
            unreachable!("these commands end before the runtime starts")
        }
    }
}

/// The table of exit codes for the help.
fn exit_codes() -> String {
    let rows = exit::TABLE.map(|(code, meaning)| {
        format!("\n  {:<6} {}", exit::name(code), output::wrapped(meaning, 80, 9))
    });
    format!("Exit codes:{}", rows.concat())
}

/// Reports what failed before there was a log.
fn failed(code: u8, error: impl Display) -> Exit {
    output::note_at(Level::ERROR, error);
    Exit(code)
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE, e.g. batch.size=500".to_owned()),
    }
}

/// Parses whole seconds.
fn seconds() -> impl TypedValueParser<Value = Duration> {
    clap::value_parser!(u32).map(|seconds| Duration::from_secs(seconds.into()))
}

#[cfg(test)]
mod tests;
