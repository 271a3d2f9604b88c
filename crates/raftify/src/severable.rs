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
    /// `None` once it has resolved.
    severed: Option<BoxFuture<'static, ()>>,
}

impl Severable {
    /// Ends when the sender of `severed` is dropped.
    pub(crate) fn new(stream: Connection, mut severed: watch::Receiver<()>) -> Severable {
        let severed = Box::pin(async move { while severed.changed().await.is_ok() {} });
        Severable { stream, severed: Some(severed) }
    }

    /// What is ready is done; what would have to wait fails if the connection is severed.
    fn unless_severed<T>(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            return outcome;
        }
        if let Some(severed) = &mut self.severed {
            if severed.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            self.severed = None;
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
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.unless_severed(context, outcome)
    }
}

impl AsyncWrite for Severable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, data);
        self.unless_severed(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.unless_severed(context, outcome)
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
