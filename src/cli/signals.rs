//! The signals that end a command, and the end at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use vote_aggregator::platform::telemetry;

/// Ends the process with everything that is still under way in it.
pub(super) fn leave(code: u8) -> ! {
    telemetry::flush_logs();
    std::process::exit(code.into())
}

/// SIGINT and SIGTERM, from the moment it is made.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

#[derive(Clone, Copy)]
pub(super) enum Asked {
    Interrupt,
    Terminate,
}

impl Asked {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// 128 + the signal's number, as a shell reports a process that a signal ended.
    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Interrupt => 128 + 2,
            Self::Terminate => 128 + 15,
        }
    }
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
        }
    }
}
