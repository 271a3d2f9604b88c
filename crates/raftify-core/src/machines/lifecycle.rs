//! How the membership or the run of this node ends: by its removal, by a stop request, or by a failure.

use crate::error::StopReason;
use crate::machines::retirement::Retirement;

/// See the module.
#[derive(Default)]
pub(crate) struct Lifecycle {
    pub(crate) retirement: Retirement,
    /// The node accepts no new requests.
    is_stopping: bool,
    stop_reason: Option<StopReason>,
}

impl Lifecycle {
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    pub(crate) fn take_nothing_new(&mut self) {
        self.is_stopping = true;
    }

    /// Why this node must stop, once it must.
    pub(crate) fn stop_reason(&self) -> Option<&StopReason> {
        self.stop_reason.as_ref()
    }

    pub(crate) fn must_stop(&self) -> bool {
        self.stop_reason.is_some()
    }

    /// The first reason stays.
    pub(crate) fn set_stop_reason(&mut self, reason: StopReason) {
        self.stop_reason.get_or_insert(reason);
    }
}
