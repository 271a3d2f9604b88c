//! Connections that the server can abort, also if the other end hangs.
//!
//! A connection's task holds the objects that it serves, and so the data directory. The server aborts one or
//! all of them by dropping one end of a channel: reading and writing then fail. They also fail on a
//! connection that does not start HTTP/2: after the start, HTTP/2 pings check that the connection is alive.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use crate::network::server::connections::{ConnectionGuard, ConnectionId};
use crate::runtime::stall_guard::{SILENCE_MAX, StallGuard};
use crate::security::acceptor::Secured;

/// The number of bytes with which a client starts HTTP/2 (RFC 9113, section 3.4), and which it sends at once.
const PREFACE_BYTES: usize = 24;

/// The time limit for the preface: as long as an established connection may be without a sign of life.
const PREFACE_TIMEOUT: Duration = SILENCE_MAX;

/// An accepted connection.
pub(crate) struct Abortable {
    stream: StallGuard<Secured>,
    place: ConnectionGuard,
    /// Resolves when the connection is aborted.
    aborted: BoxFuture<'static, ()>,
    /// `None` as soon as the preface has arrived.
    preface: Option<PrefaceDeadline>,
}

/// A connection that has not sent its preface yet.
struct PrefaceDeadline {
    missing_bytes: usize,
    too_late: Pin<Box<Sleep>>,
}

impl Abortable {
    /// Ends when it has to give up its slot.
    pub(crate) fn new(stream: Secured, place: ConnectionGuard) -> Abortable {
        let mut aborted = place.uncut().clone();
        let aborted = Box::pin(async move { while aborted.changed().await.is_ok() {} });
        let too_late = Box::pin(sleep(PREFACE_TIMEOUT));
        let preface = Some(PrefaceDeadline { missing_bytes: PREFACE_BYTES, too_late });
        Abortable { stream: StallGuard::new(stream), place, aborted, preface }
    }

    /// Does `work`, unless the connection is aborted: in that case even ready work is not done, since it may
    /// never end.
    fn unless_aborted<T>(
        &mut self,
        context: &mut Context<'_>,
        work: impl FnOnce(Pin<&mut StallGuard<Secured>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.place.uncut().has_changed().is_ok() {
            let outcome = work(Pin::new(&mut self.stream), context);
            if outcome.is_ready() {
                return outcome;
            }
            if let Some(preface) = &mut self.preface
                && preface.too_late.as_mut().poll(context).is_ready()
            {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if self.aborted.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncRead for Abortable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = self.unless_aborted(context, |stream, context| stream.poll_read(context, buffer));
        if let Some(preface) = &mut self.preface {
            let bytes = buffer.filled().len() - before;
            preface.missing_bytes = preface.missing_bytes.saturating_sub(bytes);
            if preface.missing_bytes == 0 {
                self.preface = None;
            }
        }
        read
    }
}

impl AsyncWrite for Abortable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_aborted(context, |stream, context| stream.poll_write(context, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_aborted(context, |stream, context| stream.poll_write_vectored(context, data))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Abortable {
    type ConnectInfo = ConnectionId;

    fn connect_info(&self) -> ConnectionId {
        self.place.id()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;
    use crate::network::server::connections::Connections;
    use crate::runtime::transport::Connection;

    /// Both ends of a connection; dropping the last value aborts the server's end.
    async fn connect() -> (TcpStream, Abortable, Connections) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other_end = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let connections = Connections::new(1, std::sync::Arc::default());
        let place = connections.accept().unwrap();
        let stream = Secured::new(Connection::Tcp(stream), None, Box::new(|_| {}));
        (other_end, Abortable::new(stream, place), connections)
    }

    #[tokio::test]
    async fn an_aborted_connection_ends_also_if_its_other_end_never_pauses() {
        let (mut other_end, mut connection, uncut) = connect().await;
        other_end.write_all(&[7; 2]).await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), 7);
        drop(uncut);
        // There are bytes to read, and room to write.
        let read = connection.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let written = connection.write_u8(7).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    /// Time advances when no task is ready.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_does_not_begin_to_speak_ends_and_one_that_has_begun_may_pause() {
        let mut preface = *b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let (mut other_end, mut slow, _uncut) = connect().await;
        other_end.write_all(&preface[1..]).await.unwrap();
        let read = slow.read_exact(&mut preface).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);

        let (mut other_end, mut late, _uncut) = connect().await;
        let almost = PREFACE_TIMEOUT - Duration::from_secs(1);
        sleep(almost).await;
        other_end.write_all(&preface).await.unwrap();
        late.read_exact(&mut preface).await.unwrap();
        assert!(timeout(almost, late.read_u8()).await.is_err(), "it was ended");
    }
}
