//! Steps and assertions that many tests share.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use vote_aggregator::model::vote::Vote;

use super::{BINARY, Ended, Service, Stage, command, ended, eventually, execute};

/// Counts the sessions of a stage's database that wait for a lock.
pub const LOCK_WAITS: &str = "SELECT count(*) FROM pg_stat_activity \
                              WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// The settings with which a role of [`Stage::role`] logs in.
pub fn login(role: &str) -> [(&str, &str); 2] {
    [("POSTGRES_USER", role), ("POSTGRES_PASSWORD", "least")]
}

/// Runs the binary with `settings` on top of the stage's.
pub async fn run_with(stage: &Stage<'_>, arguments: &[&str], settings: &[(&str, &str)]) -> Ended {
    let mut command = command(stage, BINARY, arguments);
    command.envs(settings.iter().copied());
    ended(command).await
}

impl Ended {
    /// Asserts the exit code and that the output contains each of `texts`.
    #[track_caller]
    pub fn assert(self, code: i32, texts: &[&str]) -> Self {
        let output = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{output}");
        for text in texts {
            assert!(output.contains(text), "{text:?} in {output}");
        }
        self
    }
}

impl Service {
    /// Waits for its end; asserts the exit code and that its log, which it returns, contains each
    /// of `texts`.
    pub async fn assert_ends(mut self, code: i32, texts: &[&str]) -> String {
        let ended = self.exit_code().await;
        let ended = Ended { code: ended, stdout: String::new(), stderr: self.log() };
        ended.assert(code, texts).stderr
    }

    /// Waits until a series of its metrics has this value.
    pub async fn until_metric(&self, series: &str, value: f64) {
        eventually(&format!("{series} is {value}"), async || {
            self.metric(series).await == Some(value)
        })
        .await;
    }

    /// The `checks` of its readiness.
    pub async fn checks(&self) -> Value {
        self.get("/readyz").await.json()["checks"].clone()
    }

    /// Waits until a check of its readiness is good, or is not.
    pub async fn until_check(&self, check: &str, ok: bool) {
        eventually(&format!("{check} is {ok}"), async || self.checks().await[check]["ok"] == ok)
            .await;
    }
}

impl Stage<'_> {
    /// A transaction that has executed `sql` and keeps its locks until it is dropped.
    pub async fn hold(&self, sql: &str) -> Transaction<'static, Postgres> {
        let mut transaction = self.sql.begin().await.expect("a transaction");
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(&mut *transaction).await.expect("executed");
        transaction
    }

    /// Creates a role of this stage's own with the password of [`login`], and with further `options`
    /// of CREATE ROLE. Returns its name.
    pub async fn role(&self, name: &str, options: &str) -> String {
        let role = format!("{name}_{}", self.database);
        execute(self, &format!("CREATE ROLE {role} LOGIN PASSWORD 'least' {options}")).await;
        role
    }

    /// Waits until `query` returns this number.
    pub async fn until_number(&self, query: &'static str, number: i64) {
        eventually(&format!("{query}: {number}"), async || self.number(query).await == number)
            .await;
    }

    /// Waits until a queue has this many messages ready.
    pub async fn until_ready(&self, queue: &str, messages: usize) {
        eventually(&format!("{messages} messages are ready in {queue}"), async || {
            self.ready(queue).await == Some(messages as u32)
        })
        .await;
    }

    /// Waits until the votes are counted and stops the services; asserts that nothing else is
    /// counted and that the queue is empty. Returns the services' logs.
    pub async fn finish(
        &self,
        services: impl IntoIterator<Item = Service>,
        votes: &[Vote],
    ) -> String {
        self.until_counted(votes.len()).await;
        // What a lost session took comes again: a stop before that would leave it in the queue.
        self.until_ready(&self.queue, 0).await;
        let mut logs = String::new();
        for service in services {
            logs += &service.stop().await;
        }
        self.assert_counted_exactly(votes).await;
        self.assert_drained().await;
        logs
    }
}
