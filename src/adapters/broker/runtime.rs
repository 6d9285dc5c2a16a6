//! The runtime that the AMQP client connects with: tokio's, with a screen before each socket.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};

use super::ServerVersion;
use super::screen::Screen;

/// Connects as lapin does by itself, and reads through a [`Screen`] behind TLS. Returns also which
/// RabbitMQ it is; lapin does not keep what the broker announces.
pub(super) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<(Connection, Option<ServerVersion>)> {
    let tokio = Tokio::current();
    let plain = Runtime::new(tokio.clone());
    let announced = Arc::<OnceLock<ServerVersion>>::default();
    let version = Arc::clone(&announced);
    let open = async move |uri: AMQPUri, _: Runtime<RuntimeParts<Tokio, Screened>>| {
        let socket = uri.connect_with_config_async(tls.as_ref(), &plain).await?;
        Ok(AsyncTcpStream::Plain(Screen::new(socket, Arc::clone(&version))))
    };
    let screened = RuntimeParts::new(tokio.clone(), Screened(tokio));
    let connecting = Connection::connector(uri, Runtime::new(screened), open, properties);
    Ok((connecting.await?, announced.get().copied()))
}

/// Tokio's reactor with another type of socket.
#[derive(Clone, Debug)]
struct Screened(Tokio);

impl Reactor for Screened {
    type TcpStream = Screen<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + AsFd + AsRawFd + Send + 'static>(
        &self,
        socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        self.0.register(socket)
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    #[expect(clippy::disallowed_types, reason = "the trait wants it; nothing here reads a clock")]
    fn interval(
        &self,
        period: Duration,
    ) -> impl Stream<Item = std::time::Instant> + Send + 'static {
        self.0.interval(period)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Screen::new(AsyncTcpStream::Plain(connecting.await?), Arc::default())) }
    }
}
