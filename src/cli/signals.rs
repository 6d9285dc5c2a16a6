//! The signals that end a command.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use vote_aggregator::platform::telemetry;

/// Ends the process with everything that is still under way in it.
pub(super) fn leave(code: u8) -> ! {
    telemetry::flush_logs();
    std::process::exit(code.into())
}

/// Receives SIGINT and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

/// A signal that was received.
pub(super) struct Received {
    pub(super) name: &'static str,
    /// 128 + its number, as a shell reports a process that the signal ended.
    pub(super) code: u8,
}

impl Signals {
    /// From here on, neither signal ends the process by itself.
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received { name: "SIGINT", code: 128 + 2 },
            _ = self.terminate.recv() => Received { name: "SIGTERM", code: 128 + 15 },
        }
    }
}
