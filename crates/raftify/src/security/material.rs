//! From PEM text to the two TLS configurations, with every problem found before the first connection.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, Error, InconsistentKeys, RootCertStore, ServerConfig};

use crate::security::config::{PemTexts, Text, TlsError};
use crate::security::identity::PeerIdentity;
use crate::security::reason;

/// What HTTP/2 is called in a handshake.
const ALPN_HTTP2: &[u8] = b"h2";

impl Text {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let what = || self.what.clone();
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.bytes).collect();
        let found = found.map_err(|error| TlsError::Pem { what: what(), reason: error.to_string() })?;
        if found.is_empty() {
            return Err(TlsError::Pem { what: what(), reason: "there is no CERTIFICATE in it".to_owned() });
        }
        Ok(found)
    }

    fn unusable(&self, reason: impl ToString) -> TlsError {
        TlsError::Pem { what: self.what.clone(), reason: reason.to_string() }
    }
}

/// A loaded certificate with its CA and its key.
pub(crate) struct Material {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    pub(super) own: PeerIdentity,
}

impl Material {
    pub(super) fn new(texts: &PemTexts) -> Result<Material, TlsError> {
        let PemTexts { ca, certificate, key } = texts;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for root in ca.certificates()? {
            roots.add(root).map_err(|error| ca.unusable(error))?;
        }
        let roots = Arc::new(roots);
        let chain = certificate.certificates()?;
        let private = PrivateKeyDer::from_pem_slice(&key.bytes).map_err(|error| key.unusable(error))?;
        let own = PeerIdentity::new(&chain[0]).map_err(|error| certificate.unusable(error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| ca.unusable(error))?;
        clients.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).map_err(|error| {
            let reason = match &error {
                Error::InvalidCertificate(problem) => reason::of_certificate(problem),
                error => error.to_string(),
            };
            TlsError::Certificate { what: certificate.what.clone(), own: own.to_string(), reason }
        })?;
        let signer = CertifiedKey::from_der(chain, private, &provider).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::KeyMismatch { key: key.what.clone(), certificate: certificate.what.clone() }
            }
            error => key.unusable(error),
        })?;
        let signer = Arc::new(SingleCertAndKey::from(signer));
        Ok(Material {
            server: Arc::new(server(&provider, clients, Arc::clone(&signer))?),
            client: Arc::new(client(&provider, roots, signer)?),
            own,
        })
    }
}

fn unsupported(error: &Error) -> TlsError {
    TlsError::Pem { what: "TLS 1.3".to_owned(), reason: error.to_string() }
}

/// No session is resumed: each connection presents its certificate, and is checked with the CA as it is now.
fn server(
    provider: &Arc<CryptoProvider>,
    clients: Arc<dyn rustls::server::danger::ClientCertVerifier>,
    signer: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unsupported(&error))?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(signer);
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    signer: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| unsupported(&error))?
        .with_root_certificates(roots)
        .with_client_cert_resolver(signer);
    config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
