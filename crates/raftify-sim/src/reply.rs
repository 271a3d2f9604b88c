//! The reply channel of a client that proposed.

use raftify_core::error::{ProposeError, StopReason, UnknownOutcome};
use raftify_core::{LogPosition, ProposalReply};

use crate::invariants::deadlines::Waits;
use crate::store::Effect;

/// The result of a client's proposal.
pub(crate) type Proposed = Result<(LogPosition, Effect), ProposeError>;

/// The reply channel of the client that proposed.
pub struct Reply {
    deliver: Option<Box<dyn FnOnce(Proposed) + Send>>,
    /// The deadline of the node that has it.
    pub(crate) waits: Option<Waits>,
    /// It came from another node.
    pub(crate) was_forwarded: bool,
}

impl Reply {
    pub(crate) fn new(deliver: impl FnOnce(Proposed) + Send + 'static) -> Reply {
        Reply { deliver: Some(Box::new(deliver)), waits: None, was_forwarded: false }
    }

    pub(crate) fn answer(mut self, answer: Proposed) {
        if let Some(deliver) = self.deliver.take() {
            deliver(answer);
        }
    }
}

impl ProposalReply for Reply {
    fn refuse(self, error: ProposeError) {
        self.answer(Err(error));
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(deliver) = self.deliver.take() {
            deliver(Err(ProposeError::Unknown(UnknownOutcome::NodeStopped(StopReason::Stopped))));
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}
