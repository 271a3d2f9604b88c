//! A signal ends `run`. In a process of its own, since a signal reaches all nodes of a process.
#![cfg(unix)]

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use raftify::{AbstractStateMachine, BoxError, Config, LogPosition, MemoryStorage, Raft, SnapshotCapture};
use raftify_free_address::free_address;

struct Nothing;

impl AbstractStateMachine for Nothing {
    type LogEntry = ();
    type Reply = ();

    fn apply(&mut self, _position: LogPosition, (): ()) -> Result<(), BoxError> {
        Ok(())
    }

    fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> {
        Ok(SnapshotCapture::of(()))
    }

    fn restore(&mut self, _reader: &mut dyn Read) -> Result<(), BoxError> {
        Ok(())
    }
}

#[tokio::test]
async fn sigterm_stops_the_node_in_order() -> Result<(), BoxError> {
    let address = free_address();
    let storage = MemoryStorage::default();
    let raft = Raft::begin(address, storage, Nothing, Config::default()).await?;
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await?;
    raft.propose(()).await?;
    // The one of the shell: not every system has a program `kill`.
    let sent = Command::new("sh").args(["-c", "kill -TERM $0", &std::process::id().to_string()]).status()?;
    assert!(sent.success());
    tokio::time::timeout(Duration::from_secs(60), running).await???;
    assert!(raft.propose(()).await.is_err());
    Ok(())
}
