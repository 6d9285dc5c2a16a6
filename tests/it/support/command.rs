//! The binary's commands, or a program around them, run to their end on a stage.

use std::process::{Output, Stdio};

use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::process::Command;
use tokio::time::timeout;

use super::{PATIENCE, Stage};

pub const BINARY: &str = env!("CARGO_BIN_EXE_vote-aggregator");

/// What a command left behind.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("one JSON object")
    }
}

impl From<Output> for Ended {
    fn from(Output { status, stdout, stderr }: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }
}

impl Stage<'_> {
    /// A program with this stage's settings and nothing else in its environment.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = bare(program, arguments);
        command.envs(self.environment());
        command
    }

    /// A command of the binary.
    pub async fn run(&self, name: &str, arguments: &[&str]) -> Ended {
        self.run_with(&[&[name], arguments].concat(), &[]).await
    }

    /// Runs the binary with `settings` on top of the stage's.
    pub async fn run_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
        let mut command = self.command(BINARY, arguments);
        command.envs(settings.iter().copied());
        ended(command).await
    }

    /// The binary with these arguments on a terminal, which util-linux's script makes. `answer` is
    /// typed.
    pub async fn on_terminal(&self, arguments: &str, answer: &str) -> Ended {
        let line = format!(
            "printf '%s\\n' '{answer}' | \
             script --quiet --return --command '{BINARY} {arguments}' /dev/null"
        );
        ended(on_path(self.command("bash", &["-c", &line]))).await
    }

    /// As the owner of everything.
    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.sql).await.expect("executed");
    }
}

/// A program with nothing in its environment, and without input.
pub fn bare(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    // No pipeline.toml and no .env is there.
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// The same command, which may run other programs.
pub fn on_path(mut command: Command) -> Command {
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

pub async fn ended(command: Command) -> Ended {
    ended_into(command, Stdio::piped()).await
}

/// As [`ended`], with another standard output.
pub async fn ended_into(mut command: Command, stdout: impl Into<Stdio>) -> Ended {
    let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("it runs");
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("ends in time");
    output.expect("it ran").into()
}
