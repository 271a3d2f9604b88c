//! The reply channels of requests. That of a proposal is typed for this node's own user, encoded for all
//! others.

use bytes::Bytes;
use raftify_core::error::{ProposeError, StopReason, UnknownOutcome};
use raftify_core::{ProposalReply, Responder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::application::encoding;
use crate::runtime::worker::caught;

/// The receiver of the state machine's reply to one proposal. Dropped without an answer, it answers that the
/// node stopped before the outcome was known.
pub(crate) enum Reply<T> {
    /// To a caller in this process.
    Local(oneshot::Sender<Result<T, ProposeError>>),
    /// To another node or a remote client, in the format of `postcard`.
    Remote(oneshot::Sender<Result<Bytes, ProposeError>>),
}

/// The reply channel for a proposal that another node answered.
pub(crate) trait RemoteReply: ProposalReply {
    /// The state machine's reply, as postcard.
    fn deliver(self, encoded_reply: Bytes);
}

/// The entry was applied, but there is no reply. The user code that produces the bytes may panic as well.
fn bad(reason: String) -> ProposeError {
    ProposeError::Unknown(UnknownOutcome::BadReply(reason))
}

impl<T: Serialize> Reply<T> {
    /// The entry was applied, and this is the state machine's reply.
    pub(crate) fn applied(self, reply: T) {
        // In both cases the caller may have dropped its receiver, which is allowed.
        match self {
            Reply::Local(sender) => drop(sender.send(Ok(reply))),
            Reply::Remote(sender) => {
                let encoded = caught(|| postcard::to_stdvec(&reply))
                    .and_then(|encoded| encoded.map_err(|error| error.to_string()))
                    .map_err(|reason| bad(format!("it cannot be encoded: {reason}")));
                drop(sender.send(encoded.map(Bytes::from)));
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
                let reply = caught(|| encoding::decode(&encoded_reply))
                    .and_then(|reply| reply.map_err(|error| error.to_string()));
                drop(sender.send(reply.map_err(bad)));
            }
            Reply::Remote(sender) => drop(sender.send(Ok(encoded_reply))),
        }
    }
}

/// A channel for any other request.
pub(crate) fn channel<T, E>() -> (Responder<T, E>, impl Future<Output = Result<T, E>>)
where
    T: Send + 'static,
    E: From<StopReason> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    // The caller may have dropped its receiver, which is allowed.
    let reply = Responder::new(move |answer| drop(sender.send(answer)));
    (reply, async move { receiver.await.unwrap_or_else(|_| Err(StopReason::Stopped.into())) })
}

/// A channel for a proposal of this process.
pub(crate) fn local_reply<T>() -> (Reply<T>, impl Future<Output = Result<T, ProposeError>>) {
    let (sender, receiver) = oneshot::channel();
    let answer = async move { receiver.await.unwrap_or_else(|_| Err(dropped())) };
    (Reply::Local(sender), answer)
}

/// The error for a dropped reply.
pub(crate) fn dropped() -> ProposeError {
    ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped))
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Panics;

    impl Serialize for Panics {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            panic!("told to")
        }
    }

    impl<'de> Deserialize<'de> for Panics {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Panics, D::Error> {
            panic!("told to")
        }
    }

    /// The encoder runs on the thread that applies entries, which continues with the next one.
    #[test]
    fn a_reply_that_panics_on_its_way_is_an_answer_of_its_own() {
        let is_bad = |answer| matches!(answer, ProposeError::Unknown(UnknownOutcome::BadReply(reason)) if reason.ends_with("panicked: told to"));
        let (sender, mut answer) = oneshot::channel();
        Reply::Remote(sender).applied(Panics);
        assert!(is_bad(answer.try_recv().unwrap().unwrap_err()));
        let (sender, mut answer) = oneshot::channel();
        Reply::<Panics>::Local(sender).deliver(Bytes::new());
        assert!(is_bad(answer.try_recv().unwrap().unwrap_err()));
    }

    #[test]
    fn a_reply_with_bytes_behind_it_is_refused() {
        let (reply, mut answer) = {
            let (sender, receiver) = oneshot::channel();
            (Reply::<u64>::Local(sender), receiver)
        };
        reply.deliver(Bytes::from_static(&[7, 0]));
        let answer = answer.try_recv().unwrap();
        assert_eq!(answer, Err(bad("1 bytes follow the value".to_owned())));
    }
}
