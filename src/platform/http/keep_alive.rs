//! Connections of the public: bounded in number, many requests each, and closed when they are idle.
//!
//! A connection beyond the bound waits in the kernel's queue. When many are open each is closed after its next answer,
//! so that clients which keep theirs do not keep others out.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until};

use super::connections::{HEADER_TIMEOUT, MAX_HEADER_BYTES, accept};
use super::descriptors;

/// From the end of an answer to the end of the next request's headers.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// From a request to the next one: a client that does not read its answer holds a connection no longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// The open connections.
#[derive(Clone, Debug)]
pub struct KeepAlive {
    free: Arc<Semaphore>,
    max: usize,
}

impl KeepAlive {
    /// At most `max` connections, or as many as the process may have.
    pub fn new(max: usize) -> Self {
        let max = descriptors::allow(max);
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.max - self.free.available_permits()
    }

    /// Answers requests until it is dropped.
    pub async fn serve<A>(&self, listener: TcpListener, answer: A)
    where
        A: Fn(&Request<Incoming>) -> Response<Body> + Clone + Send + Sync + 'static,
    {
        loop {
            let stream = accept(&listener, "public").await;
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else { return };
            tokio::spawn(self.clone().connection(stream, answer.clone(), permit));
        }
    }

    async fn connection<A>(self, stream: TcpStream, answer: A, _permit: OwnedSemaphorePermit)
    where
        A: Fn(&Request<Incoming>) -> Response<Body>,
    {
        let deadline = Deadline(Mutex::new(Instant::now() + HEADER_TIMEOUT));
        let service = service_fn(|request| {
            deadline.postpone(ANSWER_TIMEOUT);
            let mut answer = answer(&request);
            if self.free.available_permits() < self.max / 4 {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            ended = connection => {
                // Most likely a client that hangs up or is slow.
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection on the public port failed");
                }
            }
            () = deadline.passed() => {}
        }
    }
}

/// When a connection is closed.
struct Deadline(Mutex<Instant>);

impl Deadline {
    fn postpone(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + by;
    }

    async fn passed(&self) {
        loop {
            let at = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if at <= Instant::now() {
                return;
            }
            sleep_until(at).await;
        }
    }
}
