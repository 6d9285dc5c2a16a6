//! `run`, and the signals that end it.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use futures::{FutureExt, future};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vote_aggregator::platform::config::{Config, Problem, Suspicions};
use vote_aggregator::platform::service_manager::ServiceManager;
use vote_aggregator::platform::telemetry::{Traces, seconds};
use vote_aggregator::service::{self, NamedTask, ServiceError};

use super::signals::{Signals, leave};
use super::{FLUSH_TIMEOUT, exit};

pub(super) async fn run(config: Config, traces: Traces) -> ExitCode {
    run_with(config, traces, Vec::new()).await
}

/// Runs the service and supervises `tasks` together with its own.
async fn run_with(config: Config, traces: Traces, tasks: Vec<NamedTask>) -> ExitCode {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        profile = config.profile,
        "starting; {}",
        settings(&config)
    );
    for warning in suspicions(&config.suspicions) {
        tracing::warn!("{warning}");
    }
    // Before anything else, so that a signal during start is a stop and not a kill.
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::error!("cannot listen for signals: {error}");
            return ExitCode::from(exit::INTERNAL);
        }
    };
    let stop = CancellationToken::new();
    let manager = ServiceManager::from_env();
    let running = service::run(&config, manager.as_ref(), &stop, tasks);
    let mut service = Box::pin(AssertUnwindSafe(running).catch_unwind());

    let first = tokio::select! {
        ended = &mut service => {
            let code = code(ended);
            traces.flush(FLUSH_TIMEOUT).await;
            return code;
        }
        signal = signals.next() => signal,
    };
    let deadline = Instant::now() + config.shutdown.timeout;
    tracing::info!(
        signal = first.name(),
        deadline = seconds(config.shutdown.timeout),
        "stopping: what was taken is committed and acked, the rest stays in the queue"
    );
    stop.cancel();
    let telling = async {
        if let Some(manager) = &manager {
            manager.stopping().await;
        }
    };
    // Together: a manager that does not listen holds up neither the stop nor a second signal.
    let mut ending = Box::pin(future::join(service, telling));
    let ended = tokio::select! {
        (ended, ()) = &mut ending => ended,
        second = signals.next() => {
            tracing::warn!(signal = second.name(), "second signal, ending at once");
            drop(ending);
            leave(second.code())
        }
        () = tokio::time::sleep_until(deadline) => {
            tracing::error!(
                "not done within SHUTDOWN_TIMEOUT_SECONDS; what is not committed is not acked and \
                 will be delivered again"
            );
            drop(ending);
            leave(exit::DEADLINE)
        }
    };
    let code = code(ended);
    // Everything is settled; spans are worth no more than what is left of the deadline.
    let left = deadline.saturating_duration_since(Instant::now());
    tokio::select! {
        () = traces.flush(FLUSH_TIMEOUT.min(left)) => code,
        second = signals.next() => leave(second.code()),
    }
}

fn code(ended: Result<Result<(), ServiceError>, Box<dyn Any + Send>>) -> ExitCode {
    let error = match ended {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) => error,
        // What it was is on standard error already.
        Err(_panic) => {
            tracing::error!("the service ended unexpectedly; please report it");
            return ExitCode::from(exit::INTERNAL);
        }
    };
    match &error {
        ServiceError::TaskEnded(ended) => tracing::error!("ended: {ended}; please report it"),
        error => tracing::error!("cannot start: {error}"),
    }
    ExitCode::from(match error {
        ServiceError::Store(error) => exit::of_postgres(&error),
        ServiceError::Broker(error) => exit::of_rabbitmq(&error),
        ServiceError::Bind(_) => exit::CONFIG,
        ServiceError::Metrics(_) | ServiceError::Http(_) | ServiceError::TaskEnded(_) => {
            exit::INTERNAL
        }
    })
}

/// What is most likely a mistake in the configuration; all variables that nobody reads in one line.
fn suspicions(Suspicions { unread, expanded }: &Suspicions) -> Vec<String> {
    let mut warnings = Vec::new();
    if !unread.is_empty() {
        let named = unread.iter().map(|it| format!("{}, {}", it.set_by, it.help));
        warnings.push(format!(
            "variables that no setting reads, so that they change nothing: {}",
            named.collect::<Vec<_>>().join("; ")
        ));
    }
    let text = |it: &Problem| format!("{} {} ({}); {}", it.key, it.wrong, it.set_by, it.help);
    warnings.extend(expanded.iter().map(text));
    warnings
}

fn settings(config: &Config) -> String {
    let settings = config.redacted().into_iter();
    settings
        .map(|setting| format!("{}={}", setting.path, setting.value))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use vote_aggregator::platform::config::Sources;

    use super::*;

    #[tokio::test]
    async fn a_background_task_that_panics_ends_the_program_with_70() {
        // Nothing listens on port 1: the service waits for PostgreSQL.
        let settings =
            [("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_PORT", "1"), ("PROMETHEUS_PORT", "0")];
        let environment = settings.map(|(name, value)| (name.to_owned(), value.into())).into();
        let sources = Sources { environment, ..Sources::default() };
        let config = Config::load(&sources).expect("a good configuration");
        let traces = Traces::from_env(config.batch.size).expect("no traces are configured");
        let tasks: Vec<NamedTask> = vec![("broken", async { panic!("on purpose") }.boxed())];
        assert_eq!(run_with(config, traces, tasks).await, ExitCode::from(exit::INTERNAL));
    }
}
