//! The certificates of the web API: those of the node, read again when their files change.
//!
//! The web server takes one configuration for its whole life. This configuration asks for the current
//! certificate and the current CA at each handshake: new connections use the new ones, open ones continue.

use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use raftify::BoxError;
use raftify::tls::{Tls, TlsWatch};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme};

/// The certificates of a web server, which follow their files until this is dropped.
pub(crate) struct WebTls {
    current: Arc<Current>,
    _watching: TlsWatch,
}

impl WebTls {
    /// # Errors
    /// Why the certificates cannot be used now.
    pub(crate) fn load(tls: &Tls) -> Result<WebTls, BoxError> {
        let first = Arc::<OnceLock<Arc<Current>>>::default();
        let loaded = Arc::clone(&first);
        // The first call happens before `watch` returns, and the others replace its result.
        let watching = tls.watch(move |new| {
            let new = Certificates::new(new)?;
            match loaded.get() {
                None => drop(loaded.set(Arc::new(Current(RwLock::new(Arc::new(new)))))),
                Some(current) => *current.0.write() = Arc::new(new),
            }
            Ok(())
        })?;
        let current = first.get().cloned().ok_or("the certificates were not loaded")?;
        Ok(WebTls { current, _watching: watching })
    }

    /// No session is resumed: each connection presents its certificate, and is checked with the CA as it is
    /// then.
    pub(crate) fn server_config(&self) -> Result<ServerConfig, BoxError> {
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::clone(&self.current) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

/// One state of the three files.
struct Certificates {
    own: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
}

impl Certificates {
    fn new(tls: &Tls) -> Result<Certificates, BoxError> {
        let provider = Arc::new(ring::default_provider());
        let certificates = |pem: Vec<u8>| CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
        let mut roots = RootCertStore::empty();
        for root in certificates(tls.ca.read()?)? {
            roots.add(root)?;
        }
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build()?;
        let (chain, key) =
            (certificates(tls.certificate.read()?)?, PrivateKeyDer::from_pem_slice(&tls.key.read()?)?);
        Ok(Certificates { own: Arc::new(CertifiedKey::from_der(chain, key, &provider)?), clients })
    }
}

/// The certificates that new connections use.
struct Current(RwLock<Arc<Certificates>>);

impl Current {
    fn now(&self) -> Arc<Certificates> {
        Arc::clone(&self.0.read())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.now().own))
    }
}

impl ClientCertVerifier for Current {
    /// None: the names of the CAs may change, and clients have one certificate each.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now().clients.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().clients.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().clients.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().clients.supported_verify_schemes()
    }
}
