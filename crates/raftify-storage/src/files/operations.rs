//! The file operations that make snapshots and the segment log durable, as an interface: tests record their
//! order, cut power after each one, and let each one fail.

use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::names;

/// Operations on names.
pub(crate) trait NameOperations: Send + Sync + 'static {
    /// Renames a file atomically, and replaces a file that has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;

    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// Operations for snapshots.
pub(crate) trait FileOperations: NameOperations {
    /// Creates a new, empty file.
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>>;

    /// Opens a file to be continued after its first `length_bytes`. The bytes after them are truncated.
    fn append(&self, path: &Path, length_bytes: u64) -> io::Result<Box<dyn NewFile>>;
}

/// A file that is being written.
pub(crate) trait NewFile: Write + Send {
    /// Makes the content durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// Work to be done once.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// Operations for the segment log.
pub(crate) trait SegmentOperations: NameOperations {
    /// Creates a new, empty file.
    fn create_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;

    /// Opens a file for reading and writing.
    fn open_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;

    /// Opens a file for reading.
    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>>;

    /// The paths in a directory, in any order.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;

    /// A random number.
    fn random(&self) -> u64 {
        RandomState::new().hash_one(())
    }

    /// Starts `work` in the background. The returned work waits until it is done.
    fn spawn(&self, work: Work) -> io::Result<Work>;
}

/// A file that is written and read at any offset, and from any thread.
pub(crate) trait SegmentFile: Send + Sync {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()>;

    fn length_bytes(&self) -> io::Result<u64>;

    /// Makes the content durable, and the length as far as it is needed to read the content.
    fn sync(&self) -> io::Result<()>;

    /// Whether `path` leads to this file.
    fn is_at(&self, path: &Path) -> io::Result<bool>;
}

/// The operations of the operating system.
pub(crate) struct OperatingSystem;

impl NameOperations for OperatingSystem {
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        names::sync_names(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

impl FileOperations for OperatingSystem {
    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        Ok(Box::new(File::create_new(path)?))
    }

    fn append(&self, path: &Path, length_bytes: u64) -> io::Result<Box<dyn NewFile>> {
        let mut file = File::options().write(true).open(path)?;
        file.set_len(length_bytes)?;
        file.seek(SeekFrom::Start(length_bytes))?;
        Ok(Box::new(file))
    }
}

impl NewFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl SegmentOperations for OperatingSystem {
    fn create_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File::options().read(true).write(true).create_new(true).open(path)?))
    }

    fn open_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File::options().read(true).write(true).open(path)?))
    }

    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn spawn(&self, work: Work) -> io::Result<Work> {
        let thread = std::thread::Builder::new().name("raftify-segments".to_owned()).spawn(work)?;
        // If the work panics, there is no result.
        Ok(Box::new(move || drop(thread.join())))
    }
}

/// The operations of the operating system that change no file.
pub(crate) struct ReadOnlySystem;

/// A directory that is open for reading only is not changed: a caller that tries to has a bug.
fn refused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the directory is open for reading only"))
}

impl NameOperations for ReadOnlySystem {
    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _path: &Path) -> io::Result<()> {
        refused()
    }
}

impl SegmentOperations for ReadOnlySystem {
    fn create_segment(&self, _path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        refused()
    }

    fn open_segment(&self, _path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        refused()
    }

    fn read_segment(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        OperatingSystem.read_segment(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        match OperatingSystem.list(directory) {
            // A node is about to create it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result,
        }
    }

    fn spawn(&self, _work: Work) -> io::Result<Work> {
        refused()
    }
}

impl SegmentFile for File {
    #[cfg(unix)]
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, data, offset)
    }

    #[cfg(unix)]
    fn read_exact_at(&self, data: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, data, offset)
    }

    #[cfg(windows)]
    fn write_all_at(&self, mut data: &[u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let written = std::os::windows::fs::FileExt::seek_write(self, data, offset)?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            data = &data[written..];
            offset += written as u64;
        }
        Ok(())
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut data: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !data.is_empty() {
            let read = std::os::windows::fs::FileExt::seek_read(self, data, offset)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            data = &mut data[read..];
            offset += read as u64;
        }
        Ok(())
    }

    fn length_bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn is_at(&self, path: &Path) -> io::Result<bool> {
        names::leads_to(path, self)
    }
}
