//! A signal ends `run`. In a separate process, since a signal reaches all nodes of a process.
#![cfg(unix)]

use std::io::Read;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::time::Duration;

use raftify::error::{StopReason, TransferError};
use raftify::storage::MemoryStorage;
use raftify::{BoxError, Config, LogPosition, Raft, Snapshot, StateMachine};
use raftify_free_address::free_address;

/// Applies `true` when permitted.
struct Nothing(Arc<Barrier>);

impl StateMachine for Nothing {
    type LogEntry = bool;
    type Reply = ();

    fn apply(&mut self, _position: LogPosition, waits: bool) -> Result<(), BoxError> {
        if waits {
            self.0.wait(); // Until the test knows that the entry is being applied,
            self.0.wait(); // and until the test lets it continue.
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(()))
    }

    fn restore(&mut self, _reader: &mut dyn Read) -> Result<(), BoxError> {
        Ok(())
    }
}

fn send_sigterm() -> Result<(), BoxError> {
    // The shell's builtin: not every system has a program `kill`.
    let sent = Command::new("sh").args(["-c", "kill -TERM $0", &std::process::id().to_string()]).status()?;
    assert!(sent.success());
    Ok(())
}

/// Sends a leader a request that it processes at once.
async fn until_requests_fail_with(raft: &Raft<bool, Nothing>, reason: StopReason) {
    let fail = async {
        while raft.transfer_leader(raft.id()).await != Err(TransferError::Stopped(reason.clone())) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), fail).await.expect("they never fail so");
}

/// One after the other, since a signal reaches all nodes of the process.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_stops_the_node_in_order_and_another_one_at_once() -> Result<(), BoxError> {
    let barrier = Arc::new(Barrier::new(2));
    let start = || {
        let (address, storage) = (free_address(), MemoryStorage::default());
        let config = Config { stop_timeout: Duration::from_secs(3600), ..Config::default() };
        Raft::begin(address, storage, Nothing(Arc::clone(&barrier)), config)
    };
    let raft = start().await?;
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await?;
    raft.propose(false).await?;
    send_sigterm()?;
    tokio::time::timeout(Duration::from_secs(60), running).await???;
    assert!(raft.propose(false).await.is_err());

    let raft = start().await?;
    let running = tokio::spawn(raft.clone().run());
    raft.wait_for_leader().await?;
    let proposal = tokio::spawn({
        let raft = raft.clone();
        async move { raft.propose(true).await }
    });
    tokio::task::block_in_place(|| barrier.wait());
    send_sigterm()?;
    // It continues, since it has a pending reply.
    until_requests_fail_with(&raft, StopReason::Stopping).await;
    send_sigterm()?;
    until_requests_fail_with(&raft, StopReason::Stopped).await;
    tokio::task::block_in_place(|| barrier.wait());
    assert_eq!(proposal.await?, Ok(()), "what the state machine had begun");
    tokio::time::timeout(Duration::from_secs(60), running).await???;

    // `run_until` leaves the signals to the program.
    let raft = start().await?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(raft.clone().run_until(async { drop(stopped.await) }));
    raft.wait_for_leader().await?;
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    send_sigterm()?;
    terminate.recv().await;
    raft.propose(false).await?;
    drop(stop);
    tokio::time::timeout(Duration::from_secs(60), running).await???;
    Ok(())
}
