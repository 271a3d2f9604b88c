//! A node or client with unusable certificates does not start, and says why.

use std::time::SystemTime;

use raftify::error::{BootstrapError, NodeStartError};
use raftify::start::Start;
use raftify::tls::{CertificateRole, Pem, Tls, TlsError, node_uri};
use raftify::{Raft, RaftClient};
use raftify_free_address::free_address;

use crate::certificates::{Authority, HOUR, Wanted};
use crate::nodes::{Client, Sum, id, start};

/// Why a node does not begin with this configuration.
async fn refused(tls: Tls) -> TlsError {
    match start(Start::Begin, &free_address(), Some(tls)).await.unwrap_err() {
        NodeStartError::Bootstrap(BootstrapError::Tls(error)) => error,
        error => panic!("{error}"),
    }
}

fn says(error: &TlsError, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[tokio::test]
async fn an_expired_certificate() {
    let now = SystemTime::now();
    let wanted = Wanted::node(&["127.0.0.1"]).valid(now - 2 * HOUR, now - HOUR);
    says(&refused(Authority::new().tls(wanted)).await, &["expired", "127.0.0.1", "issue a new one"]);
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet() {
    let now = SystemTime::now();
    let wanted = Wanted::node(&["127.0.0.1"]).valid(now + HOUR, now + 2 * HOUR);
    says(&refused(Authority::new().tls(wanted)).await, &["not valid yet", "127.0.0.1", "correct the clock"]);
}

#[tokio::test]
async fn a_certificate_of_another_authority() {
    let issued = Authority::new().issue(Wanted::node(&["127.0.0.1"]));
    says(&refused(issued.tls(&Authority::new().pem)).await, &["not of this cluster's CA", "127.0.0.1"]);
}

#[tokio::test]
async fn a_certificate_for_another_host() {
    let error = refused(Authority::new().tls(Wanted::node(&["node-7.example", "10.0.0.7"]))).await;
    assert!(matches!(error, TlsError::Host { .. }), "{error:?}");
    says(&error, &["node-7.example, 10.0.0.7", "127.0.0.1"]);
}

#[tokio::test]
async fn a_key_of_another_certificate() {
    let authority = Authority::new();
    let (issued, other) =
        (authority.issue(Wanted::node(&["127.0.0.1"])), authority.issue(Wanted::node(&["127.0.0.1"])));
    let tls = Tls { key: other.key.as_bytes().into(), ..issued.tls(&authority.pem) };
    let error = refused(tls).await;
    assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error:?}");
}

#[tokio::test]
async fn files_that_cannot_be_read_or_are_no_certificates() {
    let authority = Authority::new();
    let tls = authority.tls(Wanted::node(&["127.0.0.1"]));
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing.pem");
    let error = refused(Tls { key: missing.as_path().into(), ..tls.clone() }).await;
    says(&error, &["the key in ", "missing.pem", "cannot be read"]);
    let error = refused(Tls { ca: directory.path().into(), ..tls.clone() }).await;
    says(&error, &["the CA in ", "cannot be read"]);
    let garbage = || Pem::Bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec());
    says(
        &refused(Tls { certificate: garbage(), ..tls.clone() }).await,
        &["the certificate", "cannot be used"],
    );
    says(&refused(Tls { ca: garbage(), ..tls.clone() }).await, &["the CA", "cannot be used"]);
    says(&refused(Tls { key: garbage(), ..tls.clone() }).await, &["the key", "cannot be used"]);
    says(&refused(Tls { ca: Vec::new().into(), ..tls }).await, &["the CA", "no CERTIFICATE"]);
}

#[tokio::test]
async fn a_certificate_without_the_role_of_a_node() {
    let tls = Authority::new().tls(Wanted::with(&["127.0.0.1"], &[CertificateRole::Client]));
    let error = refused(tls).await;
    assert!(matches!(error, TlsError::Role { .. }), "{error:?}");
    says(&error, &["not the role node, but client"]);
}

#[tokio::test]
async fn a_certificate_for_another_node() {
    let tls = Authority::new().tls(Wanted::node(&["127.0.0.1"]).and_uri(node_uri(id(7))));
    says(&refused(tls).await, &["node 7", "not for node 1"]);
}

#[tokio::test]
async fn a_client_and_a_ticket_with_an_unusable_certificate() {
    let issued = Authority::new().issue(Wanted::client(&[CertificateRole::Client]));
    let tls = issued.tls(&Authority::new().pem);
    let client: Client = RaftClient::new(["127.0.0.1:1"]).unwrap();
    says(&client.with_tls(&tls).map(drop).unwrap_err(), &["not of this cluster's CA", "tester"]);
    let elsewhere = Authority::new().tls(Wanted::node(&["10.0.0.7"]));
    let refused = Raft::<u64, Sum>::request_id_with_tls(HOUR, "127.0.0.1:1", "127.0.0.1:2", &elsewhere).await;
    assert!(refused.unwrap_err().to_string().contains("10.0.0.7, and not for 127.0.0.1"));
}

#[test]
fn a_key_is_not_printed() {
    let tls = Authority::new().tls(Wanted::client(&[]));
    let text = format!("{tls:?}");
    assert!(!text.contains("PRIVATE") && text.contains("bytes)"), "{text}");
}
