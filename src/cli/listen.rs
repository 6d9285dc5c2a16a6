//! Ports that commands open.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use vote_aggregator::platform::http::{self, Purpose};

use super::exit::{self, Exit};

/// Opens a port, and logs its address.
pub(super) fn bind(address: SocketAddr, purpose: Purpose) -> Result<TcpListener, Exit> {
    let listener =
        http::bind(address, purpose).map_err(|error| exit::cannot("start", error, exit::CONFIG))?;
    // With the port that was free.
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "listening for {}", purpose.name);
    Ok(listener)
}
