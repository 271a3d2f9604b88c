//! Connections that their server can end, also if the other end hangs.
//!
//! A connection's task holds what it serves, and so the data directory. The server lets go of all of them by dropping
//! one end of a channel: reading and writing then fail.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::transport::Connection;

/// An accepted connection.
pub(crate) struct Severable {
    stream: Connection,
    uncut: watch::Receiver<()>,
    /// Resolves when it is cut.
    severed: BoxFuture<'static, ()>,
}

impl Severable {
    /// Ends when the sender of `uncut` is dropped.
    pub(crate) fn new(stream: Connection, uncut: watch::Receiver<()>) -> Severable {
        let mut severed = uncut.clone();
        let severed = Box::pin(async move { while severed.changed().await.is_ok() {} });
        Severable { stream, uncut, severed }
    }

    /// Does `work`, unless the connection is severed: not even what is ready is done then, for it may never end.
    fn unless_severed<T>(
        &mut self,
        context: &mut Context<'_>,
        work: impl FnOnce(Pin<&mut Connection>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.uncut.has_changed().is_ok() {
            let outcome = work(Pin::new(&mut self.stream), context);
            if outcome.is_ready() {
                return outcome;
            }
            if self.severed.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()))
    }
}

impl AsyncRead for Severable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.unless_severed(context, |stream, context| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Severable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_severed(context, |stream, context| stream.poll_write(context, data))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_severed(context, |stream, context| stream.poll_write_vectored(context, data))
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

impl Connected for Severable {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    #[tokio::test]
    async fn a_severed_connection_ends_also_if_its_other_end_never_pauses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut other_end = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (uncut, severed) = watch::channel(());
        let mut connection = Severable::new(Connection::Tcp(stream), severed);
        other_end.write_all(&[7; 2]).await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), 7);
        drop(uncut);
        // There is something to read, and room to write.
        let read = connection.read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        let written = connection.write_u8(7).await;
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
