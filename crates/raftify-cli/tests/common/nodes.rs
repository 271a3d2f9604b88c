//! Real nodes, and the program beside them.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use raftify::{BoxError, LogPosition, Raft, Snapshot, StateMachine, WalStorage};
use tokio::time::{Instant, sleep};

use super::{cli, text};

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Sum(pub(crate) u64);

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

pub(crate) type Node = Raft<u64, Sum>;

pub(crate) fn open(directory: &Path) -> WalStorage {
    WalStorage::open(directory).unwrap()
}

/// The program, while the nodes of this process run.
pub(crate) async fn cli_beside(arguments: Vec<String>) -> Output {
    tokio::task::spawn_blocking(move || cli(&arguments)).await.unwrap()
}

pub(crate) async fn succeeds(arguments: Vec<String>) -> String {
    let output = cli_beside(arguments.clone()).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

/// Repeats a read or write until a leader serves it.
pub(crate) async fn until_served<T, E: std::fmt::Display>(
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => assert!(Instant::now() < deadline, "waited in vain: {error}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}
