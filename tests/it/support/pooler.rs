//! A transaction pooler before a stage's PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{Stage, eventually, listen};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/pgbouncer/settings.ini");

/// A running PgBouncer, ended with this value.
pub struct Pooler {
    pub port: String,
    program: String,
    file: PathBuf,
    process: Child,
}

impl Pooler {
    /// Logged in as a role, if not as the owner, and with `settings` that win over the shipped ones. Each
    /// transaction gets another of a few server connections.
    pub async fn with(stage: &Stage<'_>, role: Option<&str>, settings: &str) -> Self {
        let program = stage.servers.script(&["pgbouncer"]).trim().to_owned();
        let (listener, port) = listen().await;
        drop(listener);
        let file =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{port}.ini", stage.database));
        let [host, to, user, password] = ["HOST", "PORT", "USER", "PASSWORD"]
            .map(|name| stage.servers.get(&format!("POSTGRES_{name}")));
        let (user, password) = role.map_or((user, password), |role| (role, "least"));
        let text = format!(
            "[databases]\n* = host={host} port={to} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\ndefault_pool_size = 6\nserver_round_robin = 1\n\
             %include {SHIPPED}\n{settings}\n"
        );
        std::fs::write(&file, text).expect("written");
        let process = spawn(&program, &file);
        let pooler = Self { port, program, file, process };
        pooler.until_listening().await;
        pooler
    }

    /// Kills it, and starts another in its place.
    pub async fn restart(&mut self) {
        self.process.kill().await.expect("it ran");
        self.process = spawn(&self.program, &self.file);
        self.until_listening().await;
    }

    async fn until_listening(&self) {
        let address = format!("127.0.0.1:{}", self.port);
        eventually("the pooler listens", async || TcpStream::connect(&address).await.is_ok()).await;
    }
}

fn spawn(program: &str, file: &Path) -> Child {
    let mut command = Command::new(program);
    if rustix::process::geteuid().is_root() {
        // It refuses to run as root.
        command.args(["-u", "nobody"]);
    }
    command.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().expect("it runs")
}
