//! Outgoing connections, with or without TLS.

use std::fmt;

use raftify_core::{ClusterId, NodeId};
use tonic::transport::{Channel, Endpoint, Error};

use crate::runtime::transport;
use crate::security::config::{Tls, TlsError};
use crate::security::connector::TlsConnector;
use crate::security::credentials::{Credentials, Holder};

/// Makes connections. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Dialer {
    /// `None`: without TLS.
    credentials: Option<Credentials>,
    /// The node that must answer, if it is known, and its cluster.
    node: Option<NodeId>,
    cluster: Option<ClusterId>,
}

impl Dialer {
    pub(crate) fn load(tls: Option<&Tls>, holder: &Holder) -> Result<Dialer, TlsError> {
        let credentials = tls.map(|tls| Credentials::load(tls, holder)).transpose()?;
        Ok(Dialer { credentials, node: None, cluster: None })
    }

    pub(crate) fn credentials(&self) -> Option<&Credentials> {
        self.credentials.as_ref()
    }

    /// The same, for connections to this node of this cluster alone: a certificate of another one is refused.
    pub(crate) fn to(&self, node: NodeId, cluster: ClusterId) -> Dialer {
        Dialer { node: Some(node), cluster: Some(cluster), ..self.clone() }
    }

    /// Connects on first use, and again whenever necessary.
    pub(crate) fn connect_lazily(&self, endpoint: &Endpoint) -> Channel {
        match self.connector() {
            None => transport::connect_lazily(endpoint),
            Some(connector) => endpoint.connect_with_connector_lazy(connector),
        }
    }

    /// Connects now.
    pub(crate) async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Error> {
        match self.connector() {
            None => transport::connect(endpoint).await,
            Some(connector) => endpoint.connect_with_connector(connector).await,
        }
    }

    fn connector(&self) -> Option<TlsConnector> {
        let credentials = self.credentials.clone()?;
        Some(TlsConnector { credentials, node: self.node, cluster: self.cluster })
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.credentials.is_some() { "Dialer(TLS)" } else { "Dialer" })
    }
}
