//! The nodes that are measured.

use std::io::Read;
use std::net::TcpListener;
use std::path::Path;

use raftify::{
    AbstractStateMachine, BoxError, Config, HeedStorage, LogPosition, Member, MemoryStorage, NodeId, Raft,
    SnapshotCapture, WalStorage, restore_value,
};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Where the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Storage {
    /// LMDB, synced
    Heed,
    /// The segment log, synced
    Wal,
    /// Memory: what is measured then is everything but the disk
    Memory,
}

impl Storage {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Storage::Heed => "heed",
            Storage::Wal => "wal",
            Storage::Memory => "memory",
        }
    }
}

/// Does as little as a state machine can: what is measured is the replication.
#[derive(Default)]
pub(crate) struct Sum(u64);

impl AbstractStateMachine for Sum {
    type LogEntry = Vec<u8>;
    type Reply = u64;

    fn is_quick_to_apply(&self) -> bool {
        true
    }

    fn apply(&mut self, _position: LogPosition, entry: Vec<u8>) -> Result<u64, BoxError> {
        self.0 += entry.len() as u64;
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<SnapshotCapture, BoxError> {
        Ok(SnapshotCapture::of(self.0))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.0 = restore_value(reader)?;
        Ok(())
    }
}

pub(crate) type Node = Raft<Vec<u8>, Sum>;

/// A running node on a runtime of its own.
pub(crate) struct Running {
    pub(crate) raft: Node,
    pub(crate) end: JoinHandle<Result<(), raftify::error::RunError>>,
    pub(crate) runtime: Runtime,
}

/// As many addresses as nodes, on free ports of this machine.
pub(crate) fn free_addresses(count: usize) -> Result<Vec<String>, BoxError> {
    // All are held until all are known, so that no two are the same.
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.to_string())).collect()
}

fn members(addresses: &[String]) -> Result<Vec<Member>, BoxError> {
    (1..).zip(addresses).map(|(id, address)| Ok(Member::voter(NodeId::try_from(id)?, address))).collect()
}

/// Starts node `id` of the cluster of `addresses`.
pub(crate) fn start(
    id: u64,
    directory: &Path,
    addresses: &[String],
    storage: Storage,
) -> Result<Running, BoxError> {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let node_id = NodeId::try_from(id)?;
    let address = addresses.get(usize::try_from(id - 1)?).ok_or("the node has no address")?;
    let config = Config::default();
    let raft: Node = match storage {
        Storage::Wal => {
            Raft::bootstrap(node_id, address, WalStorage::open(directory)?, Sum::default(), config)?
        }
        Storage::Heed => {
            Raft::bootstrap(node_id, address, HeedStorage::open(directory)?, Sum::default(), config)?
        }
        Storage::Memory => {
            Raft::bootstrap(node_id, address, MemoryStorage::default(), Sum::default(), config)?
        }
    };
    runtime.block_on(raft.add_peers(members(addresses)?))?;
    let end = runtime.spawn(raft.clone().run());
    Ok(Running { raft, end, runtime })
}

/// Serves as node `id` until it is killed.
pub(crate) fn serve(id: u64, directory: &Path, addresses: &[String]) -> Result<(), BoxError> {
    let Running { end, runtime, .. } = start(id, directory, addresses, Storage::Heed)?;
    Ok(runtime.block_on(end)??)
}
