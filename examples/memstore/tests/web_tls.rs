//! The web API over TLS, on a real node: the roles of a certificate decide what is served.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use memstore::{HashStore, NodeOptions, Raft, serve};
use raftify::start::Start;
use raftify::tls::CertificateRole;
use raftify_cli::authority::{Authority, Holder, Issued};
use raftify_free_address::free_address;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: NodeOptions,
}

fn client(ca: &Path, certificate: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    match certificate {
        None => config.with_no_client_auth(),
        Some(Issued { certificate, key }) => {
            let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    }
}

/// The answer to one request; empty if the connection was refused.
async fn ask(address: &str, config: ClientConfig, request: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let host = ServerName::try_from("127.0.0.1").unwrap();
    let mut answer = Vec::new();
    let asked = async {
        let mut stream = TlsConnector::from(Arc::new(config)).connect(host, stream).await?;
        let head =
            format!("{request} HTTP/1.1\r\nhost: node\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    // An error is a refusal, or an end without a farewell: what has arrived counts.
    let _ = timeout(DEADLINE, asked).await.expect("an answer");
    String::from_utf8(answer).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_decide_what_the_web_api_serves() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(directory.path(), 1).unwrap();
    let issue = |name: &str, roles: &[CertificateRole]| {
        authority.issue(&Holder::Client { name: name.to_owned(), roles: roles.to_vec() }, 1).unwrap()
    };
    let hosts = vec!["127.0.0.1".to_owned()];
    let node = authority.issue(&Holder::Node { hosts, id: None, cluster: None }, 1).unwrap();
    let (address, web) = (free_address(), free_address());
    let path = |path: &PathBuf| path.display().to_string();
    let data = path(&directory.path().join("data"));
    let arguments = Arguments::parse_from([
        "node",
        "--web-server",
        &web,
        "--data-dir",
        &data,
        "--ca",
        &path(&authority.certificate()),
        "--cert",
        &path(&node.certificate),
        "--key",
        &path(&node.key),
    ]);
    let options = arguments.options;
    let storage = options.open_storage("unused").unwrap();
    let (config, with) = (options.config(), options.bootstrap_options());
    let raft =
        Raft::start(Start::Begin, &address, storage, HashStore::default(), config, with).await.unwrap();
    raft.wait_for_leader().await.unwrap();
    let serving = {
        let raft = raft.clone();
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(serve(raft, &options)).map_err(|error| error.to_string())
        })
    };
    let is_up = async {
        while TcpStream::connect(&web).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(DEADLINE, is_up).await.expect("the web API");

    let ca = authority.certificate();
    let (user, admin, nobody) = (
        issue("user", &[CertificateRole::Client]),
        issue("admin", &[CertificateRole::Admin]),
        issue("nobody", &[]),
    );
    let asks = async |certificate: Option<&Issued>, request: &str| {
        ask(&web, client(&ca, certificate), request).await
    };
    let written = asks(Some(&user), "PUT /store/key/value").await;
    assert!(written.starts_with("HTTP/1.1 200"), "{written}");
    let read = asks(Some(&admin), "GET /store/key").await;
    assert!(read.contains("\"value\":\"value\""), "{read}");
    let refused = asks(Some(&user), "POST /leave").await;
    assert!(
        refused.starts_with("HTTP/1.1 403") && refused.contains("needs a certificate with the role admin")
    );
    let taken = asks(Some(&admin), "POST /snapshot").await;
    assert!(taken.starts_with("HTTP/1.1 200"), "{taken}");
    let refused = asks(Some(&nobody), "GET /store/key").await;
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("this one has: none"), "{refused}");
    assert_eq!(asks(None, "GET /store/key").await, "", "a client without a certificate");
    let mut plain = TcpStream::connect(&web).await.unwrap();
    plain.write_all(b"GET /store/key HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("the end");
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "it is served without TLS");

    raft.quit().await;
    timeout(DEADLINE, serving).await.expect("the end").unwrap().unwrap();
}
