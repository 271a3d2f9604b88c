//! Operations on names that fail from one on, for tests of interruptions.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::files::{NameOperations, OperatingSystem};

/// Fails from one operation on.
pub(crate) struct FailsFrom {
    operation: usize,
    done: AtomicUsize,
}

impl FailsFrom {
    pub(crate) fn new(operation: usize) -> FailsFrom {
        FailsFrom { operation, done: AtomicUsize::new(0) }
    }

    fn step(&self) -> io::Result<()> {
        let done = self.done.fetch_add(1, Ordering::Relaxed);
        if done >= self.operation { Err(io::Error::other("interrupted")) } else { Ok(()) }
    }
}

impl NameOperations for FailsFrom {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        OperatingSystem.rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OperatingSystem.sync_directory(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        OperatingSystem.remove(path)
    }
}
