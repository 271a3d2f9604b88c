//! Clusters with TLS, and the helpers of all tests.

use std::time::Duration;

use raftify::client::ClientError;
use raftify::error::{MembershipError, NodeStartError};
use raftify::membership::{MemberRole, MembershipRequest};
use raftify::start::{BootstrapOptions, JoinOptions, Start};
use raftify::storage::MemoryStorage;
use raftify::tls::{CertificateRole, Tls, cluster_uri, node_uri};
use raftify::{BoxError, Config, LogPosition, Member, NodeId, Raft, RaftClient, Snapshot, StateMachine};
use raftify_free_address::free_address;
use tokio::time::{Instant, sleep, timeout};

use crate::certificates::{Authority, Wanted};

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// A sum.
#[derive(Default)]
pub(crate) struct Sum(u64);

impl StateMachine for Sum {
    type LogEntry = u64;
    type Reply = u64;

    fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> {
        self.0 += add;
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(self.0))
    }

    fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
        self.0 = Snapshot::read_value(reader)?;
        Ok(())
    }
}

impl Sum {
    pub(crate) fn total(&self) -> u64 {
        self.0
    }
}

pub(crate) type Node = Raft<u64, Sum>;
pub(crate) type Client = RaftClient<u64, Sum>;

pub(crate) fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

pub(crate) async fn start(start: Start, address: &str, tls: Option<Tls>) -> Result<Node, NodeStartError> {
    let options = BootstrapOptions { tls, ..BootstrapOptions::default() };
    let started =
        Raft::start(start, address, MemoryStorage::default(), Sum::default(), Config::default(), options);
    within("the start of a node", started).await
}

/// A cluster of one node with TLS.
pub(crate) async fn begin(authority: &Authority) -> (Node, String) {
    let address = free_address();
    let node =
        start(Start::Begin, &address, Some(authority.tls(Wanted::node(&["127.0.0.1"])))).await.unwrap();
    within("a leader", node.wait_for_leader()).await.unwrap();
    (node, address)
}

pub(crate) fn client(address: &str, tls: &Tls) -> Client {
    RaftClient::new([address]).unwrap().with_tls(tls).unwrap().with_deadline(Duration::from_secs(20))
}

pub(crate) fn client_with(authority: &Authority, address: &str, roles: &[CertificateRole]) -> Client {
    client(address, &authority.tls(Wanted::client(roles)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_tls_begins_takes_writes_admits_a_node_and_is_administered() {
    let authority = Authority::new();
    let addresses = [free_address(), free_address()];
    let listed: Vec<Member> =
        (1..).zip(&addresses).map(|(number, address)| Member::voter(id(number), address)).collect();
    let tls = |number| authority.tls(Wanted::node(&["127.0.0.1"]).and_uri(node_uri(id(number))));
    let (first, second) = tokio::join!(
        start(Start::BeginWith(listed.clone()), &addresses[0], Some(tls(1))),
        start(Start::BeginWith(listed), &addresses[1], Some(tls(2))),
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    within("a leader", first.wait_for_leader()).await.unwrap();
    within("a leader", second.wait_for_leader()).await.unwrap();
    assert_eq!(first.propose(1).await.unwrap(), 1);
    assert_eq!(second.propose(2).await.unwrap(), 3, "one of the two forwards it");

    let third_address = free_address();
    let joining = Start::Join(JoinOptions::new([addresses[0].as_str()]));
    let third =
        start(joining, &third_address, Some(authority.tls(Wanted::node(&["127.0.0.1"])))).await.unwrap();
    assert_eq!(within("a read", third.query(|sum| sum.0)).await.unwrap(), 3);

    let user = client_with(&authority, &addresses[1], &[CertificateRole::Client]);
    assert_eq!(user.propose(&4).await.unwrap(), 7);
    user.read_index().await.unwrap();
    assert_eq!(user.members().await.unwrap().len(), 3);
    user.inspect().await.unwrap();

    let administrator = client_with(&authority, &addresses[0], &[CertificateRole::Admin]);
    assert_eq!(administrator.propose(&1).await.unwrap(), 8);
    administrator.transfer_leader(Some(id(2))).await.unwrap();
    let members = administrator.demote_to_learner(third.id()).await.unwrap();
    assert_eq!(members.get(third.id()).unwrap().role, MemberRole::Learner);
    for node in [&first, &second, &third] {
        assert_eq!(node.raft_server().refused_handshakes(), 0);
        assert_eq!(node.raft_server().refused_requests(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_certificate_is_of_another_cluster_is_no_peer() {
    let authority = Authority::new();
    let addresses = [free_address(), free_address(), free_address()];
    let listed: Vec<Member> =
        (1..).zip(&addresses).map(|(number, address)| Member::voter(id(number), address)).collect();
    let good = || authority.tls(Wanted::node(&["127.0.0.1"]));
    let other =
        authority.tls(Wanted::node(&["127.0.0.1"]).and_uri(cluster_uri("00000000000000aa".parse().unwrap())));
    let (list, address) = (listed.clone(), addresses[2].clone());
    let third = async move { start(Start::BeginWith(list), &address, Some(other)).await };
    let (first, second) = tokio::join!(
        start(Start::BeginWith(listed.clone()), &addresses[0], Some(good())),
        start(Start::BeginWith(listed), &addresses[1], Some(good())),
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(within("a majority", first.propose(1)).await.unwrap(), 1);
    let third = tokio::spawn(third);
    until("the third node's requests are refused", async || {
        first.raft_server().refused_requests() > 0 && second.raft_server().refused_requests() > 0
    })
    .await;
    let inspection =
        client_with(&authority, &addresses[0], &[CertificateRole::Client]).inspect().await.unwrap();
    assert_eq!(inspection.status.members.len(), 3);
    third.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_admitted_only_at_an_address_that_its_certificate_is_for() {
    let authority = Authority::new();
    let (node, address) = begin(&authority).await;
    let joiner = client(&address, &authority.tls(Wanted::node(&["localhost"])));
    let before = node.raft_server().refused_requests();
    let elsewhere = Member { role: MemberRole::Learner, ..Member::voter(id(2), free_address()) };
    let refused = joiner.change_config(MembershipRequest::join(vec![elsewhere])).await.unwrap_err();
    let ClientError::Rejected(refusal) = refused else { panic!("{refused:?}") };
    let text = refusal.to_string();
    assert!(text.contains("localhost") && text.contains("127.0.0.1") && text.contains("node 2"), "{text}");
    assert_eq!(node.raft_server().refused_requests(), before + 1);

    // A node role is no permission to change other members.
    let removed = joiner.change_config(MembershipRequest::join(Vec::new())).await;
    assert!(!matches!(removed, Err(ClientError::Answer(MembershipError::Unknown(_)))), "{removed:?}");
    let promoted = joiner.demote_to_learner(id(1)).await.unwrap_err();
    assert!(matches!(promoted, ClientError::Rejected(_)), "{promoted:?}");
    assert_eq!(node.status().borrow().members.len(), 1);
}
