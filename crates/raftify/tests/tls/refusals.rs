//! Refused connections and requests: told on both sides, counted, and never an unknown outcome.

use std::time::{Duration, SystemTime};

use raftify::RaftClient;
use raftify::client::{BackupOptions, ClientBackupError, ClientError, RequestRejected, UnreachableNode};
use raftify::error::{MembershipError, ProposeError};
use raftify::start::Start;
use raftify::tls::CertificateRole;
use raftify_free_address::free_address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::certificates::{Authority, HOUR, Wanted};
use crate::nodes::{Client, begin, client, client_with, id, start, until, within};

/// Why the only node could not be reached.
fn unreachable<E: std::fmt::Debug>(error: ClientError<E>) -> String {
    match error {
        ClientError::Unreachable(nodes) => match &nodes[..] {
            [UnreachableNode::NotConnected { reason, .. }] => reason.clone(),
            nodes => panic!("{nodes:?}"),
        },
        error => panic!("it is not told as a failed connection: {error:?}"),
    }
}

/// A certificate of another CA, whose holder accepts the certificates of the cluster's CA.
fn of_another_authority(authority: &Authority) -> raftify::tls::Tls {
    let other = Authority::new();
    let issued = other.issue(Wanted::client(&[CertificateRole::Client]));
    issued.tls(&format!("{}{}", authority.pem, other.pem))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_authority_learns_of_it_and_nothing_was_sent_in_any_of_many_attempts() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let tls = of_another_authority(&authority);
    for attempt in 1..=20 {
        let reason = unreachable(client(&address, &tls).propose(&1).await.unwrap_err());
        assert!(reason.contains("not of the CA") && reason.contains("tester"), "{reason}");
        assert!(reason.contains(&address), "{reason}");
        until("the node counts it", async || node.raft_server().refused_handshakes() >= attempt).await;
    }
    assert_eq!(node.raft_server().refused_handshakes(), 20);
    assert_eq!(node.query(sum_of).await.unwrap(), 0);
}

fn sum_of(sum: &crate::nodes::Sum) -> u64 {
    sum.total()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_refuses_a_node_of_another_authority() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let stranger = client_with(&Authority::new(), &address, &[CertificateRole::Client]);
    let reason = unreachable(stranger.propose(&1).await.unwrap_err());
    assert!(reason.contains("not of this cluster's CA"), "{reason}");
    until("the node counts it", async || node.raft_server().refused_handshakes() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_certificate_expires_is_refused_from_then_on() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let now = SystemTime::now();
    let wanted = Wanted::client(&[CertificateRole::Client]).valid(now - HOUR, now + Duration::from_secs(5));
    let tls = authority.tls(wanted);
    let early = client(&address, &tls);
    assert_eq!(early.propose(&1).await.unwrap(), 1);
    let late = client(&address, &tls);
    // New connections present the certificate again.
    let new = || {
        let other = RaftClient::<u64, crate::nodes::Sum>::new([address.as_str()]).unwrap();
        other.with_tls(&tls)
    };
    until("the certificate has expired", async || new().is_err()).await;
    let refused = new().map(drop).unwrap_err().to_string();
    assert!(refused.contains("expired") && refused.contains("tester"), "{refused}");
    assert_eq!(early.propose(&1).await.unwrap(), 2, "an open connection continues");
    assert_eq!(node.raft_server().refused_handshakes(), 0);
    let reason = unreachable(late.propose(&1).await.unwrap_err());
    assert!(reason.contains("CertificateExpired"), "{reason}");
    until("the node counts it", async || node.raft_server().refused_handshakes() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_tls_is_told_that_it_is_required() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let plain: Client = RaftClient::new([address.as_str()]).unwrap();
    let refused = plain.propose(&1).await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::Rejected(RequestRejected::TlsRequired { node, address: at })
            if *node == id(1) && *at == address),
        "{refused:?}"
    );
    let refused = plain.members().await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(RequestRejected::TlsRequired { .. })), "{refused:?}");
    assert_eq!(node.raft_server().refused_requests(), 2);
    assert_eq!(node.raft_server().requests().proposals, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_tls_is_told_that_the_node_is_without() {
    let address = free_address();
    let node = start(Start::Begin, &address, None).await.unwrap();
    within("a leader", node.wait_for_leader()).await.unwrap();
    let secured = client_with(&Authority::new(), &address, &[CertificateRole::Client]);
    let reason = unreachable(secured.propose(&1).await.unwrap_err());
    assert!(reason.contains("does not use TLS"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_role_can_do_nothing_and_is_told_so() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let nobody = client_with(&authority, &address, &[]);
    let refused = nobody.propose(&1).await.unwrap_err();
    let ClientError::Rejected(refusal) = &refused else { panic!("{refused:?}") };
    let text = refusal.to_string();
    for part in ["node 1", &address, "Propose", "tester", "none", "client"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(matches!(nobody.read_index().await, Err(ClientError::Rejected(_))));
    assert!(matches!(nobody.members().await, Err(ClientError::Rejected(_))));
    assert!(matches!(nobody.inspect().await, Err(ClientError::Rejected(_))));
    assert!(matches!(nobody.transfer_leader(None).await, Err(ClientError::Rejected(_))));
    assert!(matches!(nobody.events().await, Err(ClientError::Rejected(_))));
    // The first one as a part of a stream, and then by itself, since the node may permit a single method.
    assert_eq!(node.raft_server().refused_requests(), 7);
    assert_eq!(node.raft_server().requests(), raftify::status::RequestCounts::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_change_members_or_the_leader() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let user = client_with(&authority, &address, &[CertificateRole::Client]);
    assert_eq!(user.propose(&1).await.unwrap(), 1);
    let refused: ClientError<MembershipError> = user.demote_to_learner(id(1)).await.unwrap_err();
    let ClientError::Rejected(RequestRejected::RoleMissing { roles, needed, .. }) = &refused else {
        panic!("{refused:?}")
    };
    assert_eq!((&**roles, &**needed), ("client", "node, admin"));
    let refused = user.transfer_leader(Some(id(1))).await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(RequestRejected::RoleMissing { .. })), "{refused:?}");
    let refused = user.make_snapshot(id(1)).await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(RequestRejected::RoleMissing { .. })), "{refused:?}");
    let refused = user.leave(id(1), true).await.unwrap_err();
    assert!(matches!(refused, ClientError::Rejected(RequestRejected::RoleMissing { .. })), "{refused:?}");
    let mut events = user.events().await.unwrap();
    node.make_snapshot().await.unwrap();
    assert!(within("an event", events.next()).await.unwrap().is_some());
    assert_eq!(node.raft_server().requests().membership_changes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_host_is_no_certificate_of_the_node() {
    let authority = Authority::new();
    let (_node, address) = begin(&authority).await;
    let by_name = address.replace("127.0.0.1", "localhost");
    let user = client_with(&authority, &by_name, &[CertificateRole::Client]);
    let reason = unreachable(user.propose(&1).await.unwrap_err());
    assert!(reason.contains("it is for 127.0.0.1, and not for localhost"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_never_end_their_handshake_delay_no_other_one() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let mut quiet = Vec::new();
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        for _ in 0..50 {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(begun).await.unwrap();
            quiet.push(stream);
        }
    }
    let user = client_with(&authority, &address, &[CertificateRole::Client]);
    assert_eq!(within("a write", user.propose(&1)).await.unwrap(), 1);
    for mut stream in quiet {
        within("the node to close it", async { while stream.read_u8().await.is_ok() {} }).await;
    }
    assert_eq!(node.raft_server().refused_requests(), 0);
    until("their places are free", async || node.raft_server().open_connections() <= 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_is_refused_and_a_check_of_the_port_is_not_counted() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    drop(TcpStream::connect(&address).await.unwrap());
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x16\x03\x01\x00\x05hello", &[0xff; 4096]] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        within("the end", async { while stream.read_u8().await.is_ok() {} }).await;
    }
    until("all are counted", async || node.raft_server().refused_handshakes() == 3).await;
    assert_eq!(node.propose(1).await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_refusal_is_an_unknown_outcome_while_the_node_is_busy() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let tls = of_another_authority(&authority);
    let user = client_with(&authority, &address, &[CertificateRole::Client]);
    let writes = async {
        for _ in 0..200 {
            user.propose(&1).await.unwrap();
        }
    };
    let refusals = futures_util::future::join_all(
        (0..20).map(|_| async { client(&address, &tls).propose(&1).await.unwrap_err() }),
    );
    let ((), refusals) = tokio::join!(writes, refusals);
    for refusal in refusals {
        assert!(
            !matches!(refusal, ClientError::Answer(ProposeError::Unknown(_))),
            "{refusal:?} is no unknown outcome"
        );
        unreachable(refusal);
    }
    assert_eq!(node.query(sum_of).await.unwrap(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_needs_the_role_of_an_administrator() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("a.backup");
    let save = async |client: &Client| client.backup(&file, &BackupOptions::default(), |_| {}).await;
    let user = client_with(&authority, &address, &[CertificateRole::Client]);
    match within("the refusal", save(&user)).await {
        Err(ClientBackupError::Node(ClientError::Rejected(RequestRejected::RoleMissing {
            method, ..
        }))) => assert_eq!(&*method, "Backup"),
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    let administrator = client_with(&authority, &address, &[CertificateRole::Admin]);
    within("the backup", save(&administrator)).await.unwrap();
    assert!(file.exists());
    assert_eq!(node.raft_server().requests().backups, 1, "a refused one is not served");
}
