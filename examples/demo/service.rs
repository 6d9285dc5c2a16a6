//! The service and the board as their user runs them: the binary, its log, its metrics, its signals.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::Result;

/// Longest wait for a line of the log, an answer, an end.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The variables of the caller that the service gets: where the demo's own servers are, and what the
/// progress bar needs to know of the terminal.
const PASSED_ON: [&str; 11] = [
    "RABBITMQ_HOST",
    "RABBITMQ_PORT",
    "RABBITMQ_USER",
    "RABBITMQ_PASSWORD",
    "POSTGRES_HOST",
    "POSTGRES_PORT",
    "POSTGRES_DB",
    "POSTGRES_USER",
    "POSTGRES_PASSWORD",
    "TERM",
    "NO_COLOR",
];

/// The binary that was built together with this one, in `directory` and with nothing of the
/// caller's settings: a `.env` or an environment that names other servers must not make the demo
/// publish its votes there.
pub fn command(directory: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("vote-aggregator"));
    command.current_dir(directory).env_clear();
    command.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    Ok(command)
}

/// A running command of the binary; killed when dropped, unless it was stopped or is kept.
pub struct Service {
    child: Child,
    pub id: Pid,
    /// Where it listens.
    pub address: String,
    log: PathBuf,
    id_file: PathBuf,
    keep: bool,
}

impl Service {
    /// The service; returns as soon as it serves metrics.
    pub async fn count(directory: &Path, profile: &str) -> Result<Self> {
        let arguments = ["--profile", profile, "run"];
        Self::start(directory, "service", &arguments, "metrics and health").await
    }

    /// A board whose files go where `target` says; returns as soon as it listens for `purpose`.
    pub async fn board(directory: &Path, target: [&str; 2], purpose: &str) -> Result<Self> {
        let arguments = ["board", "--admin", "127.0.0.1:0"];
        let arguments = [&arguments[..], &target].concat();
        Self::start(directory, "board", &arguments, &format!("listening for {purpose}")).await
    }

    /// Its log and the file with its id begin with `name`; `listens` is its message with an address.
    async fn start(
        directory: &Path,
        name: &str,
        arguments: &[&str],
        listens: &str,
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        // JSON, because its address is read from there.
        let child = command(directory)?
            .args(arguments)
            .envs([
                ("PROMETHEUS_HOST", "127.0.0.1"),
                ("PROMETHEUS_PORT", "0"),
                ("LOG_FORMAT", "json"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            // Ctrl-C is for the demo, which then ends the service; and a kept one outlives it.
            .process_group(0)
            .spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)).ok_or("no id")?;
        let id_file = directory.join(format!("{name}.pid"));
        let mut service = Self { child, id, address: String::new(), log, id_file, keep: false };
        // For script/demo: to stop a kept one, and to end one that the demo's own death left.
        std::fs::write(&service.id_file, format!("{id}\n"))?;
        let line = service.logged(listens).await?;
        service.address = line["address"].as_str().ok_or("no address in the log")?.to_owned();
        Ok(service)
    }

    /// Waits until a file of its folder says something.
    pub async fn written(&mut self, file: &Path, text: &str) -> Result<()> {
        let began = Instant::now();
        while !std::fs::read_to_string(file).is_ok_and(|content| content.contains(text)) {
            self.still_runs()?;
            if began.elapsed() > TIMEOUT {
                let log = self.log.display();
                return Err(
                    format!("no {text} in {} for {TIMEOUT:?}; see {log}", file.display()).into()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The moment from which it takes votes.
    pub async fn consuming(&mut self) -> Result<Instant> {
        self.logged("consuming").await?;
        Ok(Instant::now())
    }

    /// The first line of the log with this message.
    async fn logged(&mut self, message: &str) -> Result<serde_json::Value> {
        let began = Instant::now();
        while began.elapsed() < TIMEOUT {
            for line in std::fs::read_to_string(&self.log)?.lines() {
                // The last line may be there by half.
                let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
                if line["message"] == message {
                    return Ok(line);
                }
            }
            self.still_runs()?;
            sleep(Duration::from_millis(20)).await;
        }
        Err(format!("no line \"{message}\" in {} for {TIMEOUT:?}", self.log.display()).into())
    }

    pub fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(ended) => Err(format!("it ended with {ended}; see {}", self.log.display()).into()),
        }
    }

    /// One scrape of `/metrics`.
    pub async fn metrics(&self) -> Result<Metrics> {
        let address = format!("http://{}/metrics", self.address);
        let scrape = tokio::task::spawn_blocking(move || {
            ureq::get(address).call()?.body_mut().read_to_string()
        });
        Ok(Metrics::parse(&timeout(TIMEOUT, scrape).await???))
    }

    /// SIGTERM, as a supervisor sends it; an end in good order is exit code 0.
    pub async fn stop(&mut self) -> Result<()> {
        kill_process(self.id, Signal::TERM)?;
        let ended = timeout(TIMEOUT, self.child.wait()).await;
        let log = self.log.display();
        let ended = ended.map_err(|_| format!("no end in {TIMEOUT:?}; see {log}"))??;
        if !ended.success() {
            return Err(format!("after SIGTERM it ended with {ended}; see {log}").into());
        }
        Ok(())
    }

    /// Leaves it running.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // Both fail when it has ended already.
        self.child.start_kill().ok();
        std::fs::remove_file(&self.id_file).ok();
    }
}

/// Counters by series: `name` or `name{label="value"}`.
pub struct Metrics(BTreeMap<String, u64>);

impl Metrics {
    /// From Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let count = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            // Counts of votes are whole numbers; a duration is not, and is not asked for.
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self(series.filter_map(count).collect())
    }

    /// The sum over all label values.
    pub fn total(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default() + self.by_label(name).values().sum::<u64>()
    }

    /// By the value of the only label.
    pub fn by_label(&self, name: &str) -> BTreeMap<String, u64> {
        let label = |series: &str| {
            let labels = series.strip_prefix(name)?.strip_prefix('{')?;
            Some(labels.split('"').nth(1)?.to_owned())
        };
        self.0.iter().filter_map(|(series, count)| Some((label(series)?, *count))).collect()
    }

    /// Valid votes: counted, replays and attempts.
    pub fn votes(&self) -> u64 {
        self.total("batch_size_processed_total")
    }

    /// Messages that the service is done with.
    pub fn settled(&self) -> u64 {
        self.votes() + self.total("votes_rejected_total") + self.total("votes_isolated_total")
    }
}
