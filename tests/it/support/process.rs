//! The service's binary as a process, killed when its value is dropped.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::processes::signal_tree;
use super::{BINARY, PATIENCE, Servers, eventually};

/// The service renders its metrics once in such a period.
const RENDERED_EVERY: Duration = Duration::from_millis(1_010);

/// Variables and their values.
pub type Environment = BTreeMap<String, String>;

/// A running service.
pub struct Service {
    child: Child,
    log: PathBuf,
    /// When its metrics were last asked for.
    scraped: Mutex<Option<Instant>>,
}

/// An answer of its HTTP port.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(it, _)| it.to_ascii_lowercase() == name).map(|(_, value)| value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("a JSON body")
    }
}

impl Service {
    /// Starts the binary with only `environment`; its log goes to a file.
    pub async fn spawn(name: &str, arguments: &[&str], environment: &Environment) -> Self {
        let mut command = Command::new(BINARY);
        command.args(arguments);
        Self::spawn_as(name, command, environment)
    }

    /// As [`Service::spawn`], with a command that runs the binary.
    pub fn spawn_as(name: &str, mut command: Command, environment: &Environment) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logs");
        fs::create_dir_all(&logs).expect("a directory for logs");
        let log = logs.join(format!("{name}-{}-{number}.log", std::process::id()));
        // No pipeline.toml and no .env to be found.
        command.env_clear().envs(environment).current_dir(&logs).kill_on_drop(true);
        command.stderr(File::create(&log).expect("a log file"));
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Self { child: child.expect("the binary runs"), log, scraped: Mutex::new(None) }
    }

    /// All it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Log lines that contain `text`.
    pub fn logged(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    pub async fn until_logged(&self, text: &str) {
        eventually(&format!("{text:?} in {}", self.log.display()), async || self.logged(text) > 0)
            .await;
    }

    /// The address of its HTTP port, once it has one.
    pub async fn address(&self) -> String {
        self.listens_for("metrics and health").await
    }

    /// The address that it says to listen on for `purpose`.
    pub async fn listens_for(&self, purpose: &str) -> String {
        self.until_logged(purpose).await;
        let log = self.log();
        let line = log.lines().find(|line| line.contains(purpose));
        let line: Value = serde_json::from_str(line.expect("just seen")).expect("a JSON log line");
        line["address"].as_str().expect("an address").to_owned()
    }

    /// The port of [`Service::address`].
    pub async fn port(&self) -> String {
        self.address().await.rsplit(':').next().expect("a port").to_owned()
    }

    /// Its current answer: metrics are not asked for while the last rendering is served again.
    pub async fn get(&self, path: &str) -> Answer {
        let address = self.address().await;
        let ask = async || {
            let answer = timeout(PATIENCE, request(&address, path)).await;
            answer.expect("an answer in time").expect("an HTTP answer")
        };
        if path != "/metrics" {
            return ask().await;
        }
        let mut scraped = self.scraped.lock().await;
        if let Some(last) = *scraped {
            sleep_until(last + RENDERED_EVERY).await;
        }
        let answer = ask().await;
        *scraped = Some(Instant::now());
        answer
    }

    pub async fn until_ready(&self) {
        let what = format!("ready; see {}", self.log.display());
        eventually(&what, async || self.get("/readyz").await.status == 200).await;
    }

    pub async fn until_not_ready(&self) {
        eventually("not ready", async || self.get("/readyz").await.status == 503).await;
    }

    /// The value of one series of a scrape, e.g. `votes_replayed_total`; labels in the exporter's
    /// order.
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let scrape = self.get("/metrics").await.body;
        let line = scrape
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map(|line| line.rsplit(' ').next().expect("a value").parse().expect("a number"))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// The most memory it has used so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// The memory it uses now, in bytes.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    fn status(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("Linux");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a size");
        line.trim_end_matches("kB").trim().parse::<u64>().expect("kilobytes") * 1_024
    }

    /// The processor time that its threads of this name have used so far.
    pub fn thread_time(&self, name: &str) -> Duration {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.id())).expect("Linux");
        let times = tasks.filter_map(|task| {
            let task = task.expect("an entry").path();
            let its = fs::read_to_string(task.join("comm")).ok()?;
            // Its first number: nanoseconds on a processor.
            let stat = fs::read_to_string(task.join("schedstat")).ok()?;
            let time = stat.split(' ').next()?.parse::<u64>().expect("a number");
            (its.trim_end() == name).then_some(time)
        });
        Duration::from_nanos(times.sum())
    }

    pub fn signal(&self, signal: Signal) {
        send(&self.child, signal);
    }

    /// Waits for its end; the exit code, or `None` when a signal ended it.
    pub async fn exit_code(&mut self) -> Option<i32> {
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("ends in time");
        ended.expect("a child of ours").code()
    }

    /// SIGTERM, and an exit with code 0.
    pub async fn stop(mut self) -> String {
        self.signal(Signal::TERM);
        let code = self.exit_code().await;
        assert_eq!(code, Some(0), "exit code after SIGTERM; log:\n{}", self.log());
        self.log()
    }
}

/// To a child that has not been waited for.
pub fn send(child: &Child, signal: Signal) {
    let id = i32::try_from(child.id().expect("still running"));
    let id = Pid::from_raw(id.expect("no process id is that large")).expect("not 0");
    kill_process(id, signal).expect("signalled");
}

/// A server whose processes keep their connections and answer nothing, like a host that hangs; they
/// continue when this value is dropped.
pub struct Frozen(i32);

impl Frozen {
    pub fn server(servers: &Servers, name: &str) -> Self {
        let root = servers.script(&["pid", name]).trim().parse().expect("a process id");
        signal_tree(root, Signal::STOP);
        Self(root)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal_tree(self.0, Signal::CONT);
    }
}

pub async fn request(address: &str, path: &str) -> std::io::Result<Answer> {
    exchange(address, &format!("GET {path}"), "").await
}

/// As [`request`], with a method before the path, and headers that each end a line.
pub async fn exchange(address: &str, asked: &str, headers: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("{asked} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
