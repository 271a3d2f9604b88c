//! The client's end of a TLS connection.
//!
//! Under TLS 1.3, the client's part of the handshake ends before the server has seen the client's
//! certificate. So a connection counts as made only when the first bytes of the server have arrived: an
//! HTTP/2 server sends its settings at once (RFC 9113, section 3.4), and a server that refuses the
//! certificate sends an alert instead. No request is sent before, and so a refusal is never an unknown
//! outcome.

use std::io;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use raftify_core::{ClusterId, NodeId};
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;
use tonic::transport::Uri;

use crate::runtime::stall_guard::StallGuard;
use crate::runtime::transport::connect_tcp;
use crate::security::credentials::Credentials;
use crate::security::identity::{CertificateRole, PeerIdentity, host_of};
use crate::security::reason;

type Stream = TlsStream<StallGuard<TcpStream>>;

/// Connects over TLS, and checks the certificate of the node there.
#[derive(Clone)]
pub(super) struct TlsConnector {
    pub(super) credentials: Credentials,
    pub(super) node: Option<NodeId>,
    pub(super) cluster: Option<ClusterId>,
}

impl Service<Uri> for TlsConnector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let this = self.clone();
        async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            let material = this.credentials.current();
            let refused = |reason: String| {
                let own = &material.own;
                io::Error::other(format!("no TLS connection from {own} to {address}: {reason}"))
            };
            let host = ServerName::try_from(host_of(address).to_owned());
            let host = host.map_err(|error| refused(error.to_string()))?;
            let stream = connect_tcp(address).await?;
            let handshake = tokio_rustls::TlsConnector::from(material.client.clone()).connect(host, stream);
            let mut stream = handshake.await.map_err(|error| refused(reason::of_handshake(&error)))?;
            this.check(&stream).map_err(refused)?;
            match stream.fill_buf().await {
                Ok([]) => Err(refused("the other side closed the connection".to_owned())),
                Ok(_) => Ok(TokioIo::new(stream)),
                Err(error) => Err(refused(reason::of_handshake(&error))),
            }
        }
        .boxed()
    }
}

impl TlsConnector {
    /// The handshake has checked the CA, the dates and the host.
    fn check(&self, stream: &Stream) -> Result<(), String> {
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.ok_or("the other side presents no certificate")?;
        let identity = PeerIdentity::new(certificate).map_err(|error| error.to_string())?;
        let refused = |reason: String| {
            format!("the certificate of the other side (for {identity}) is refused: {reason}")
        };
        if !identity.has_any(&[CertificateRole::Node]) {
            let roles = identity.roles();
            return Err(refused(format!("it has not the role node, but {roles}: issue it for a node")));
        }
        identity.check_ids(self.node, self.cluster).map_err(refused)
    }
}
