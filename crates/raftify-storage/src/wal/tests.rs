//! The contract on a real disk, damage of every kind, and a random comparison with the storage in memory.

use raftify_core::storage::conformance::{self, TestDisk};
use tempfile::TempDir;

use super::*;

/// Small segments, so that every test goes through several.
const SMALL: u64 = 4096;

struct Directory(TempDir, u64);

impl TestDisk for Directory {
    type Storage = WalStorage;

    fn open(&self) -> Result<WalStorage, StorageError> {
        WalStorage::with_segment_bytes(self.0.path(), self.1)
    }
}

#[test]
fn wal_storage_keeps_the_contract() {
    conformance::check(|| Directory(tempfile::tempdir().unwrap(), SMALL));
}
