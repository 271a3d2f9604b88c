//! Connections that fail once they make no progress, regardless of the size of their messages.
//!
//! HTTP/2 sends a keep-alive ping on a quiet connection. On a slow link, the ping and its answer wait behind
//! a large message, and so they have no deadline: the guard has one. Received bytes count as a sign of life,
//! and so does room for outgoing bytes: the other end has read the bytes that filled the connection. Used at
//! both ends.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A connection without a sign of life for this long is closed.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) struct StallGuard<T> {
    stream: T,
    /// The last sign of life.
    alive: Instant,
    /// There was no room for the outgoing bytes.
    is_full: bool,
    /// The time of the next check for a sign of life.
    next_look: Pin<Box<Sleep>>,
}

impl<T> StallGuard<T> {
    pub(crate) fn new(stream: T) -> StallGuard<T> {
        let next_look = Box::pin(sleep(SILENCE_MAX));
        StallGuard { stream, alive: Instant::now(), is_full: false, next_look }
    }

    #[cfg(test)]
    pub(crate) fn get_ref(&self) -> &T {
        &self.stream
    }

    /// A pending operation fails if there was no sign of life for too long. Otherwise, the task is woken at
    /// the next check.
    fn unless_stalled<O>(&mut self, context: &mut Context<'_>) -> Poll<io::Result<O>> {
        while self.next_look.as_mut().poll(context).is_ready() {
            let too_late = self.alive + SILENCE_MAX;
            if too_late <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.next_look.as_mut().reset(too_late);
        }
        Poll::Pending
    }

    fn wrote(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Pending => {
                self.is_full = true;
                self.unless_stalled(context)
            }
            written => {
                if std::mem::take(&mut self.is_full) && !raftify_core::mutated!(PayloadIsNoSignOfLife) {
                    self.alive = Instant::now();
                }
                written
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StallGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() {
            return self.unless_stalled(context);
        }
        self.alive = Instant::now();
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallGuard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, data);
        self.wrote(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.wrote(written, context)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Time advances when no task is ready.
    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_arrives_fails() {
        let (stream, mut other_end) = duplex(8);
        let mut guarded = StallGuard::new(stream);
        for _ in 0..10 {
            sleep(SILENCE_MAX - Duration::from_secs(1)).await;
            other_end.write_u8(7).await.unwrap();
            assert_eq!(guarded.read_u8().await.unwrap(), 7);
        }
        let begin = Instant::now();
        assert_eq!(guarded.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), SILENCE_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_in_what_is_sent_does_not_fail_however_long_that_takes() {
        let (stream, mut other_end) = duplex(8);
        let (mut reading, mut writing) = tokio::io::split(StallGuard::new(stream));
        let sent = async {
            writing.write_all(&[7; 80]).await.unwrap();
            Instant::now()
        };
        let taken_in = async {
            for _ in 0..10 {
                sleep(SILENCE_MAX / 2).await;
                other_end.read_exact(&mut [0; 8]).await.unwrap();
            }
        };
        let begin = Instant::now();
        let (failed, sent, ()) = tokio::join!(reading.read_u8(), sent, taken_in);
        assert!(sent - begin > SILENCE_MAX * 4, "it was sent all at once");
        // No bytes are sent any more, and no bytes have ever arrived.
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() > SILENCE_MAX * 5, "it failed while it sent");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_takes_in_nothing_fails_although_it_has_room_for_small_messages() {
        let (stream, _other_end) = duplex(1 << 20);
        let (mut reading, mut writing) = tokio::io::split(StallGuard::new(stream));
        let chatter = async {
            loop {
                writing.write_u8(7).await.unwrap();
                sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            failed = reading.read_u8() => assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::TimedOut),
            () = chatter => {}
        }
    }
}
