//! Snapshots that are sets of files: a directory as one stream, and back.
//!
//! For state machines that keep their state on disk. The stream is a tar archive of regular files and
//! directories. Unpacking validates every name, since the stream comes from another node.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Builder, EntryType, HeaderMode};
use tracing::warn;

use crate::application::snapshot::Snapshot;
use crate::error::BoxError;

/// The maximum number of bytes written before a sync: each sync of a log on the same disk would have to wait
/// for all unsynced bytes.
const UNSYNCED_BYTES_MAX: u64 = 4 << 20;

impl Snapshot {
    /// A directory whose files no longer change, such as a checkpoint of a database, or hard links to files
    /// that are only ever replaced. The directory is written as one stream and then removed, also if the
    /// write fails or the node stops meanwhile. Subdirectories are included; any other entry than a file
    /// or a directory is an error, and no snapshot is taken. Names must be UTF-8.
    ///
    /// A killed process leaves the directory behind: create it in a location that the state machine cleans up
    /// when it starts. [`read_directory`](Self::read_directory) is the inverse.
    pub fn from_directory(path: impl Into<PathBuf>) -> Snapshot {
        let directory = Removed(path.into());
        Snapshot::new(move |writer| {
            let mut archive = Builder::new(writer);
            archive.mode(HeaderMode::Deterministic);
            archive.sparse(false);
            append(&mut archive, &directory.0, Path::new(""))?;
            archive.finish()?;
            Ok(())
        })
    }

    /// Unpacks a stream of [`from_directory`](Self::from_directory) into a new directory at `path`. When the
    /// call returns, the content and the name of the directory are durable: the state machine can switch
    /// to it by a rename.
    ///
    /// ```
    /// use std::fs;
    /// use raftify::Snapshot;
    ///
    /// let place = tempfile::tempdir()?;
    /// let checkpoint = place.path().join("checkpoint");
    /// fs::create_dir_all(checkpoint.join("tables"))?;
    /// fs::write(checkpoint.join("tables/1"), "one")?;
    ///
    /// let mut bytes = Vec::new();
    /// Snapshot::from_directory(&checkpoint).write_to(&mut bytes)?;
    /// assert!(!checkpoint.exists());
    ///
    /// let restored = place.path().join("restored");
    /// Snapshot::read_directory(&mut bytes.as_slice(), &restored)?;
    /// assert_eq!(fs::read_to_string(restored.join("tables/1"))?, "one");
    /// # Ok::<(), raftify::BoxError>(())
    /// ```
    ///
    /// # Errors
    /// An error if `path` exists; errors of the reader and of the file system; an error if the stream
    /// contains anything but files and directories with plain names below `path`. Nothing is left at
    /// `path` then.
    pub fn read_directory(reader: &mut dyn Read, path: impl AsRef<Path>) -> Result<(), BoxError> {
        let path = path.as_ref();
        fs::create_dir(path).map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        let unpacked = unpack(reader, path);
        if unpacked.is_err() {
            drop(Removed(path.to_owned()));
        }
        unpacked
    }
}

/// A directory that is removed on drop.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(path = %self.0.display(), %error, "the captured directory could not be removed");
        }
    }
}

/// Adds the content of `directory` under `name`, in the order of the names.
fn append(archive: &mut Builder<&mut dyn Write>, directory: &Path, name: &Path) -> Result<(), BoxError> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        if name.to_str().is_none() {
            return Err(format!("the name of {} is not UTF-8", path.display()).into());
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            archive.append_dir(&name, &path)?;
            append(archive, &path, &name)?;
        } else if kind.is_file() {
            archive.append_file(&name, &mut File::open(&path)?)?;
        } else {
            return Err(format!("{} is neither a file nor a directory", path.display()).into());
        }
    }
    Ok(())
}

fn unpack(reader: &mut dyn Read, path: &Path) -> Result<(), BoxError> {
    let mut directories = vec![path.to_owned()];
    let mut archive = Archive::new(&mut *reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        if name.as_os_str().is_empty() || !name.components().all(is_plain) {
            return Err(format!("the snapshot holds {name:?}, which is no name below its directory").into());
        }
        let target = path.join(&name);
        match entry.header().entry_type() {
            EntryType::Directory => {
                fs::create_dir(&target)?;
                directories.push(target);
            }
            EntryType::Regular => write_file(&mut entry, &target)?,
            other => return Err(format!("the snapshot holds {name:?}, which is of type {other:?}").into()),
        }
    }
    // Only the end of the stream shows that the stream is complete.
    io::copy(reader, &mut io::sink())?;
    directories.iter().rev().try_for_each(|directory| sync_directory(directory))?;
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent)?,
        _ => sync_directory(Path::new("."))?,
    }
    Ok(())
}

fn write_file(content: &mut impl Read, path: &Path) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    while io::copy(&mut content.by_ref().take(UNSYNCED_BYTES_MAX), &mut file)? == UNSYNCED_BYTES_MAX {
        file.sync_data()?;
    }
    file.sync_all()
}

#[cfg(unix)]
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Only Unix can sync a directory.
#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn archive(directory: &Path) -> Result<Vec<u8>, BoxError> {
        let mut bytes = Vec::new();
        Snapshot::from_directory(directory).write_to(&mut bytes)?;
        Ok(bytes)
    }

    fn place() -> (TempDir, PathBuf, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir(&from).unwrap();
        (place, from, to)
    }

    #[test]
    fn a_directory_comes_back_with_all_its_files_and_the_captured_one_is_gone() {
        let (_place, from, to) = place();
        let long = "x".repeat(150);
        let files =
            [("a", 0), ("b/c/d", 1), ("b/e", 9 << 20), (long.as_str(), 511), ("b/f", 512), ("ö", 513)];
        let data = |bytes: usize| (0..bytes).map(|at| (at % 251) as u8).collect::<Vec<u8>>();
        fs::create_dir_all(from.join("b/c")).unwrap();
        fs::create_dir(from.join("empty")).unwrap();
        for (name, bytes) in files {
            fs::write(from.join(name), data(bytes)).unwrap();
        }
        let bytes = archive(&from).unwrap();
        assert!(!from.exists());
        Snapshot::read_directory(&mut bytes.as_slice(), &to).unwrap();
        for (name, bytes) in files {
            assert!(fs::read(to.join(name)).unwrap() == data(bytes), "{name}");
        }
        assert_eq!(fs::read_dir(to.join("empty")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_is_not_written_out_is_removed_all_the_same() {
        let (_place, from, _) = place();
        fs::write(from.join("file"), "content").unwrap();
        drop(Snapshot::from_directory(&from));
        assert!(!from.exists());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused_when_a_directory_is_captured() {
        let (_place, from, _) = place();
        std::os::unix::fs::symlink("/etc/passwd", from.join("link")).unwrap();
        let error = archive(&from).unwrap_err().to_string();
        assert!(error.contains("neither a file nor a directory"), "{error}");
    }

    #[test]
    fn nothing_is_unpacked_over_what_is_there() {
        let (_place, from, to) = place();
        let bytes = archive(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("precious"), "content").unwrap();
        Snapshot::read_directory(&mut bytes.as_slice(), &to).unwrap_err();
        assert!(to.join("precious").exists());
    }

    /// A stream with one entry of this name and type. The name is written as it is: the tar crate rejects
    /// such names.
    fn hostile(name: &str, kind: EntryType) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        if matches!(kind, EntryType::Symlink | EntryType::Link) {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        let mut builder = Builder::new(Vec::new());
        builder.append(&header, io::empty()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn names_and_types_that_lead_out_of_the_directory_are_refused_and_nothing_is_left() {
        let cases = [
            ("../out", EntryType::Regular),
            ("a/../../out", EntryType::Regular),
            ("/tmp/out", EntryType::Regular),
            ("./out", EntryType::Regular),
            ("", EntryType::Regular),
            ("..", EntryType::Directory),
            ("link", EntryType::Symlink),
            ("link", EntryType::Link),
            ("pipe", EntryType::Fifo),
            ("device", EntryType::Block),
        ];
        for (name, kind) in cases {
            let (place, _, to) = place();
            let error = Snapshot::read_directory(&mut hostile(name, kind).as_slice(), &to).unwrap_err();
            assert!(error.to_string().contains("the snapshot holds"), "{name:?}, {kind:?}: {error}");
            assert!(!to.exists() && !place.path().join("out").exists(), "{name:?}, {kind:?}");
        }
    }

    #[test]
    fn a_stream_that_breaks_off_or_makes_no_sense_leaves_nothing() {
        let (_place, from, to) = place();
        fs::write(from.join("file"), vec![7; 100_000]).unwrap();
        let whole = archive(&from).unwrap();
        for length in [1, 511, 600, 50_000] {
            Snapshot::read_directory(&mut &whole[..length], &to).unwrap_err();
            assert!(!to.exists(), "cut after {length} bytes");
        }
        Snapshot::read_directory(&mut [0x5a_u8; 4096].as_slice(), &to).unwrap_err();
        assert!(!to.exists());
    }
}
