//! The measured layers. Each layer runs in its own process, reports its results through
//! [`Work::reporter`](crate::Work), and fails as a whole.

pub(crate) mod client;
pub(crate) mod cluster;
pub(crate) mod core;
pub(crate) mod disk;
pub(crate) mod failover;
pub(crate) mod http;
pub(crate) mod join;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod overload;
pub(crate) mod path;
pub(crate) mod read;
pub(crate) mod restart;
pub(crate) mod soak;
