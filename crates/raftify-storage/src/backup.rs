//! Backups: copies the newest snapshot of a node, writes a backup that comes from elsewhere, and verifies one. A
//! backup is a snapshot file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, StorageError};

use crate::files::{LockedFile, io_error, let_writes_fail, rename_new, sync_names};
use crate::read_only::ReadOnlyStorage;
use crate::snapshot_files::{SnapshotFileReader, SnapshotStream};

#[cfg(test)]
mod tests;

/// How much is read at once.
const BUFFER_BYTES: usize = 64 << 10;

/// How many bytes are written at most before an fsync: other programs with the same disk have to wait for it.
const UNSYNCED_BYTES_MAX: u64 = 16 << 20;

/// Reads a snapshot file at any path completely, and verifies all its checksums. Returns its metadata, and
/// how many bytes of data it holds. A backup is such a file.
///
/// # Errors
/// [`StorageError::Io`] if it cannot be read; [`StorageError::Corrupt`] if it is not a snapshot file, cut off,
/// or damaged; [`StorageError::Version`] if another version wrote it.
///
/// # Examples
/// ```no_run
/// let (meta, bytes) = raftify_storage::verify_snapshot_file("cluster.backup")?;
/// println!("cluster {} up to {}: {bytes} bytes", meta.cluster_id, meta.position);
/// # Ok::<(), raftify_core::StorageError>(())
/// ```
pub fn verify_snapshot_file(path: impl AsRef<Path>) -> Result<(SnapshotMeta, u64), StorageError> {
    let path = path.as_ref();
    let (meta, announced, mut reader) = SnapshotFileReader::open_with_digest(path)?;
    let found = copy(path, &mut reader, &mut io::sink())?;
    if found != announced {
        let reason = "its data does not have the checksum that its end mark records".to_owned();
        return Err(StorageError::Corrupt { what: path.display().to_string(), reason });
    }
    Ok((meta, found.data_bytes))
}

/// Copies the newest snapshot of a directory to `file`, verifies the copy, and makes it durable: a backup.
/// Its node may run meanwhile. Returns the metadata of the snapshot, and how many bytes of data it holds.
///
/// The backup has the state up to the position of that snapshot; take one first (`make_snapshot`) to have a
/// newer state. The file is written under a temporary name beside it, and renamed when it is complete.
///
/// # Errors
/// - [`StorageError::NoSnapshot`]: the node has not taken a snapshot yet.
/// - [`StorageError::Io`] of kind `AlreadyExists`: there is such a file. It is not replaced.
/// - Otherwise as [`ReadOnlyStorage::load`] and [`verify_snapshot_file`].
///
/// # Examples
/// ```no_run
/// let (meta, bytes) = raftify_storage::copy_newest_snapshot("node-3", "cluster.backup")?;
/// println!("a backup up to {}: {bytes} bytes", meta.position);
/// # Ok::<(), raftify_core::StorageError>(())
/// ```
pub fn copy_newest_snapshot(
    directory: impl AsRef<Path>,
    file: impl AsRef<Path>,
) -> Result<(SnapshotMeta, u64), StorageError> {
    let storage = ReadOnlyStorage::open(directory)?;
    let mut from = newest_snapshot(&storage)?;
    BackupFile::open(file)?.copy_file(&mut from)
}

/// The open file of the newest snapshot, which stays readable when the node removes it.
fn newest_snapshot(storage: &ReadOnlyStorage) -> Result<File, StorageError> {
    loop {
        let position = storage.load()?.snapshot.map_or(LogPosition::ZERO, |snapshot| snapshot.position);
        let files = storage.snapshots()?;
        let Some(newest) = files.into_iter().find(|file| file.position == position) else {
            // The node has replaced it by a newer one since the metadata was read, or there is none.
            let now = storage.load()?.snapshot.map(|snapshot| snapshot.position);
            if now.is_none_or(|now| now == position) {
                return Err(StorageError::NoSnapshot { position });
            }
            continue;
        };
        match File::open(&newest.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened.map_err(io_error("open", &newest.path)),
        }
    }
}

/// Copies all data; damage is a separate error.
pub(crate) fn copy(
    path: &Path,
    reader: &mut SnapshotFileReader,
    writer: &mut dyn Write,
) -> Result<SnapshotDigest, StorageError> {
    let mut digest = SnapshotDigest::default();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(digest),
            Ok(length) => {
                digest = digest.followed_by(&buffer[..length]);
                writer.write_all(&buffer[..length]).map_err(io_error("copy", path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let (what, reason) = (path.display().to_string(), error.to_string());
                return Err(StorageError::Corrupt { what, reason });
            }
            Err(error) => return Err(io_error("read", path)(error)),
        }
    }
}

/// A backup that is being written, under a temporary name beside it: `FILE.partial`.
///
/// It gets its name when it is complete, verified and durable; a file of that name is never replaced. Dropped
/// before, it leaves `FILE.partial` behind, which [`resume`](Self::resume) continues. No second handle, and no
/// other process, can write it meanwhile. All methods block.
///
/// # Examples
/// ```no_run
/// use raftify_core::{SnapshotDigest, SnapshotMeta};
/// use raftify_storage::BackupFile;
///
/// # fn save(meta: &SnapshotMeta, data: &[u8]) -> Result<(), raftify_core::StorageError> {
/// let mut file = BackupFile::open("cluster.backup")?;
/// file.begin(meta)?;
/// file.write(data)?;
/// let (meta, bytes) = file.finish(SnapshotDigest::default().followed_by(data))?;
/// println!("a backup up to {}: {bytes} bytes", meta.position);
/// # Ok(())
/// # }
/// ```
pub struct BackupFile {
    path: PathBuf,
    partial: PathBuf,
    locked: LockedFile,
    /// The snapshot, once its header is written.
    stream: Option<(SnapshotMeta, SnapshotStream<File>)>,
    unsynced_bytes: u64,
}

impl BackupFile {
    /// Opens `FILE.partial`. What it holds is kept until [`begin`](Self::begin) is called.
    ///
    /// # Errors
    /// - [`StorageError::Io`] of kind `AlreadyExists`: there is such a file. It is not replaced.
    /// - [`StorageError::InUse`]: `FILE.partial` is being written by another process, or another handle.
    /// - Otherwise [`StorageError::Io`].
    pub fn open(file: impl AsRef<Path>) -> Result<BackupFile, StorageError> {
        let_writes_fail();
        let path = file.as_ref().to_owned();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = path.with_file_name(name);
        check_missing(&path)?;
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial);
        let opened = opened.map_err(io_error("create", &partial))?;
        let locked = match LockedFile::take(opened, partial.clone()) {
            Ok(locked) => locked,
            Err(TryLockError::WouldBlock) => return Err(StorageError::InUse { path: partial }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &partial)(source)),
        };
        // Its previous owner may have finished it between the two.
        check_missing(&path)?;
        locked.check()?;
        Ok(BackupFile { path, partial, locked, stream: None, unsynced_bytes: 0 })
    }

    /// Continues what an interrupted backup has left in `FILE.partial`: returns its snapshot, and the digest of
    /// the data up to its last valid block. `None` if there is nothing to continue: then
    /// [`begin`](Self::begin) it. Reads the whole file.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn resume(&mut self) -> Result<Option<(SnapshotMeta, SnapshotDigest)>, StorageError> {
        let resumed = self.file().and_then(SnapshotStream::resume);
        self.stream = resumed.map_err(io_error("read", &self.partial))?;
        Ok(self.stream.as_ref().map(|(meta, stream)| (meta.clone(), stream.digest())))
    }

    /// Begins the backup of this snapshot. Discards all data so far.
    ///
    /// # Errors
    /// [`StorageError::Io`].
    pub fn begin(&mut self, meta: &SnapshotMeta) -> Result<(), StorageError> {
        self.stream = None;
        let begun = self.file().and_then(|mut file| {
            file.set_len(0)?;
            file.rewind()?;
            SnapshotStream::new(file, meta)
        });
        let stream = begun.map_err(io_error("write to", &self.partial))?;
        self.stream = Some((meta.clone(), stream));
        self.unsynced_bytes = 0;
        Ok(())
    }

    /// The path of `FILE.partial`.
    pub fn partial_path(&self) -> &Path {
        &self.partial
    }

    /// The digest of the data so far.
    pub fn digest(&self) -> SnapshotDigest {
        self.stream.as_ref().map_or_else(SnapshotDigest::default, |(_, stream)| stream.digest())
    }

    /// Appends data.
    ///
    /// # Errors
    /// [`StorageError::Io`], of kind `StorageFull` if the disk is full. Nothing more can be written with this
    /// handle; another one resumes the written part.
    pub fn write(&mut self, data: &[u8]) -> Result<(), StorageError> {
        let Some((_, stream)) = &mut self.stream else { return Err(self.not_begun()) };
        self.unsynced_bytes += data.len() as u64;
        let is_due = self.unsynced_bytes >= UNSYNCED_BYTES_MAX;
        let written = stream.write_all(data).and_then(|()| if is_due { stream.sync() } else { Ok(()) });
        if is_due {
            self.unsynced_bytes = 0;
        }
        written.map_err(io_error("write to", &self.partial))
    }

    /// Makes the backup durable, reads and verifies all of it, and gives it its name. Returns the metadata of
    /// the snapshot, and how many bytes of data it holds.
    ///
    /// # Errors
    /// - [`StorageError::Corrupt`]: the data does not have the digest `announced`. `FILE.partial` is removed.
    /// - [`StorageError::Io`] of kind `AlreadyExists`: such a file was made meanwhile. It is not replaced.
    /// - Otherwise as [`verify_snapshot_file`].
    pub fn finish(mut self, announced: SnapshotDigest) -> Result<(SnapshotMeta, u64), StorageError> {
        let Some((_, stream)) = self.stream.take() else { return Err(self.not_begun()) };
        if stream.digest() != announced {
            let (found, what) = (stream.digest(), self.partial.display().to_string());
            self.discard();
            let reason = format!(
                "it has {} bytes with the checksum {:08x}, and should have {} with {:08x}",
                found.data_bytes, found.crc32c, announced.data_bytes, announced.crc32c
            );
            return Err(StorageError::Corrupt { what, reason });
        }
        let (file, _) = stream.finish().map_err(io_error("write to", &self.partial))?;
        self.publish(&file)
    }

    /// Removes `FILE.partial`.
    pub fn discard(self) {
        // What is left costs space, until it is begun again.
        let _ = fs::remove_file(&self.partial);
    }

    /// The content of another snapshot file, byte for byte.
    fn copy_file(mut self, from: &mut File) -> Result<(SnapshotMeta, u64), StorageError> {
        let copied = self.file().and_then(|mut to| {
            to.set_len(0)?;
            to.rewind()?;
            io::copy(from, &mut to)?;
            Ok(to)
        });
        let file = copied.map_err(io_error("write to", &self.partial))?;
        self.stream = None;
        self.publish(&file)
    }

    fn publish(self, file: &File) -> Result<(SnapshotMeta, u64), StorageError> {
        file.sync_all().map_err(io_error("sync", &self.partial))?;
        let verified = verify_snapshot_file(&self.partial)?;
        self.locked.check()?;
        rename_new(&self.partial, &self.path).map_err(io_error("create", &self.path))?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        sync_names(parent).map_err(io_error("sync the directory", parent))?;
        Ok(verified)
    }

    /// Another descriptor of the locked file.
    fn file(&self) -> io::Result<File> {
        self.locked.file().try_clone()
    }

    fn not_begun(&self) -> StorageError {
        io_error("write to", &self.partial)(io::Error::other("no backup was begun"))
    }
}

impl Drop for BackupFile {
    fn drop(&mut self) {
        let is_empty = self.locked.file().metadata().is_ok_and(|metadata| metadata.len() == 0);
        if is_empty && self.locked.check().is_ok() {
            // There is nothing to continue.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn check_missing(file: &Path) -> Result<(), StorageError> {
    match file.symlink_metadata() {
        Ok(_) => Err(io_error("create", file)(io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("look for", file)(error)),
    }
}
