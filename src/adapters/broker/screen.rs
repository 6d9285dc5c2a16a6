//! A byte stream between the socket and the AMQP client that makes every message decodable.
//!
//! The client (lapin 4.12.3) parses nested header values recursively, without a depth limit, and
//! closes the connection at a short string that is not UTF-8. Either can come from any publisher,
//! and would come again with each redelivery. So frames are repaired before the client sees them. For
//! the client's side, see `docs/upstream`.

mod frames;
mod repair;
mod table;

use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncWrite, IoSlice};
use lapin::BasicProperties;

pub use self::frames::Frames;
use self::repair::MARK;
use super::ServerVersion;

/// Longest frame that the client takes, in bytes: RabbitMQ's own default. Set before the broker
/// announces it, so that lapin allocates its buffers once: it fills those that grow, 11 MiB in all.
pub(super) const FRAME_MAX: u32 = 131_072;
/// Bytes of one read.
const READ: usize = 64 << 10;

/// Returns whether the properties arrived as invalid AMQP: a short string was not UTF-8, or the
/// headers could not be decoded or were too long to be held. What is left of them is a repaired copy.
pub(super) fn is_invalid(properties: &BasicProperties) -> bool {
    properties.cluster_id().as_ref().is_some_and(|id| id.as_str() == MARK)
}

/// Repairs the frames that are read from a stream; what is written passes through.
pub(super) struct Screen<S> {
    stream: S,
    read: Box<[u8]>,
    frames: Frames,
    /// Where the broker's version is noted.
    version: Arc<OnceLock<ServerVersion>>,
}

impl<S> Screen<S> {
    pub(super) fn new(stream: S, version: Arc<OnceLock<ServerVersion>>) -> Self {
        Self { stream, read: vec![0; READ].into(), frames: Frames::default(), version }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Screen<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, read, frames, version } = &mut *self;
        loop {
            let given = frames.give(buf);
            if given > 0 || buf.is_empty() {
                return Poll::Ready(Ok(given));
            }
            let count = ready!(Pin::new(&mut *stream).poll_read(cx, read))?;
            if count == 0 {
                return Poll::Ready(Ok(0));
            }
            frames.receive(&read[..count])?;
            if let Some(announced) = frames.version.take() {
                version.get_or_init(|| announced);
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Screen<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
