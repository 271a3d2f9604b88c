//! The server's end of a connection, with or without TLS.
//!
//! The handshake takes place while the connection's own task reads from it: no connection waits for that of
//! another, and the limits of the server on the number of connections and on the time until the first request
//! hold for handshakes as well. After a failed handshake, the rest of what the client sends is read and
//! ignored: otherwise its operating system might discard the alert with the reason.
//!
//! A client without TLS gets an HTTP/2 connection on which every request is refused: so it learns the reason,
//! and that nothing happened.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{FallibleAccept, TlsAcceptor};

use crate::runtime::transport::Connection;
use crate::security::credentials::Credentials;
use crate::security::identity::PeerIdentity;
use crate::security::reason;

/// The first byte of a TLS handshake, and that of an HTTP/2 connection without TLS.
const FIRST_OF_TLS: u8 = 0x16;
const FIRST_OF_HTTP2: u8 = b'P';

/// How much is read and ignored after a failed handshake.
const IGNORED_BYTES_MAX: usize = 64 << 10;

/// The other end of a connection to a server with TLS.
#[derive(Debug)]
pub(crate) enum Peer {
    /// It does not use TLS.
    WithoutTls,
    Certificate(PeerIdentity),
}

/// Learns of the outcome of a handshake, once: the other end, or why it failed.
pub(crate) type Report = Box<dyn FnOnce(Result<Peer, String>) + Send>;

/// An accepted connection.
pub(crate) struct Secured {
    state: State,
    report: Option<Report>,
}

enum State {
    /// Without TLS.
    Plain(Connection),
    /// The first byte has not arrived.
    Quiet(Connection, Arc<ServerConfig>),
    Handshake(Box<FallibleAccept<Connection>>),
    Tls(Box<TlsStream<Connection>>),
    /// The handshake has failed.
    Refused {
        connection: Connection,
        reason: String,
        ignored_bytes: usize,
    },
    /// Not observed: the state while it changes.
    Between,
}

impl Secured {
    /// Without credentials, without TLS; `report` is not called then.
    pub(crate) fn new(connection: Connection, credentials: Option<&Credentials>, report: Report) -> Secured {
        match credentials {
            None => Secured { state: State::Plain(connection), report: None },
            Some(credentials) => {
                let config = Arc::clone(&credentials.current().server);
                Secured { state: State::Quiet(connection, config), report: Some(report) }
            }
        }
    }

    fn report(&mut self, outcome: Result<Peer, String>) {
        if let Some(report) = self.report.take() {
            report(outcome);
        }
    }

    /// Ready when bytes of the application can pass.
    fn poll_established(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let reached = match &mut self.state {
                State::Plain(_) | State::Tls(_) => return Poll::Ready(Ok(())),
                State::Quiet(connection, _) => {
                    let mut first = [0];
                    let peeked = ready!(connection.poll_peek(context, &mut ReadBuf::new(&mut first)))?;
                    Reached::First((peeked > 0).then_some(first[0]))
                }
                State::Handshake(handshake) => {
                    Reached::End(ready!(Pin::new(handshake).poll(context)).map(Box::new))
                }
                State::Refused { connection, reason, ignored_bytes } => {
                    let mut bytes = [0; 1024];
                    let mut buffer = ReadBuf::new(&mut bytes);
                    let read = ready!(Pin::new(connection).poll_read(context, &mut buffer));
                    *ignored_bytes += buffer.filled().len();
                    if read.is_err() || buffer.filled().is_empty() || *ignored_bytes > IGNORED_BYTES_MAX {
                        return Poll::Ready(Err(io::Error::other(reason.clone())));
                    }
                    continue;
                }
                State::Between => return Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            };
            let state = std::mem::replace(&mut self.state, State::Between);
            self.state = self.next(state, reached, context);
        }
    }

    fn next(&mut self, state: State, reached: Reached, context: &mut Context<'_>) -> State {
        match (state, reached) {
            (State::Quiet(connection, config), Reached::First(Some(FIRST_OF_TLS))) => {
                State::Handshake(Box::new(TlsAcceptor::from(config).accept(connection).into_fallible()))
            }
            (State::Quiet(connection, _), Reached::First(Some(FIRST_OF_HTTP2))) => {
                self.report(Ok(Peer::WithoutTls));
                State::Plain(connection)
            }
            // Reading finds the end: a check of whether the port is open.
            (State::Quiet(connection, _), Reached::First(None)) => State::Plain(connection),
            (State::Quiet(connection, _), Reached::First(Some(_))) => {
                self.refuse(connection, "it speaks neither TLS nor HTTP/2".to_owned(), context)
            }
            (_, Reached::End(Ok(stream))) => match identity(&stream) {
                Ok(identity) => {
                    self.report(Ok(Peer::Certificate(identity)));
                    State::Tls(stream)
                }
                Err(reason) => self.refuse(stream.into_inner().0, reason, context),
            },
            (_, Reached::End(Err((error, connection)))) => {
                self.refuse(connection, reason::of_handshake(&error), context)
            }
            (state, Reached::First(_)) => state,
        }
    }

    fn refuse(&mut self, mut connection: Connection, reason: String, context: &mut Context<'_>) -> State {
        self.report(Err(reason.clone()));
        // The alert is sent already; a failure here changes nothing.
        let _ = Pin::new(&mut connection).poll_shutdown(context);
        State::Refused { connection, reason, ignored_bytes: 0 }
    }
}

/// What a connection was waiting for.
enum Reached {
    /// Its first byte, or its end without one.
    First(Option<u8>),
    /// The end of the handshake.
    End(Result<Box<TlsStream<Connection>>, (io::Error, Connection)>),
}

fn identity(stream: &TlsStream<Connection>) -> Result<PeerIdentity, String> {
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let certificate = certificate.ok_or("the other side presents no certificate")?;
    PeerIdentity::new(certificate).map_err(|error| error.to_string())
}

/// The same code for each established kind.
macro_rules! established {
    ($secured:expr, $context:expr, $stream:ident => $do:expr) => {{
        let secured = $secured.get_mut();
        ready!(secured.poll_established($context))?;
        match &mut secured.state {
            State::Plain($stream) => $do,
            State::Tls($stream) => $do,
            _ => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }};
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        established!(self, context, stream => Pin::new(stream).poll_read(context, buffer))
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        established!(self, context, stream => Pin::new(stream).poll_write(context, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        established!(self, context, stream => Pin::new(stream).poll_write_vectored(context, data))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.state {
            State::Plain(connection) => connection.is_write_vectored(),
            _ => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        established!(self, context, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().state {
            State::Plain(stream) | State::Quiet(stream, _) | State::Refused { connection: stream, .. } => {
                Pin::new(stream).poll_shutdown(context)
            }
            State::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            State::Handshake(_) | State::Between => Poll::Ready(Ok(())),
        }
    }
}
