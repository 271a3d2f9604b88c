//! [`WalStorage`], which implements the contract of stable storage with the least work for each write:
//! entries and hard state in an append-only log of segments, rarely written data in LMDB.
//!
//! `segment.rs` handles one file, `record.rs` the bytes of one write, `metadata.rs` the rarely written data.
//! `offsets.rs` has the offsets of entries; `reader.rs` reads entries; `writer.rs` appends records.
//! `recovery.rs` recovers the log after a crash, `log.rs` combines writer, readers and metadata, `storage.rs`
//! combines these with the snapshots. `view.rs` reads all of it while another process writes it,
//! `inspect.rs` checks all of it while no process does.
//! `simulation.rs` has the log on a disk in memory, for the simulator.

#[cfg(test)]
mod crash_tests;
#[cfg(feature = "testing")]
mod inner;
mod inspect;
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
pub(crate) use inspect::inspect;
pub(crate) use metadata::{LogStart, Metadata};
pub use storage::{WalLogReader, WalSettings, WalStorage};
pub(crate) use view::SegmentView;
