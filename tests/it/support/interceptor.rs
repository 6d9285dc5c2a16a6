//! Stands between a command and one of a stage's servers, and acts on what the command sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Stage, listen};

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
        let (listener, port) = listen().await;
        let part = |name| stage.servers.get(&format!("{server}_{name}"));
        let server = format!("{}:{}", part("HOST"), part("PORT"));
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

    /// Does `pass` with the first part that contains `text`, and forwards the others.
    pub async fn once(stage: &Stage<'_>, server: &str, text: &'static str, pass: Pass) -> Self {
        let done = AtomicBool::new(false);
        Self::start(stage, server, move |part| {
            let now = contains(&part, text) && !done.swap(true, Ordering::Relaxed);
            async move { if now { pass } else { Pass::Forward } }.boxed()
        })
        .await
    }
}

/// Whether a part of what a client sent contains this text.
pub fn contains(part: &[u8], text: &str) -> bool {
    part.windows(text.len()).any(|window| window == text.as_bytes())
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
