//! Private servers, started and stopped by `script/services`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::Ended;
use super::repository::run;

/// A RabbitMQ and a PostgreSQL.
pub struct Servers {
    dir: PathBuf,
    /// `script/services env`: addresses and credentials under the service's own variable names.
    env: OnceLock<BTreeMap<String, String>>,
    /// For one test, and ended with this value.
    private: bool,
}

impl Servers {
    /// The servers of the whole test run. Tests keep apart by database and queue, and never stop
    /// these.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Servers> = OnceLock::new();
        SHARED.get_or_init(|| {
            let dir = std::env::var_os("SERVICES_DIR").expect(
                "SERVICES_DIR is not set: run script/test, or first \
                 `script/services up && eval \"$(script/services env)\"`",
            );
            Self { dir: PathBuf::from(dir), env: OnceLock::new(), private: false }
        })
    }

    /// Servers for one test, which may stop and kill them.
    pub fn private(name: &str) -> Self {
        Self::private_with(name, &[])
    }

    /// The same with options of `up`.
    pub fn private_with(name: &str, options: &[&str]) -> Self {
        // Next to the shared ones, where script/test finds what a killed test left behind.
        let dir = Self::shared().dir.with_file_name(format!("{name}-{}", std::process::id()));
        // Owned before it is up, so that a failure half-way cleans up as well.
        let servers = Self { dir, env: OnceLock::new(), private: true };
        servers.script(&[&["up"], options].concat());
        servers
    }

    /// The directory of these servers, for `script/services --dir`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn read_env(&self) -> BTreeMap<String, String> {
        let env = self.script(&["env"]);
        let exports = env.lines().filter_map(|line| line.strip_prefix("export ")?.split_once('='));
        exports
            .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
            .collect()
    }

    /// One value of `script/services env`.
    pub fn get(&self, name: &str) -> &str {
        let env = self.env.get_or_init(|| self.read_env());
        env.get(name).unwrap_or_else(|| panic!("script/services env names no {name}"))
    }

    /// Runs a command of `rabbitmqctl`; returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        self.script(&[&["ctl", "--", "-q"], arguments].concat())
    }

    /// RabbitMQ's version: major and minor.
    pub fn version(&self) -> (u32, u32) {
        let version = self.ctl(&["version"]);
        let mut numbers = version.trim().split('.').map(|it| it.parse().expect("a number"));
        (numbers.next().expect("major"), numbers.next().expect("minor"))
    }

    /// `stop`, `start`, `restart`, `kill`, …, and its output.
    pub fn script(&self, arguments: &[&str]) -> String {
        let Ended { code, stdout, stderr } = self.try_script(arguments);
        assert_eq!(code, Some(0), "script/services {arguments:?}: {stderr}");
        stdout
    }

    /// Copies the servers' logs, which would be deleted with them.
    fn keep_logs(&self) {
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("logs");
        for server in ["rabbitmq", "postgres"] {
            let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
            let (from, to) = (format!("{server}.log"), format!("{name}-{server}.log"));
            match std::fs::copy(self.dir.join(from), kept.join(&to)) {
                Ok(_) => eprintln!("log of {server}: {}", kept.join(to).display()),
                Err(error) => eprintln!("no log of {server} is kept: {error}"),
            }
        }
    }

    fn try_script(&self, arguments: &[&str]) -> Ended {
        let (command, rest) = arguments.split_first().expect("a command");
        let dir = self.dir.to_str().expect("UTF-8");
        run("script/services", &[&[command, "--dir", dir], rest].concat())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if self.private {
            if std::thread::panicking() {
                self.keep_logs();
            }
            // A panic here would hide the test's own.
            let ended = self.try_script(&["down"]);
            if ended.code != Some(0) {
                eprintln!("script/services down: {}", ended.stderr);
            }
        }
    }
}
