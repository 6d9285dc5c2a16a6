//! Stands between a command and one of a stage's servers, and acts on what the command sends.

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::Stage;

/// What happens to a part of what a client sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    Forward,
    /// Passes on, and the connection ends when the server answers; the client gets no answer.
    LoseAnswer,
    /// This part alone does not pass.
    Swallow,
    /// From now on nothing passes on this connection, and both ends stay open.
    HalfOpen,
}

type Hook = dyn Fn(Vec<u8>) -> BoxFuture<'static, Pass> + Send + Sync;

/// A running interceptor, ended with this value.
pub struct Interceptor {
    pub port: String,
    _task: JoinSet<()>,
}

impl Interceptor {
    /// `hook` is called with each part that a client sends, before `server` (`POSTGRES` or
    /// `RABBITMQ`) has it.
    pub async fn start(
        stage: &Stage<'_>,
        server: &str,
        hook: impl Fn(Vec<u8>) -> BoxFuture<'static, Pass> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("an address").port().to_string();
        let [host, to] =
            ["HOST", "PORT"].map(|name| stage.servers.get(&format!("{server}_{name}")));
        let server = format!("{host}:{to}");
        let hook: Arc<Hook> = Arc::new(hook);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.expect("a client");
                connections.spawn(relay(client, server.clone(), Arc::clone(&hook)));
            }
        });
        Self { port, _task: task }
    }
}

async fn relay(mut client: TcpStream, server: String, hook: Arc<Hook>) {
    let mut server = TcpStream::connect(server).await.expect("the server");
    let (mut sent, mut answered) = ([0; 16_384], [0; 16_384]);
    loop {
        tokio::select! {
            read = client.read(&mut sent) => {
                let Ok(read @ 1..) = read else { return };
                let pass = hook(sent[..read].to_vec()).await;
                if pass == Pass::HalfOpen {
                    std::future::pending::<()>().await;
                }
                if pass == Pass::Swallow {
                    continue;
                }
                if server.write_all(&sent[..read]).await.is_err() {
                    return;
                }
                if pass == Pass::LoseAnswer {
                    server.read_u8().await.ok();
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&answered[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}
