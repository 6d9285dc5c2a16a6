//! Accepts connections at once, and drops the oldest without a request when there are too many.
//!
//! Waiting in the kernel's queue until others end would let silent connections keep out the probes.
//! A probe sends its request as soon as it is connected, so it is answered before as many newer
//! connections as fit have arrived.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Connections at a time.
const MAX_CONNECTIONS: usize = 512;
/// From accept to the end of a request's headers.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// From accept to the last byte of the answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request line and headers, in bytes. hyper accepts no less than 8 KiB.
pub(super) const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Pause after an error of accept, which is most likely a lack of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The open connections by their number, the oldest first.
#[derive(Debug, Default)]
struct Open(Mutex<BTreeMap<u64, Connection>>);

#[derive(Debug)]
struct Connection {
    task: AbortHandle,
    /// Its request was read.
    asked: bool,
}

impl Open {
    /// Takes in a connection and drops another when there are too many: the oldest that did not ask
    /// yet, else the oldest.
    fn add(&self, number: u64, task: AbortHandle) {
        let mut open = self.all();
        if open.len() >= MAX_CONNECTIONS {
            let silent = open.iter().find(|(_, connection)| !connection.asked);
            let victim = silent.or_else(|| open.iter().next()).map(|(number, _)| *number);
            if let Some(dropped) = victim.and_then(|number| open.remove(&number)) {
                dropped.task.abort();
            }
        }
        open.insert(number, Connection { task, asked: false });
    }

    fn asked(&self, number: u64) {
        if let Some(connection) = self.all().get_mut(&number) {
            connection.asked = true;
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a connection out of [`Open`] at the end of its task.
struct Entry {
    open: Arc<Open>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.open.all().remove(&self.number);
    }
}

/// Answers with `router`, one request a connection, until it is dropped.
pub async fn serve(listener: TcpListener, router: Router) {
    let open = Arc::new(Open::default());
    for number in 0.. {
        let stream = accept(&listener, "metrics").await;
        let entry = Entry { open: Arc::clone(&open), number };
        let task = tokio::spawn(answer(stream, router.clone(), entry));
        // Before the task runs: this thread is the only one of its runtime.
        open.add(number, task.abort_handle());
    }
}

/// The next connection on the port of this name.
pub(super) async fn accept(listener: &TcpListener, port: &str) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the {port} port");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router, entry: Entry) {
    let router = TowerToHyperService::new(router);
    let (open, number) = (Arc::clone(&entry.open), entry.number);
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        open.asked(number);
        let answering = router.call(request.map(Body::new));
        async move { Ok::<_, Infallible>(answering.await.unwrap_or_else(|never| match never {})) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    // Most likely a client that hangs up or is slow.
    if let Ok(Err(error)) = timeout(CONNECTION_TIMEOUT, connection).await {
        tracing::debug!(%error, "a request on the metrics port failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_new_connection_replaces_the_oldest_silent_one() {
        let open = Open::default();
        let tasks: Vec<_> = (0..=MAX_CONNECTIONS as u64 + 1)
            .map(|_| tokio::spawn(std::future::pending::<()>()))
            .collect();
        for (number, task) in (0..).zip(&tasks) {
            open.add(number, task.abort_handle());
            // The first one asks at once.
            open.asked(0);
            assert!(open.all().len() <= MAX_CONNECTIONS);
        }
        let left: Vec<u64> = open.all().keys().copied().take(2).collect();
        assert_eq!(left, [0, 3]);
        for (number, task) in tasks.into_iter().enumerate().take(4) {
            let dropped = [1, 2].contains(&number);
            if dropped {
                assert!(task.await.is_err_and(|error| error.is_cancelled()), "{number}");
            } else {
                assert!(!task.is_finished(), "{number}");
            }
        }
    }

    #[tokio::test]
    async fn a_new_connection_replaces_the_oldest_where_all_have_asked() {
        let open = Open::default();
        let task = tokio::spawn(std::future::pending::<()>());
        for number in 0..=MAX_CONNECTIONS as u64 {
            open.add(number, task.abort_handle());
            open.asked(number);
        }
        assert_eq!(open.all().keys().next(), Some(&1));
        assert_eq!(open.all().len(), MAX_CONNECTIONS);
    }
}
