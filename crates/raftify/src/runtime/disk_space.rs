//! The space of a file system.

use std::path::Path;

/// In bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskSpace {
    /// For this process: without the reserve of the superuser.
    pub(crate) free: u64,
    pub(crate) size: u64,
}

impl DiskSpace {
    /// That of the file system which contains `path`. `None` if the system does not say. May block, as any
    /// operation on a disk.
    #[cfg(unix)]
    pub(crate) fn of(path: &Path) -> Option<DiskSpace> {
        let found = rustix::fs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Some(DiskSpace { free: bytes(found.f_bavail), size: bytes(found.f_blocks) })
    }

    /// This system is not asked.
    #[cfg(not(unix))]
    pub(crate) fn of(_: &Path) -> Option<DiskSpace> {
        None
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_free_space_is_a_part_of_the_size() {
        let space = DiskSpace::of(&std::env::temp_dir()).unwrap();
        assert!(space.size > 0 && space.free <= space.size);
        assert!(DiskSpace::of(Path::new("/there is nothing here")).is_none());
    }
}
