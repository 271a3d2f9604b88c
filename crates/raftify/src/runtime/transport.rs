//! The abstraction over the network: the only code that listens, and the only code that connects.
//!
//! TCP, or its simulated equivalent in a [simulation](crate::runtime::simulation). Called by `bootstrap`, the
//! server, the outbox and the remote client, which see no difference.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tonic::codegen::Service;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tracing::warn;

use crate::error::BootstrapError;
use crate::runtime::descriptors;
use crate::runtime::log_throttle::LogThrottle;
#[cfg(feature = "simulation")]
use crate::runtime::simulation;
use crate::runtime::stall_guard::StallGuard;

/// The first pause of a listener that cannot accept connections; it doubles each time ...
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// ... up to this.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Listens already, and does not accept yet.
pub(crate) enum Listener {
    Tcp(std::net::TcpListener),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpListener),
}

impl Listener {
    /// The maximum number of connections.
    pub(crate) fn connections_max(&self) -> usize {
        match self {
            Listener::Tcp(_) => descriptors::server_connections_max(),
            #[cfg(feature = "simulation")]
            Listener::Simulated(_) => usize::MAX,
        }
    }

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
        // Before the node opens anything else.
        descriptors::server_connections_max();
        let resolved = raft_addr.to_socket_addrs();
        let resolved: Vec<_> =
            resolved.map_err(|source| BootstrapError::Unresolved { address: address(), source })?.collect();
        std::net::TcpListener::bind(&*resolved).map(Listener::Tcp).map_err(refused)
    }

    /// Whether programs on other machines may reach it: it listens on another interface than the loopback
    /// one.
    pub(crate) fn is_reached_by_others(&self) -> bool {
        match self {
            Listener::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| !address.ip().to_canonical().is_loopback())
            }
            #[cfg(feature = "simulation")]
            Listener::Simulated(_) => false,
        }
    }

    /// The local address.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            #[cfg(feature = "simulation")]
            Listener::Simulated(listener) => listener.local_addr(),
        }
    }

    /// The incoming connections. Listening ends when this is dropped.
    pub(crate) fn incoming(self) -> io::Result<BoxStream<'static, io::Result<Connection>>> {
        match self {
            Listener::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let incoming = TcpIncoming::from(TcpListener::from_std(listener)?).with_nodelay(Some(true));
                Ok(unhurried(incoming.map(|stream| stream.map(Connection::Tcp))).boxed())
            }
            #[cfg(feature = "simulation")]
            Listener::Simulated(listener) => {
                let incoming = stream::unfold(listener, |listener| async {
                    let accepted = listener.accept().await;
                    Some((accepted.map(|(stream, _)| Connection::Simulated(stream)), listener))
                });
                Ok(incoming.boxed())
            }
        }
    }
}

/// Pauses when accepting fails for lack of a resource, such as file descriptors: it would fail again at once,
/// and a busy loop would take CPU time from the existing connections.
fn unhurried<T>(
    incoming: impl Stream<Item = io::Result<T>> + Send + Unpin,
) -> impl Stream<Item = io::Result<T>> + Send {
    let warning = LogThrottle::default();
    stream::unfold((incoming, Duration::ZERO, warning), |(mut incoming, pause, mut warning)| async move {
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let accepted = incoming.next().await?;
        let pause = match &accepted {
            Err(error) if !is_of_one_connection(error) => {
                if warning.is_due() {
                    warn!("no connection can be accepted, it is tried again: {error}");
                }
                (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
            }
            _ => Duration::ZERO,
        };
        Some((accepted, (incoming, pause, warning)))
    })
}

/// Whether the other end is the cause, so that the next connection may succeed.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Looks up the addresses of `host:port`, on a thread that is never joined: a resolver may hang for longer
/// than a node takes to stop, or its runtime to be dropped.
pub(crate) fn resolve(address: &str) -> oneshot::Receiver<io::Result<Vec<SocketAddr>>> {
    let (resolved, outcome) = oneshot::channel();
    // The result is not needed if the receiver is gone.
    if let Ok(address) = address.parse() {
        let _ = resolved.send(Ok(vec![address]));
        return outcome;
    }
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        let _ = resolved.send(Err(io::Error::other("no names are resolved in a simulation")));
        return outcome;
    }
    let address = address.to_owned();
    let lookup = move || {
        let _ = resolved.send(address.to_socket_addrs().map(Iterator::collect));
    };
    match thread::Builder::new().name("raftify-resolve".to_owned()).spawn(lookup) {
        Ok(_) => outcome,
        Err(error) => {
            let (failed, outcome) = oneshot::channel();
            let _ = failed.send(Err(error));
            outcome
        }
    }
}

/// Connects over TCP. A lookup that hangs blocks no thread of the runtime, which could not be dropped before
/// its end.
#[derive(Clone)]
struct Connector;

impl Service<Uri> for Connector {
    type Response = TokioIo<StallGuard<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<StallGuard<TcpStream>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            connect_tcp(address).await.map(TokioIo::new)
        }
        .boxed()
    }
}

/// Connects over TCP to `host:port`.
pub(crate) async fn connect_tcp(address: &str) -> io::Result<StallGuard<TcpStream>> {
    let resolved = resolve(address).await.map_err(io::Error::other)??;
    let stream = TcpStream::connect(&*resolved).await?;
    stream.set_nodelay(true)?;
    Ok(StallGuard::new(stream))
}

/// Connects on first use, and again whenever necessary.
pub(crate) fn connect_lazily(endpoint: &Endpoint) -> Channel {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return endpoint.connect_with_connector_lazy(simulation::connector());
    }
    endpoint.connect_with_connector_lazy(Connector)
}

/// Connects now.
pub(crate) async fn connect(endpoint: &Endpoint) -> Result<Channel, Error> {
    #[cfg(feature = "simulation")]
    if simulation::is_on() {
        return endpoint.connect_with_connector(simulation::connector()).await;
    }
    endpoint.connect_with_connector(Connector).await
}

/// An incoming connection.
pub(crate) enum Connection {
    Tcp(TcpStream),
    #[cfg(feature = "simulation")]
    Simulated(turmoil::net::TcpStream),
}

impl Connection {
    /// The address of the other end.
    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Connection::Tcp(stream) => stream.peer_addr(),
            #[cfg(feature = "simulation")]
            Connection::Simulated(stream) => stream.peer_addr(),
        }
    }

    /// The next bytes, which reading will find again; none at the end of the connection.
    pub(crate) fn poll_peek(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        match self {
            Connection::Tcp(stream) => stream.poll_peek(context, buffer),
            #[cfg(feature = "simulation")]
            Connection::Simulated(_) => Poll::Ready(Err(io::ErrorKind::Unsupported.into())),
        }
    }
}

/// The same code for each kind.
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

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn names_are_resolved_and_what_is_sent_leaves_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri = format!("http://localhost:{port}").parse().unwrap();
        let (connected, accepted) = tokio::join!(Connector.call(uri), listener.accept());
        assert!(connected.unwrap().inner().get_ref().nodelay().unwrap());
        accepted.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_fails_to_accept_pauses_ever_longer_until_one_attempt_succeeds() {
        let no_descriptors = || Err(io::Error::from_raw_os_error(24));
        let aborted = Err(io::ErrorKind::ConnectionAborted.into());
        let outcomes =
            [no_descriptors(), no_descriptors(), no_descriptors(), Ok(()), aborted, no_descriptors(), Ok(())];
        let mut incoming = Box::pin(unhurried(stream::iter(outcomes)));
        let (mut pauses, mut last) = (Vec::new(), Instant::now());
        while incoming.next().await.is_some() {
            pauses.push(last.elapsed().as_millis());
            last = Instant::now();
        }
        assert_eq!(pauses, [0, 10, 20, 40, 0, 0, 10]);
        let mut incoming = Box::pin(unhurried(stream::repeat_with(|| no_descriptors() as io::Result<()>)));
        let begin = Instant::now();
        assert_eq!(incoming.by_ref().take(17).count().await, 17);
        assert!(begin.elapsed() <= PAUSE_MAX * 17, "it waits too long for a descriptor that is free again");
    }
}
