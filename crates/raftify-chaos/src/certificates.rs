//! The certificates of a run with mutual TLS: one CA, a certificate for each slot, and one for this program,
//! in the directory of the run. They are made by the code of `raftify-cli ca`, and can be renewed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use raftify::BoxError;
use raftify::tls::{CertificateRole, Tls};
use raftify_cli::authority::{Authority, Holder, Issued};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::links::Party;

/// Longer than any run.
const DAYS: u32 = 30;

/// What HTTP/2 is called in a handshake.
const ALPN_HTTP2: &[u8] = b"h2";

/// How long a handshake may take when a served certificate is looked at.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// The certificates of all nodes and of this program. A clone is a second handle to the same ones.
#[derive(Clone)]
pub(crate) struct Certificates(Arc<Files>);

struct Files {
    authority: Authority,
    /// The hosts of the slots, the first that of slot 1.
    hosts: Vec<String>,
    own: Issued,
    /// For new connections to the web APIs.
    web: RwLock<Arc<ClientConfig>>,
}

impl Certificates {
    /// Makes a CA and all certificates, for nodes at these addresses.
    pub(crate) fn create(directory: &Path, addresses: &[&str]) -> Result<Certificates, BoxError> {
        let authority = Authority::create(&directory.join("certificates"), DAYS)?;
        let hosts = addresses.iter().map(|address| host_of(address).to_owned()).collect();
        let own = issue_own(&authority)?;
        let web = RwLock::new(Arc::new(client(&authority.certificate(), &own)?));
        let files = Files { authority, hosts, own, web };
        files.issue_nodes()?;
        Ok(Certificates(Arc::new(files)))
    }

    /// The options that a node in this slot is started with.
    pub(crate) fn options(&self, place: Party) -> Vec<String> {
        let Issued { certificate, key } = self.of(place);
        let with = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
        let ca = with("--ca", &self.0.authority.certificate());
        [ca, with("--cert", &certificate), with("--key", &key)].concat()
    }

    fn of(&self, place: Party) -> Issued {
        let directory = self.0.authority.certificate().with_file_name("");
        let file = |suffix: &str| -> PathBuf { directory.join(format!("{}{suffix}", name(place))) };
        Issued { certificate: file(".pem"), key: file("-key.pem") }
    }

    /// Those of this program.
    pub(crate) fn tls(&self) -> Tls {
        let Issued { certificate, key } = &self.0.own;
        Tls {
            ca: self.0.authority.certificate().into(),
            certificate: certificate.clone().into(),
            key: key.clone().into(),
        }
    }

    /// Replaces all certificates and keys while the nodes run.
    pub(crate) fn renew(&self) -> Result<(), BoxError> {
        self.0.issue_nodes()?;
        let own = issue_own(&self.0.authority)?;
        *self.0.web.write() = Arc::new(client(&self.0.authority.certificate(), &own)?);
        Ok(())
    }

    /// Whether a server in this slot presents the certificate that is in its file now.
    pub(crate) async fn are_served(&self, place: Party, address: &str, is_web: bool) -> bool {
        let Ok(issued) = CertificateDer::from_pem_file(self.of(place).certificate) else { return false };
        let mut config = ClientConfig::clone(&self.0.web.read());
        if !is_web {
            config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        }
        let connected = timeout(HANDSHAKE_TIMEOUT, async {
            let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
            secure(address, stream, Arc::new(config)).await
        });
        let Ok(Ok(stream)) = connected.await else { return false };
        let chain = stream.get_ref().1.peer_certificates();
        chain.and_then(|chain| chain.first()).is_some_and(|served| *served == issued)
    }

    /// Opens a TLS connection to a web API over this one.
    pub(crate) async fn secure(
        &self,
        address: &str,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, String> {
        let config = Arc::clone(&self.0.web.read());
        secure(address, stream, config).await
    }
}

impl Files {
    fn issue_nodes(&self) -> Result<(), BoxError> {
        for (place, host) in (1..).zip(&self.hosts) {
            // The files have the first name: several slots may have one host.
            let hosts = vec![name(place), host.clone()];
            self.authority.issue(&Holder::Node { hosts, id: None, cluster: None }, DAYS)?;
        }
        Ok(())
    }
}

fn name(place: Party) -> String {
    format!("node-{place}")
}

fn issue_own(authority: &Authority) -> Result<Issued, BoxError> {
    let roles = vec![CertificateRole::Client, CertificateRole::Admin];
    authority.issue(&Holder::Client { name: "chaos".to_owned(), roles }, DAYS)
}

fn client(ca: &Path, own: &Issued) -> Result<ClientConfig, BoxError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(ca)?)?)?;
    let chain = vec![CertificateDer::from_pem_file(&own.certificate)?];
    let key = PrivateKeyDer::from_pem_file(&own.key)?;
    Ok(ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?)
}

async fn secure(
    address: &str,
    stream: TcpStream,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, String> {
    let host = ServerName::try_from(host_of(address).to_owned()).map_err(|error| error.to_string())?;
    TlsConnector::from(config).connect(host, stream).await.map_err(|error| error.to_string())
}

/// All addresses of a run are of IPv4.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_with_one_host_have_separate_files_and_renewal_replaces_all_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let certificates = Certificates::create(directory.path(), &["127.0.0.1:7", "127.0.0.1:8"]).unwrap();
        let read = || {
            let options = [1, 2].map(|place| certificates.options(place));
            let files = options.iter().flat_map(|options| [&options[3], &options[5]]);
            let own = &certificates.0.own;
            let files = files.map(PathBuf::from).chain([own.certificate.clone(), own.key.clone()]);
            files.map(|file| fs::read_to_string(file).unwrap()).collect::<Vec<String>>()
        };
        let before = read();
        certificates.renew().unwrap();
        let all = [before, read()].concat();
        let different = all.iter().collect::<std::collections::BTreeSet<_>>();
        assert_eq!((all.len(), different.len()), (12, 12));
    }
}
