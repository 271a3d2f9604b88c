//! The quick start as a cluster: three nodes in one process, each with its own directory and address. Three
//! programs on three machines would each run the body of the loop once.

use raftify::{BoxError, Config, LogPosition, Member, NodeId, Raft, Snapshot, StateMachine, WalStorage};

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type LogEntry = u64;
    type Reply = u64;

    fn apply(&mut self, _position: LogPosition, add: u64) -> Result<u64, BoxError> {
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

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let mut addresses: Vec<String> = std::env::args().skip(1).collect();
    if addresses.is_empty() {
        addresses = (7061..=7063).map(|port| format!("127.0.0.1:{port}")).collect();
    }
    let mut members = Vec::new();
    for (id, address) in (1..).zip(addresses) {
        members.push(Member::voter(NodeId::try_from(id)?, address));
    }

    let directory = tempfile::tempdir()?;
    let mut starting = Vec::new();
    for Member { id, address, .. } in &members {
        let storage = WalStorage::open(directory.path().join(id.to_string()))?;
        let (list, address) = (members.clone(), address.clone());
        // Each waits until the others agree on the list.
        let node = Raft::begin_with(list, address, storage, Counter::default(), Config::default());
        starting.push(tokio::spawn(node));
    }
    let mut nodes = Vec::new();
    for node in starting {
        nodes.push(node.await??);
    }

    // Any node accepts a proposal, and a read on any node sees all writes acknowledged before.
    for raft in &nodes {
        raft.wait_for_leader().await?;
        println!("node {}: the counter is {}", raft.id(), raft.propose(5).await?);
    }
    for raft in &nodes {
        println!("node {} reads {}", raft.id(), raft.query(|counter| counter.0).await?);
    }

    for raft in &nodes {
        raft.quit().await;
    }
    Ok(())
}
