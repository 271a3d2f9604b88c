//! [`WalStorage`], the contract of stable storage with the least work for each write: entries and hard state in an
//! append-only log of segments, what is rare in LMDB.
//!
//! `segment.rs` knows one file, `record.rs` the bytes of one write, `metadata.rs` keeps what is rare. `offsets.rs` says
//! where entries are; `reader.rs` reads them; `writer.rs` appends records. `recovery.rs` finds the log again after a
//! crash, `log.rs` puts writer, readers and metadata together, `storage.rs` that and the snapshots. `view.rs` looks at it
//! all beside another process. `simulation.rs` has the log on a disk in memory, for the simulator.

#[cfg(test)]
mod crash_tests;
#[cfg(feature = "testing")]
mod inner;
mod log;
mod metadata;
mod offsets;
mod reader;
mod record;
mod recovery;
mod segment;
#[cfg(any(test, feature = "simulation"))]
mod simulated_disk;
#[cfg(feature = "simulation")]
pub mod simulation;
mod storage;
#[cfg(test)]
mod tests;
mod view;
mod writer;

#[cfg(feature = "testing")]
pub use inner::encode_record;
#[cfg(feature = "testing")]
pub(crate) use inner::{read_metadata, read_record};
pub use storage::{WalLogReader, WalSettings, WalStorage};
pub(crate) use view::SegmentView;
