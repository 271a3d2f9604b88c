//! The web API over TLS, on a real node: the roles of a certificate decide what is served, and certificates are
//! read again when their files change.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
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
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let met = async {
        while !condition().await {
            sleep(PAUSE).await;
        }
    };
    timeout(DEADLINE, met).await.unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"));
}

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: NodeOptions,
}

fn client(cas: &[PathBuf], certificate: Option<&Issued>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for ca in cas {
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    }
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

/// A node with its web API over TLS.
struct Served {
    raft: Raft,
    web: String,
    serving: JoinHandle<Result<(), String>>,
}

impl Served {
    async fn start(directory: &Path, ca: &Path, node: &Issued) -> Served {
        let (address, web) = (free_address(), free_address());
        let path = |path: &Path| path.display().to_string();
        let arguments = Arguments::parse_from([
            "node",
            "--web-server",
            &web,
            "--data-dir",
            &path(&directory.join("data")),
            "--ca",
            &path(ca),
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
                sleep(PAUSE).await;
            }
        };
        timeout(DEADLINE, is_up).await.expect("the web API");
        Served { raft, web, serving }
    }

    async fn stop(self) {
        self.raft.quit().await;
        timeout(DEADLINE, self.serving).await.expect("the end").unwrap().unwrap();
    }
}

fn issue(authority: &Authority, name: &str, roles: &[CertificateRole]) -> Issued {
    authority.issue(&Holder::Client { name: name.to_owned(), roles: roles.to_vec() }, 1).unwrap()
}

fn issue_node(authority: &Authority) -> Issued {
    let hosts = vec!["127.0.0.1".to_owned()];
    authority.issue(&Holder::Node { hosts, id: None, cluster: None }, 1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_decide_what_the_web_api_serves() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::create(directory.path(), 1).unwrap();
    let served = Served::start(directory.path(), &authority.certificate(), &issue_node(&authority)).await;
    let web = &served.web;

    let ca = authority.certificate();
    let (user, admin, nobody) = (
        issue(&authority, "user", &[CertificateRole::Client]),
        issue(&authority, "admin", &[CertificateRole::Admin]),
        issue(&authority, "nobody", &[]),
    );
    let asks = async |certificate: Option<&Issued>, request: &str| {
        ask(web, client(std::slice::from_ref(&ca), certificate), request).await
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
    let mut plain = TcpStream::connect(web).await.unwrap();
    plain.write_all(b"GET /store/key HTTP/1.1\r\nhost: node\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("the end");
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "it is served without TLS");

    served.stop().await;
}

/// Clients that open a connection for each request, and trust these CAs.
fn requests(
    web: &str,
    cas: &[PathBuf],
    own: &Issued,
    stop: &watch::Receiver<bool>,
) -> Vec<JoinHandle<(usize, Vec<String>)>> {
    let work = (0..4).map(|number| {
        let (config, web, stop) = (client(cas, Some(own)), web.to_owned(), stop.clone());
        tokio::spawn(async move {
            let (mut answered, mut failed) = (0, Vec::new());
            while !*stop.borrow() {
                let path = format!("PUT /store/key-{number}/{answered}");
                let answer = ask(&web, config.clone(), &path).await;
                answered += 1;
                if !answer.starts_with("HTTP/1.1 200") {
                    failed.push(answer);
                }
            }
            (answered, failed)
        })
    });
    work.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_certificate_and_ca_are_used_without_a_failed_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (old, new) =
        (Authority::create(&path("old"), 1).unwrap(), Authority::create(&path("new"), 1).unwrap());
    let (own, ca) = (issue_node(&old), path("ca.pem"));
    fs::copy(old.certificate(), &ca).unwrap();
    let served = Served::start(directory.path(), &ca, &own).await;
    let web = &served.web;
    let cas = [old.certificate(), new.certificate()];
    let [of_old, of_new] = [&old, &new].map(|ca| issue(ca, "user", &[CertificateRole::Client]));
    let reads = async |own: &Issued| !ask(web, client(&cas, Some(own)), "GET /leader").await.is_empty();
    assert!(reads(&of_old).await && !reads(&of_new).await);

    let (stop, stops) = watch::channel(false);
    let work = requests(web, &cas, &of_old, &stops);
    // A certificate that does not belong to the key: the one in use stays.
    let (kept, renewed) = (fs::read(&own.certificate).unwrap(), issue_node(&new));
    fs::write(&own.certificate, fs::read(&renewed.certificate).unwrap()).unwrap();
    assert!(reads(&of_old).await);
    fs::write(&own.certificate, kept).unwrap();
    // The CA of the clients is replaced first by both, and then the certificate of the node.
    fs::write(&ca, [fs::read(old.certificate()).unwrap(), fs::read(new.certificate()).unwrap()].concat())
        .unwrap();
    until("clients of the new CA are served", async || reads(&of_new).await).await;
    for (from, to) in [(&renewed.key, &own.key), (&renewed.certificate, &own.certificate)] {
        fs::copy(from, to).unwrap();
    }
    let only_new = client(&cas[1..], Some(&of_new));
    let is_renewed = async || !ask(web, only_new.clone(), "GET /leader").await.is_empty();
    until("the new certificate is served", is_renewed).await;
    stop.send_replace(true);
    for task in work {
        let (answered, failed) = timeout(DEADLINE, task).await.expect("the last answer").unwrap();
        assert!(answered > 0);
        assert_eq!(failed, Vec::<String>::new(), "of {answered} requests");
    }
    // And the old CA is gone.
    fs::copy(new.certificate(), &ca).unwrap();
    until("clients of the old CA are refused", async || !reads(&of_old).await).await;
    served.stop().await;
}
