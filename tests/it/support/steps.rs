//! Steps and assertions that many tests share.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use vote_aggregator::model::vote::Vote;

use super::{Ended, Service, Stage, eventually};

/// Of sessions that wait for a lock.
pub const WAITS: &str = "wait_event_type = 'Lock'";

/// The predecessor's tables as the contract's document lists them, with a vote in them.
pub const PREDECESSOR: &str = "
    CREATE TABLE vote_results (law_id VARCHAR(50) PRIMARY KEY, oui_count INTEGER DEFAULT 0,
        non_count INTEGER DEFAULT 0, updated_at TIMESTAMPTZ DEFAULT now());
    CREATE TABLE vote_audit (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64) UNIQUE NOT NULL,
        citizen_id VARCHAR(100), law_id VARCHAR(50), choice VARCHAR(10), timestamp TIMESTAMPTZ);
    CREATE TABLE duplicate_attempts (id SERIAL PRIMARY KEY, vote_hash VARCHAR(64),
        citizen_id VARCHAR(100), attempt_timestamp TIMESTAMPTZ);
    CREATE VIEW vote_statistics AS SELECT law_id, oui_count, non_count,
        oui_count + non_count AS total_votes FROM vote_results;
    INSERT INTO vote_results VALUES ('law-old', 1, 0);
    INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, timestamp)
        VALUES ('old', 'citizen-0', 'law-old', 'oui', '2025-01-01Z');";

/// One refused law.
pub const FORBID_LAW_X: &str =
    "ALTER TABLE vote_audit ADD CONSTRAINT no_law_x CHECK (law_id <> 'law-x')";

/// The statement that inserts one of [`super::votes`] into the audit.
pub fn insert(Vote { vote_hash, citizen_id, law_id, choice, timestamp }: &Vote) -> String {
    let (choice, milliseconds) = (choice.as_str(), timestamp.unix_timestamp_nanos() / 1_000_000);
    format!(
        "INSERT INTO vote_audit (vote_hash, citizen_id, law_id, choice, \"timestamp\") \
         VALUES ('{vote_hash}', '{citizen_id}', '{law_id}', '{choice}', \
         to_timestamp({milliseconds}::numeric / 1000))"
    )
}

/// The settings with which a role of [`Stage::role`] logs in.
pub fn login(role: &str) -> [(&str, &str); 2] {
    [("POSTGRES_USER", role), ("POSTGRES_PASSWORD", "least")]
}

impl Ended {
    /// Asserts the exit code and that the output contains each of `texts`.
    #[track_caller]
    pub fn assert(self, code: i32, texts: &[&str]) -> Self {
        let output = format!("{}{}", self.stdout, self.stderr);
        assert_eq!(self.code, Some(code), "{output}");
        assert_contains(&output, texts);
        self
    }
}

#[track_caller]
pub fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[track_caller]
pub fn assert_lacks(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(!text.contains(part), "{part:?} in {text}");
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
        let what = format!("{series} is {value}");
        eventually(&what, async || self.metric(series).await == Some(value)).await;
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

    /// Sets a setting for all sessions of this database that begin from now on.
    pub async fn set_default(&self, setting: &str) {
        self.execute(&format!("ALTER DATABASE {} SET {setting}", self.database)).await;
    }

    /// PostgreSQL's time after an interval, as a publication's `--not-before`.
    pub async fn soon(&self, interval: &str) -> String {
        let format = "'YYYY-MM-DD\"T\"HH24:MI:SSZ'";
        let time =
            format!("SELECT to_char((now() + interval '{interval}') AT TIME ZONE 'UTC', {format})");
        sqlx::query_scalar(AssertSqlSafe(time)).fetch_one(&self.sql).await.expect("a time")
    }

    /// Creates a role of this stage's own with the password of [`login`], and with further `options`
    /// of CREATE ROLE. Returns its name.
    pub async fn role(&self, name: &str, options: &str) -> String {
        let role = format!("{name}_{}", self.database);
        self.execute(&format!("CREATE ROLE {role} LOGIN PASSWORD 'least' {options}")).await;
        role
    }

    /// No lock stays with a connection of a pool.
    pub async fn assert_no_advisory_lock(&self) {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
                     (SELECT oid FROM pg_database WHERE datname = current_database())";
        assert_eq!(self.number(locks).await, 0);
    }

    /// No two transactions have waited for each other.
    pub async fn assert_no_deadlock(&self) {
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        assert_eq!(self.number(deadlocks).await, 0);
    }

    /// Waits until `query` returns this number.
    pub async fn until_number(&self, query: &'static str, number: i64) {
        eventually(&format!("{query}: {number}"), async || self.number(query).await == number)
            .await;
    }

    /// Waits until a queue has this many messages ready.
    pub async fn until_ready(&self, queue: &str, messages: usize) {
        let what = format!("{messages} messages are ready in {queue}");
        eventually(&what, async || self.ready(queue).await == Some(messages as u32)).await;
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
