//! The health service of a node with TLS: one call is open to all, the other one needs a role.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use raftify::tls::{CertificateRole, Tls};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use tonic::codegen::Service;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::certificates::{Authority, Wanted};
use crate::nodes::{begin, until, within};

/// Connects as the holder of a certificate.
#[derive(Clone)]
struct Holder(Arc<ClientConfig>);

impl Service<Uri> for Holder {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let config = Arc::clone(&self.0);
        Box::pin(async move {
            let stream = TcpStream::connect(uri.authority().unwrap().as_str()).await?;
            let host = ServerName::try_from("127.0.0.1").unwrap();
            Ok(TokioIo::new(TlsConnector::from(config).connect(host, stream).await?))
        })
    }
}

impl Holder {
    fn of(tls: &Tls) -> Holder {
        let read = |pem: &raftify::tls::Pem| pem.read().unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&read(&tls.ca)).unwrap()).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(&read(&tls.certificate)).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(&read(&tls.key)).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Holder(Arc::new(config))
    }
}

fn request() -> HealthCheckRequest {
    HealthCheckRequest::default()
}

async fn status(client: &mut HealthClient<Channel>) -> ServingStatus {
    within("the status", client.check(request())).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_needs_no_certificate_and_watching_the_health_needs_a_role() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();

    let mut without_tls = HealthClient::new(endpoint.connect().await.unwrap());
    assert_eq!(status(&mut without_tls).await, ServingStatus::Serving);
    let refused = within("an answer", without_tls.watch(request())).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert!(refused.message().contains("over TLS only"), "{refused}");

    let of = async |roles: &[CertificateRole]| {
        let holder = Holder::of(&authority.tls(Wanted::client(roles)));
        HealthClient::new(endpoint.connect_with_connector(holder).await.unwrap())
    };
    let mut without_role = of(&[]).await;
    assert_eq!(status(&mut without_role).await, ServingStatus::Serving);
    let refused = within("an answer", without_role.watch(request())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let mut watching = of(&[CertificateRole::Client]).await;
    let mut statuses = within("an answer", watching.watch(request())).await.unwrap().into_inner();
    let first = within("a status", statuses.message()).await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    until("the refusals are counted", async || node.raft_server().refused_requests() == 2).await;
}
