//! (Being written.)

use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use raftify_core::{
    CheckedConfig, LocalRequestMsg, Members, RaftNodeCore, SnapshotMeta, StableStorage, Status,
};
use tokio::sync::{mpsc, watch};

use crate::applier::Query;
use crate::error::RunError;
use crate::formatter::CustomFormatter;
use crate::lifecycle::Lifecycle;
use crate::reply::Reply;
use crate::state_machine::AbstractStateMachine;

/// Everything that a node consists of, before it runs.
pub(crate) struct NodeParts<S, FSM: AbstractStateMachine> {
    pub(crate) core: RaftNodeCore<Reply<FSM::Reply>>,
    pub(crate) config: CheckedConfig,
    pub(crate) raft_addr: Arc<str>,
    pub(crate) storage: S,
    pub(crate) state_machine: FSM,
    pub(crate) snapshot: Option<SnapshotMeta>,
    pub(crate) listener: TcpListener,
    pub(crate) local_requests: mpsc::Receiver<LocalRequestMsg<Reply<FSM::Reply>>>,
    pub(crate) queries: mpsc::Receiver<Query<FSM>>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) formatter: Arc<dyn CustomFormatter<FSM::LogEntry, FSM>>,
    pub(crate) first_members: Arc<Mutex<Option<Members>>>,
}

impl<S: StableStorage, FSM: AbstractStateMachine> NodeParts<S, FSM> {
    /// Runs the node to its end.
    pub(crate) async fn run(self, _lifecycle: Lifecycle) -> Result<(), RunError> {
        todo!()
    }
}
