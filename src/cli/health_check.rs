//! `health-check`: what a container without curl asks itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use vote_aggregator::platform::config::Config;

use super::{exit, output};

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

#[derive(Clone, Copy, Default, ValueEnum)]
enum Endpoint {
    /// Whether votes are being counted or would be
    #[default]
    Readyz,
    /// Whether the process answers
    Livez,
    /// Whether it was ready once
    Startupz,
}

impl Endpoint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Readyz => "readyz",
            Self::Livez => "livez",
            Self::Startupz => "startupz",
        }
    }
}

/// Asks the service that runs with the same settings. Every "no" is a 1: supervisors know nothing
/// else.
pub(super) fn check(config: &Config, arguments: &Arguments) -> ExitCode {
    match ask(config, arguments.ask) {
        Ok(answer) => output::answer(format!("{answer}\n"), 0),
        Err(reason) => {
            output::note(reason);
            ExitCode::from(exit::FINDINGS)
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
    let address = SocketAddr::new(local(config.monitoring.host), port);
    let url = format!("http://{address}/{}", endpoint.as_str());
    let agent = ureq::Agent::config_builder()
        .timeout_global(Some(TIMEOUT))
        // A proxy knows nothing of this host.
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

/// Where a service that listens on `host` is reached from the same host.
fn local(host: IpAddr) -> IpAddr {
    match host {
        IpAddr::V4(v4) if v4.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(v6) if v6.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        host => host,
    }
}
