//! (Being written.)

/// Something that a user wants to know of the state machine.
pub(crate) type Query<FSM> = Box<dyn FnOnce(&FSM) + Send>;
