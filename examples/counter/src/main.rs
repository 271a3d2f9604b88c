//! The quick start of the README: a replicated counter on one node, in a temporary directory.

use raftify::{BoxError, Config, LogPosition, Raft, Snapshot, StateMachine, WalStorage};

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    type LogEntry = u64; // the replicated type: anything serde can serialize
    type Reply = u64; // the result that the proposer gets

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
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:7061".to_owned());
    let directory = tempfile::tempdir()?;
    let storage = WalStorage::open(directory.path())?;
    let raft = Raft::begin(address, storage, Counter::default(), Config::default()).await?;
    raft.wait_for_leader().await?;

    println!("the counter is {}", raft.propose(5).await?);

    raft.quit().await;
    Ok(())
}
