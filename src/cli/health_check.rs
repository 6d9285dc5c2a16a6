//! `health-check`, for containers without curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use vote_aggregator::platform::config::Config;

use super::exit::{self, Exit, Outcome};
use super::output;

/// Docker gives a check 30 s by default, Kubernetes 1 s; the answer takes milliseconds.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Args, Default)]
#[command(after_help = "\
Examples:
  vote-aggregator health-check                  0 when votes are being counted, else 1
  vote-aggregator health-check --ask livez      0 when the process answers, else 1

In a Dockerfile:
  HEALTHCHECK --interval=10s CMD [\"vote-aggregator\", \"health-check\"]")]
pub(super) struct Arguments {
    /// What to ask the service on this host, at PROMETHEUS_PORT
    #[arg(long, value_enum, default_value_t)]
    ask: Endpoint,
}

#[derive(Clone, Copy, Default, ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
enum Endpoint {
    /// Whether votes are being counted or would be
    #[default]
    Readyz,
    /// Whether the process answers
    Livez,
    /// Whether it was ready once
    Startupz,
}

/// Asks the service that runs with the same settings. Every "no" is a 1, the only code that container
/// runtimes know.
pub(super) fn check(config: &Config, arguments: &Arguments) -> Outcome {
    match ask(config, arguments.ask) {
        Ok(answer) => output::answer(format!("{answer}\n"), 0),
        Err(reason) => {
            output::note(reason);
            Err(Exit(exit::FINDINGS))
        }
    }
}

fn ask(config: &Config, endpoint: Endpoint) -> Result<String, String> {
    let port = config.monitoring.port;
    if port == 0 {
        return Err(
            "PROMETHEUS_PORT is 0: only the service knows the port that it got. Set one".to_owned()
        );
    }
    // A service that listens everywhere is reached on the loopback address.
    let host = match config.monitoring.host {
        host if !host.is_unspecified() => host,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(host, port);
    let url = format!("http://{address}/{endpoint}");
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        // A proxy cannot reach this host's loopback address.
        .proxy(None)
        .http_status_as_error(false)
        .build()
        .new_agent();
    let answered = agent.get(&url).call().and_then(|mut answer| {
        let body = answer.body_mut().read_to_string()?;
        Ok((answer.status(), body))
    });
    match answered {
        Ok((status, body)) if status.is_success() => Ok(body),
        Ok((status, body)) => Err(format!("{url} answered {status}: {body}")),
        Err(error) => Err(format!("{url} did not answer: {error}. Is the service running?")),
    }
}
