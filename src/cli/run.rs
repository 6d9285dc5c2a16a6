//! `run`, and the signals that end it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::future::{self, OptionFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vote_aggregator::platform::config::{Config, Problem, Suspicions};
use vote_aggregator::platform::service_manager::ServiceManager;
use vote_aggregator::platform::telemetry::{Traces, seconds};
use vote_aggregator::service::{self, ServiceError};

use super::FLUSH_TIMEOUT;
use super::exit::{self, Exit, Outcome};
use super::signals::{Signals, leave};

pub(super) async fn run(config: Config, traces: Traces) -> Outcome {
    let settings = config.redacted().into_iter();
    let settings = settings.map(|setting| format!("{}={}", setting.path, setting.value));
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        profile = config.profile,
        "starting; {}",
        settings.collect::<Vec<_>>().join(" ")
    );
    warn_of(&config.suspicions);
    // Before anything else, so that a signal during start is a stop and not a kill.
    let mut signals = Signals::listen()
        .map_err(|error| exit::cannot("listen for signals", error, exit::INTERNAL))?;
    let stop = CancellationToken::new();
    let manager = ServiceManager::from_env();
    let running = service::run(&config, manager.as_ref(), &stop);
    let mut service = Box::pin(AssertUnwindSafe(running).catch_unwind());

    let first = tokio::select! {
        ended = &mut service => {
            let outcome = outcome(ended);
            traces.flush(FLUSH_TIMEOUT).await;
            return outcome;
        }
        signal = signals.next() => signal,
    };
    let deadline = Instant::now() + config.shutdown.timeout;
    tracing::info!(
        signal = first.name,
        deadline = seconds(config.shutdown.timeout),
        "stopping: deliveries already received are committed and acked, the rest stays in the queue"
    );
    stop.cancel();
    let notifying = OptionFuture::from(manager.as_ref().map(ServiceManager::stopping));
    // Together: a manager that does not listen holds up neither the stop nor a second signal.
    let mut ending = Box::pin(future::join(service, notifying));
    let ended = tokio::select! {
        (ended, _) = &mut ending => ended,
        second = signals.next() => {
            tracing::warn!(signal = second.name, "second signal, ending at once");
            drop(ending);
            leave(second.code)
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
    let outcome = outcome(ended);
    // Everything is settled: the last spans get what is left of the deadline.
    let left = deadline.saturating_duration_since(Instant::now());
    tokio::select! {
        () = traces.flush(FLUSH_TIMEOUT.min(left)) => outcome,
        second = signals.next() => leave(second.code),
    }
}

fn outcome(ended: Result<Result<(), ServiceError>, Box<dyn Any + Send>>) -> Outcome {
    let error = match ended {
        Ok(Ok(())) => return Ok(0),
        Ok(Err(ServiceError::TaskEnded(ended))) => {
            tracing::error!("ended: {ended}; please report it");
            return Err(Exit(exit::INTERNAL));
        }
        Ok(Err(error)) => error,
        // The panic's message is on standard error already.
        Err(_panic) => {
            tracing::error!("the service ended unexpectedly; please report it");
            return Err(Exit(exit::INTERNAL));
        }
    };
    let code = match &error {
        ServiceError::Store(error) => exit::of_postgres(error),
        ServiceError::Broker(error) => exit::of_rabbitmq(error),
        ServiceError::Bind(_) => exit::CONFIG,
        ServiceError::Metrics(_) | ServiceError::Http(_) | ServiceError::TaskEnded(_) => {
            exit::INTERNAL
        }
    };
    Err(exit::cannot("start", error, code))
}

/// Warns of what is most likely a mistake in the configuration; of all unread variables in one line.
fn warn_of(Suspicions { unread, expanded }: &Suspicions) {
    if !unread.is_empty() {
        let named: Vec<_> = unread.iter().map(|it| format!("{}, {}", it.set_by, it.help)).collect();
        let named = named.join("; ");
        tracing::warn!("variables that no setting reads, so that they change nothing: {named}");
    }
    for Problem { key, wrong, set_by, help, .. } in expanded {
        tracing::warn!("{key} {wrong} ({set_by}); {help}");
    }
}

#[cfg(test)]
mod tests {
    use vote_aggregator::service::TaskEnded;

    use super::*;

    #[test]
    fn a_panic_and_a_background_task_that_ended_are_internal_errors() {
        let ended = TaskEnded { name: "broken", how: "panicked" };
        assert_eq!(outcome(Ok(Err(ended.into()))), Err(Exit(exit::INTERNAL)));
        assert_eq!(outcome(Err(Box::new("on purpose"))), Err(Exit(exit::INTERNAL)));
    }
}
