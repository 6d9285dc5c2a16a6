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

/// A program with the stage's settings and nothing else in its environment.
pub fn command(stage: &Stage<'_>, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(stage.environment())
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

pub async fn ended(mut command: Command) -> Ended {
    let output = timeout(PATIENCE, command.output()).await.expect("ends in time");
    let Output { status, stdout, stderr } = output.expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// A command of the binary.
pub async fn run(stage: &Stage<'_>, name: &str, arguments: &[&str]) -> Ended {
    ended(command(stage, BINARY, &[&[name], arguments].concat())).await
}

/// As the owner of everything.
pub async fn execute(stage: &Stage<'_>, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&stage.sql).await.expect("executed");
}
