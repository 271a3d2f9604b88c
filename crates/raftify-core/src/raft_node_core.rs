//! The core's API. (Being filled in.)

use crate::config::CheckedConfig;
use crate::entry::Entry;
use crate::error::{ReadError, StartError, StopReason};
use crate::request::{LocalRequestMsg, ProposalReply, ServerRequestMsg};
use crate::status::Status;
use crate::storage::{LogReader, SnapshotMeta, StorageError, StoredState};
use crate::turn::{LogFetch, Turn, TurnNumber};
use crate::types::{LogIndex, LogPosition, NodeId};

/// What a core starts with.
pub struct CoreStart {
    /// This node.
    pub node_id: NodeId,
    /// Its settings.
    pub config: CheckedConfig,
    /// Decides about election timeouts, and about nothing else.
    pub seed: u64,
    /// What the storage holds.
    pub stored: StoredState,
    /// Where raft-rs logs to; `None`: to `tracing`.
    pub logger: Option<slog::Logger>,
}

/// The deciding half of a node.
pub struct RaftNodeCore<R> {
    _r: std::marker::PhantomData<R>,
}

impl<R: ProposalReply> RaftNodeCore<R> {
    /// Starts on what the storage holds; reads the entries after the newest snapshot, which it holds until they are applied.
    pub fn new(_start: CoreStart, _log: &impl LogReader) -> Result<Self, StartError> {
        todo!()
    }
    /// One `tick_interval` has passed.
    pub fn tick(&mut self) {
        todo!()
    }
    /// This node's user asks.
    pub fn handle_local_request_msg(&mut self, _m: LocalRequestMsg<R>) {
        todo!()
    }
    /// Another node asks.
    pub fn handle_server_request_msg(&mut self, _m: ServerRequestMsg<R>) {
        todo!()
    }
    /// What must be done now, if anything.
    pub fn ready(&mut self) -> Option<Turn<R>> {
        todo!()
    }
    /// All writes up to this turn are durable.
    pub fn written(&mut self, _n: TurnNumber) {
        todo!()
    }
    /// The state machine has applied everything up to here.
    pub fn applied(&mut self, _i: LogIndex) {
        todo!()
    }
    /// A snapshot that the core asked for is durable in the snapshot store, or could not be taken (the reason as text).
    pub fn snapshot_taken(&mut self, _r: Result<SnapshotMeta, String>) {
        todo!()
    }
    /// A snapshot was installed by its receiver (`Ok`), or not.
    pub fn snapshot_sent(&mut self, _to: NodeId, _outcome: Result<(), String>) {
        todo!()
    }
    /// The connection to a peer broke: messages may have been lost. Once per broken connection.
    pub fn report_unreachable(&mut self, _to: NodeId) {
        todo!()
    }
    /// The entries asked for with [`Turn::fetch`]. An error other than `Compacted` stops the node before this is called.
    pub fn fetched(&mut self, _f: LogFetch, _r: Result<Vec<Entry>, StorageError>) {
        todo!()
    }
    /// The leader's answer to [`Turn::read_round`].
    pub fn read_round_answered(&mut self, _round: u64, _r: Result<LogIndex, ReadError>) {
        todo!()
    }
    /// Another node refused this one's messages. Ends the node if that is final: see [`stop_reason`](Self::stop_reason).
    pub fn refused_by(&mut self, _by: NodeId, _refusal: crate::members::SenderRefusal) {
        todo!()
    }
    /// Why this node must stop by itself, once it must: it was removed, or is fenced.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        todo!()
    }
    /// Answers everyone who still waits. Nothing else may be called after it.
    pub fn stop(&mut self, _reason: StopReason) {
        todo!()
    }
    /// The public picture.
    pub fn status(&self) -> Status {
        todo!()
    }
    /// Which snapshots must be kept: the newest, and those on their way to a follower.
    pub fn snapshots_in_use(&self) -> Vec<LogPosition> {
        todo!()
    }
}
