//! (Signatures only for now.)

use std::marker::PhantomData;
use std::sync::Arc;

use bytes::Bytes;
use raftify_core::error::ReadError;
use raftify_core::members::SenderRefusal;
use raftify_core::{
    CheckedConfig, Forward, Identity, LogIndex, Members, NodeId, ProposalReply, RaftMessage, ReadRound, Sender,
    SnapshotStore, SnapshotToSend,
};
use tokio::sync::mpsc;

/// What the connections tell the raft loop.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    /// The connection to a peer broke; messages may have been lost. Once per broken connection.
    Unreachable(NodeId),
    /// A snapshot was installed by its receiver, or not. Exactly once for each that was to be sent.
    SnapshotSent {
        /// The receiver.
        to: NodeId,
        /// Why not.
        outcome: Result<(), String>,
    },
    /// The leader confirmed its commit index, or could not.
    ReadRoundAnswered {
        /// As asked.
        round: u64,
        /// The answer.
        answer: Result<LogIndex, ReadError>,
    },
    /// A peer refuses this node's messages.
    RefusedBy {
        /// The peer.
        by: NodeId,
        /// Why.
        refusal: SenderRefusal,
    },
}

/// The way back to who proposed, for a proposal that another node answered.
pub(crate) trait RemoteReply: ProposalReply {
    /// The state machine's reply, as postcard, in the encoding of the state machine's reply type.
    fn deliver(self, encoded_reply: Bytes);
}

/// The handle to all connections to peers. A clone is a second handle to the same.
pub(crate) struct Outbox<R> {
    _r: PhantomData<R>,
}

impl<R> Clone for Outbox<R> {
    fn clone(&self) -> Self {
        Outbox { _r: PhantomData }
    }
}

impl<R: RemoteReply> Outbox<R> {
    /// Starts without peers. Must be called on a tokio runtime, on which all of its tasks run. `own_address` is where
    /// peers that do not know this node yet can answer.
    pub(crate) fn start<S: SnapshotStore>(
        _own_address: String,
        _config: CheckedConfig,
        _snapshots: S,
        _events: mpsc::UnboundedSender<PeerEvent>,
    ) -> Outbox<R> {
        todo!()
    }

    /// Connects to the members that are new, ends the connections to those that are gone or moved.
    pub(crate) fn set_members(&self, _identity: Identity, _members: &Arc<Members>) {
        todo!()
    }

    /// A peer that may not be a member yet as far as this node knows introduced itself: answers go to `address` until
    /// the membership says better.
    pub(crate) fn hear_of(&self, _sender: &Sender, _address: &str) {
        todo!()
    }

    /// Hands messages to the connections. Never blocks, on any thread.
    pub(crate) fn send(&self, _messages: Vec<RaftMessage>) {
        todo!()
    }

    /// Sends a snapshot; exactly one [`PeerEvent::SnapshotSent`] follows.
    pub(crate) fn send_snapshot(&self, _snapshot: SnapshotToSend) {
        todo!()
    }

    /// Passes a request on to the leader and its answer back.
    pub(crate) fn forward(&self, _forward: Forward<R>) {
        todo!()
    }

    /// Asks the leader; exactly one [`PeerEvent::ReadRoundAnswered`] follows.
    pub(crate) fn read_round(&self, _round: ReadRound) {
        todo!()
    }

    /// Ends all connections and waits for their tasks. Later calls of the other methods do nothing but report failure.
    pub(crate) async fn shutdown(&self) {
        todo!()
    }
}
