//! Certificates are read again when their files change: no restart, and no lost write.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raftify::start::Start;
use raftify::tls::CertificateRole;
use raftify_free_address::free_address;

use crate::certificates::{Authority, Wanted};
use crate::nodes::{client_with, start, until, within};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_authority_takes_effect_on_new_connections_and_no_write_is_lost() {
    let (old, new) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let tls = old.issue(Wanted::node(&["127.0.0.1"])).write(&old.pem, directory.path());
    let address = free_address();
    let node = start(Start::Begin, &address, Some(tls)).await.unwrap();
    within("a leader", node.wait_for_leader()).await.unwrap();

    let user = client_with(&old, &address, &[CertificateRole::Client]);
    let done = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&done);
    let writes = tokio::spawn(async move {
        let mut written = 0;
        while !stop.load(Ordering::Relaxed) {
            written += 1;
            assert_eq!(user.propose(&1).await.unwrap(), written);
        }
        written
    });
    assert!(client_with(&new, &address, &[CertificateRole::Client]).read_index().await.is_err());
    new.issue(Wanted::node(&["127.0.0.1"])).write(&new.pem, directory.path());
    until("the new certificates are in use", async || {
        client_with(&new, &address, &[CertificateRole::Client]).read_index().await.is_ok()
    })
    .await;
    assert!(client_with(&old, &address, &[CertificateRole::Client]).read_index().await.is_err());

    // Garbage: the certificates in use stay. The next valid ones are used again.
    fs::write(directory.path().join("node.pem"), "garbage").unwrap();
    fs::remove_file(directory.path().join("node-key.pem")).unwrap();
    client_with(&new, &address, &[CertificateRole::Client]).read_index().await.unwrap();
    old.issue(Wanted::node(&["127.0.0.1"])).write(&old.pem, directory.path());
    until("the old authority is in use again", async || {
        client_with(&old, &address, &[CertificateRole::Client]).read_index().await.is_ok()
    })
    .await;
    done.store(true, Ordering::Relaxed);
    let written = within("the writer", writes).await.unwrap();
    assert_eq!(node.query(|sum| sum.total()).await.unwrap(), written);
}
