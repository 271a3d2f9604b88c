//! The seam to the network: the one place that listens, and the one that connects.
//!
//! TCP; in a [simulation](crate::simulation) what stands for it there. Called by `bootstrap`, the server, the outbox and
//! the remote client, none of which can tell the difference.

use std::io;
use std::net::ToSocketAddrs;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::stream::{BoxStream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo, TcpIncoming};
use tonic::transport::{Channel, Endpoint, Error};

use crate::error::BootstrapError;
#[cfg(feature = "simulation")]
use crate::simulation;

/// Listens already, and does not accept yet.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpListener),
}

impl Listener {
    /// Listens on `raft_addr`.
    pub(crate) fn bind(raft_addr: &str) -> Result<Listener, BootstrapError> {
        let address = || raft_addr.to_owned();
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BootstrapError::PortTaken { address: address() },
            _ => BootstrapError::Listen { address: address(), source },
        };
        #[cfg(feature = "simulation")]
        if simulation::is_on() {
            return simulation::listen(raft_addr).map(Listener::Simulated).map_err(refused);
        }
        let resolved = raft_addr.to_socket_addrs();
        let resolved: Vec<_> =
            resolved.map_err(|source| BootstrapError::Unresolved { address: address(), source })?.collect();
        std::net::TcpListener::bind(&*resolved).map(Listener::Tcp).map_err(refused)
    }

    /// The connections that come in. It stops listening when this is dropped.
    pub(crate) fn incoming(self) -> io::Result<BoxStream<'static, io::Result<Connection>>> {
        match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let incoming = TcpIncoming::from(TcpListener::from_std(listener)?).with_nodelay(Some(true));
                Ok(incoming.map(|stream| stream.map(Connection::Tcp)).boxed())
            }
            #[cfg(feature = "simulation")]
            Listener::Simulated(listener) => {
                let incoming = futures_util::stream::unfold(listener, |listener| async {
                    let accepted = listener.accept().await;
                    Some((accepted.map(|(stream, _)| Connection::Simulated(stream)), listener))
                });
                Ok(incoming.boxed())
            }
        }
    }
}

/// Connects when it is used for the first time, and again whenever it has to.
pub(crate) fn connect_lazily(endpoint: &Endpoint) -> Channel {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return endpoint.connect_with_connector_lazy(simulation::connector());
    }
    endpoint.connect_lazy()
}

/// Connects now.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return endpoint.connect_with_connector(simulation::connector()).await;
    }
    endpoint.connect().await
}

/// A connection that came in.
pub(crate) enum Connection {
    Tcp(TcpStream),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpStream),
}

/// The same, whichever kind it is.
macro_rules! each {
    ($connection:expr, $stream:ident => $do:expr) => {
        match $connection {
            Connection::Tcp($stream) => $do,
            #[cfg(feature = "simulation")]
            Connection::Simulated($stream) => $do,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(context, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write_vectored(context, data))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(context))
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        each!(self, stream => TcpConnectInfo {
            local_addr: stream.local_addr().ok(),
            remote_addr: stream.peer_addr().ok(),
        })
    }
}
