//! The way back to who proposed: typed for this node's own user, encoded for everybody else.

use bytes::Bytes;
use raftify_core::ProposalReply;
use raftify_core::error::{ProposeError, StopReason, UnknownOutcome};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::outbox::RemoteReply;

/// Where the state machine's reply to one proposal goes. Dropped without an answer, it answers that the node has
/// stopped.
pub(crate) enum Reply<T> {
    /// To a caller in this process.
    Local(oneshot::Sender<Result<T, ProposeError>>),
    /// To another node or a remote client, in the format of `postcard`.
    Remote(oneshot::Sender<Result<Bytes, ProposeError>>),
}

impl<T: Serialize> Reply<T> {
    /// The entry was applied, and this is what the state machine says.
    pub(crate) fn applied(self, reply: T) {
        // In both cases the caller may have given up; that is its right.
        match self {
            Reply::Local(sender) => drop(sender.send(Ok(reply))),
            Reply::Remote(sender) => {
                let encoded = postcard::to_stdvec(&reply).map(Bytes::from).map_err(|error| {
                    ProposeError::Unknown(UnknownOutcome::BadReply(format!("it cannot be encoded: {error}")))
                });
                drop(sender.send(encoded));
            }
        }
    }
}

impl<T: Send + 'static> ProposalReply for Reply<T> {
    fn refuse(self, error: ProposeError) {
        match self {
            Reply::Local(sender) => drop(sender.send(Err(error))),
            Reply::Remote(sender) => drop(sender.send(Err(error))),
        }
    }
}

impl<T: DeserializeOwned + Send + 'static> RemoteReply for Reply<T> {
    fn deliver(self, encoded_reply: Bytes) {
        match self {
            Reply::Local(sender) => {
                let reply = postcard::from_bytes(&encoded_reply)
                    .map_err(|error| ProposeError::Unknown(UnknownOutcome::BadReply(error.to_string())));
                drop(sender.send(reply));
            }
            Reply::Remote(sender) => drop(sender.send(Ok(encoded_reply))),
        }
    }
}

/// A channel for a proposal of this process.
pub(crate) fn local_reply<T>() -> (Reply<T>, impl Future<Output = Result<T, ProposeError>>) {
    let (sender, receiver) = oneshot::channel();
    let answer = async move { receiver.await.unwrap_or(Err(ProposeError::Stopped(StopReason::Stopped))) };
    (Reply::Local(sender), answer)
}
