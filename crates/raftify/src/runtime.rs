//! The abstractions over threads, network, clock and randomness, and rate limits.

pub(crate) mod backstop;
pub(crate) mod calls;
pub(crate) mod descriptors;
pub(crate) mod disk_space;
pub(crate) mod endpoint;
pub(crate) mod log_throttle;
pub(crate) mod random;
pub(crate) mod rate_limiter;
pub(crate) mod signals;
#[cfg(feature = "simulation")]
pub mod simulation;
pub(crate) mod stall_guard;
pub(crate) mod timing;
pub(crate) mod transport;
pub(crate) mod worker;
pub(crate) mod yield_once;
