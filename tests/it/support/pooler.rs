//! A transaction pooler before a stage's PostgreSQL.

use std::path::Path;
use std::process::Stdio;

use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use super::{Stage, eventually};

/// A running PgBouncer, ended with this value.
pub struct Pooler {
    pub port: String,
    _process: Child,
}

impl Pooler {
    /// Each transaction gets another of a few server connections.
    pub async fn start(stage: &Stage<'_>) -> Self {
        Self::ignoring(stage, "options, extra_float_digits").await
    }

    /// As [`Pooler::start`], with other startup parameters that it ignores and does not refuse.
    pub async fn ignoring(stage: &Stage<'_>, parameters: &str) -> Self {
        let program = stage.servers.script(&["pgbouncer"]);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port().to_string();
        drop(listener);
        let file =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{port}.ini", stage.database));
        let [host, to, user, password] = ["HOST", "PORT", "USER", "PASSWORD"]
            .map(|name| stage.servers.get(&format!("POSTGRES_{name}")));
        let settings = format!(
            "[databases]\n* = host={host} port={to} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = transaction\ndefault_pool_size = 6\n\
             server_round_robin = 1\nignore_startup_parameters = {parameters}\n"
        );
        std::fs::write(&file, settings).expect("written");
        let mut command = Command::new(program.trim());
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            command.args(["-u", "nobody"]);
        }
        command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.kill_on_drop(true).spawn().expect("it runs");
        eventually("the pooler listens", async || {
            TcpStream::connect(format!("127.0.0.1:{port}")).await.is_ok()
        })
        .await;
        Self { port, _process: process }
    }
}
