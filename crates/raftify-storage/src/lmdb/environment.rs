//! The LMDB environment: opened with full durability, shared with readers, with a map that grows
//! automatically. Most of the `unsafe` code is here. It does not depend on the meaning of the values.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use heed::byteorder::BigEndian;
use heed::types::{Bytes, U128};
use heed::{Env, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithoutTls};
use parking_lot::RwLock;
use raftify_core::StorageError;

use super::values::Table;
use crate::files::{LockedFile, io_error, sync_names};
use crate::layout::{DATA_FILE, READERS_FILE};

/// The initial size of the map of a new database. It doubles whenever it is full.
const MAP_BYTES_INITIAL: usize = 512 << 10;

/// The directory in which a new data file is created.
const NEW: &str = "new.partial";

/// Keys are sorted as numbers: group id, then number within the group.
pub(crate) type Database = heed::Database<U128<BigEndian>, Bytes>;

/// `EIO`, on every Unix.
const UNSPECIFIC: i32 = 5;

/// An open environment with its two databases.
pub(crate) struct Environment {
    env: Env<WithoutTls>,
    entries: Database,
    meta: Database,
    directory: PathBuf,
    /// `None` if it is opened read-only. A directory made of hard links to the files of another directory
    /// has the same data file. Dropped after the environment is closed.
    data_file: Option<LockedFile>,
    readers: ReadersTable,
    /// Held shared by every transaction, exclusively while the map is resized.
    resizing: RwLock<()>,
}

/// Initializes a new database of metadata.
type Prepare<'a> = dyn Fn(&Database, &mut RwTxn<'_>) -> Result<(), Failure> + 'a;

/// Why a transaction was aborted.
pub(crate) enum Failure {
    /// LMDB returned an error.
    Heed(heed::Error),
    /// The data that was read is damaged, or the request was refused.
    Storage(StorageError),
}

impl From<heed::Error> for Failure {
    fn from(error: heed::Error) -> Failure {
        Failure::Heed(error)
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Failure {
        Failure::Storage(error)
    }
}

impl Environment {
    /// Opens the databases, and creates them if the directory is new; `prepare` initializes new ones in the
    /// same transaction.
    pub(crate) fn open(
        directory: &Path,
        prepare: impl Fn(&Database, &mut RwTxn<'_>) -> Result<(), Failure>,
    ) -> Result<Environment, StorageError> {
        // A file whose existence cannot be checked may exist.
        let is_there = |path: &Path| path.try_exists().map_err(io_error("look for", path));
        let new = directory.join(NEW);
        if is_there(&new)? {
            fs::remove_dir_all(&new).map_err(io_error("remove", &new))?;
        }
        // LMDB creates its file with a write that a crash can tear. Under its final name, the file is
        // complete or missing.
        let data_file = directory.join(DATA_FILE);
        if !is_there(&data_file)? {
            fs::create_dir(&new).map_err(io_error("create the directory", &new))?;
            drop(Environment::open_here(&new, Some(&prepare))?);
            let made = new.join(DATA_FILE);
            fs::rename(&made, &data_file).map_err(io_error("rename", &made))?;
            sync_names(directory).map_err(io_error("sync the directory", directory))?;
            fs::remove_dir_all(&new).map_err(io_error("remove", &new))?;
        }
        Environment::open_here(directory, None)
    }

    /// Creates the databases with `new`, or requires that they exist.
    fn open_here(directory: &Path, new: Option<&Prepare<'_>>) -> Result<Environment, StorageError> {
        if new.is_none() {
            check_begun(directory)?;
        }
        let data_file = lock_data_file(directory)?;
        let env = open_environment(directory, Some(MAP_BYTES_INITIAL), EnvFlags::empty())?;
        check_length(directory, &env)?;
        lengthen(&data_file, env.info().map_size)?;
        env.clear_stale_readers().map_err(|error| database_error(directory, "open", error))?;
        // The last writes of a killed process may be only in the cache of the system. From here on, the
        // storage relies on them.
        env.force_sync().map_err(|error| database_error(directory, "sync", error))?;
        let create = || -> Result<(Database, Database), Failure> {
            let mut txn = env.write_txn()?;
            let entries: Option<Database> = env.open_database(&txn, Some(Table::Entries.name()))?;
            let meta: Option<Database> = env.open_database(&txn, Some(Table::Meta.name()))?;
            let databases = match (entries, meta, new) {
                (Some(entries), Some(meta), _) => (entries, meta),
                (None, None, Some(prepare)) => {
                    let entries = env.create_database(&mut txn, Some(Table::Entries.name()))?;
                    let meta = env.create_database(&mut txn, Some(Table::Meta.name()))?;
                    prepare(&meta, &mut txn)?;
                    (entries, meta)
                }
                (None, None, None) => return Err(empty(directory).into()),
                _ => return Err(half_there(directory).into()),
            };
            txn.commit()?;
            Ok(databases)
        };
        let (entries, meta) = create().map_err(|failure| storage_error(directory, "open", failure))?;
        Ok(Environment {
            env,
            entries,
            meta,
            directory: directory.to_owned(),
            data_file: Some(data_file),
            readers: ReadersTable::of(directory),
            resizing: RwLock::new(()),
        })
    }

    /// Opens the databases without ever writing to them, while another process may write. It changes only
    /// LMDB's table of readers, `lock.mdb`, which keeps the writer from reusing pages that are being
    /// read.
    pub(crate) fn open_read_only(directory: &Path) -> Result<Environment, StorageError> {
        let data_file = directory.join(DATA_FILE);
        fs::metadata(&data_file).map_err(io_error("open", &data_file))?;
        let env = open_environment(directory, None, EnvFlags::READ_ONLY)?;
        check_length(directory, &env)?;
        let open = || -> Result<(Option<Database>, Option<Database>), Failure> {
            let txn = read_txn(&env)?;
            let entries = env.open_database(&txn, Some(Table::Entries.name()))?;
            let meta = env.open_database(&txn, Some(Table::Meta.name()))?;
            txn.commit()?;
            Ok((entries, meta))
        };
        match open().map_err(|failure| storage_error(directory, "open", failure))? {
            (Some(entries), Some(meta)) => Ok(Environment {
                env,
                entries,
                meta,
                directory: directory.to_owned(),
                data_file: None,
                readers: ReadersTable::of(directory),
                resizing: RwLock::new(()),
            }),
            (None, None) => Err(StorageError::Database {
                action: "read",
                path: directory.to_owned(),
                reason: "nothing was ever written to it by raftify".to_owned(),
            }),
            _ => Err(half_there(directory)),
        }
    }

    /// Checks that the name still leads to the data file: otherwise writes to it are lost at the next start.
    ///
    /// # Errors
    /// [`StorageError::Replaced`] if it does not.
    pub(crate) fn check(&self) -> Result<(), StorageError> {
        self.readers.check();
        self.data_file.as_ref().map_or(Ok(()), LockedFile::check)
    }

    /// The file with all the data, for messages.
    pub(crate) fn data_file(&self) -> PathBuf {
        self.directory.join(DATA_FILE)
    }

    pub(crate) fn table(&self, table: Table) -> &Database {
        match table {
            Table::Entries => &self.entries,
            Table::Meta => &self.meta,
        }
    }

    /// Reads one consistent state.
    pub(crate) fn read<T>(
        &self,
        read: impl Fn(&RoTxn<'_, WithoutTls>) -> Result<T, Failure>,
    ) -> Result<T, StorageError> {
        loop {
            let shared = self.resizing.read();
            let result = read_txn(&self.env).map_err(Failure::Heed).and_then(|txn| read(&txn));
            drop(shared);
            match result {
                // The writer, in another process, has grown the map.
                Err(Failure::Heed(heed::Error::Mdb(MdbError::MapResized))) => self.resize(Some(0))?,
                result => return result.map_err(|failure| storage_error(&self.directory, "read", failure)),
            }
        }
    }

    /// Carries out `write` in one transaction that is durable when this returns. Calls it again from the
    /// start if the map was full.
    pub(crate) fn write<T>(
        &self,
        write: impl Fn(&mut RwTxn<'_>) -> Result<T, Failure>,
    ) -> Result<T, StorageError> {
        self.check()?;
        let attempt = || -> Result<T, Failure> {
            let _shared = self.resizing.read();
            let mut txn = self.env.write_txn()?;
            let value = write(&mut txn)?;
            txn.commit()?;
            Ok(value)
        };
        loop {
            match attempt() {
                Err(Failure::Heed(heed::Error::Mdb(MdbError::MapFull))) => {
                    let cleared = self.env.clear_stale_readers();
                    // Pages that readers only seemed to need are recyclable now.
                    if cleared.map_err(|error| database_error(&self.directory, "write to", error))? == 0 {
                        self.resize(None)?;
                    }
                }
                // If only a part of a page fits, LMDB returns only an unspecific error.
                Err(Failure::Heed(heed::Error::Io(source))) if source.raw_os_error() == Some(UNSPECIFIC) => {
                    let source = no_room(&self.directory).unwrap_or(source);
                    return Err(io_error("write to", &self.directory)(source));
                }
                result => {
                    return result.map_err(|failure| storage_error(&self.directory, "write to", failure));
                }
            }
        }
    }

    /// Resizes the map to `bytes`, where zero means the size in the file; `None` doubles it.
    #[allow(
        unsafe_code,
        reason = "LMDB cannot check by itself that no transaction is open while the map moves"
    )]
    fn resize(&self, bytes: Option<usize>) -> Result<(), StorageError> {
        let _exclusive = self.resizing.write();
        let bytes = match bytes {
            Some(bytes) => bytes,
            None => {
                let bytes = self.env.info().map_size.checked_mul(2).ok_or_else(|| {
                    let reason = "it fills the address space".to_owned();
                    StorageError::Database { action: "enlarge", path: self.directory.clone(), reason }
                })?;
                if let Some(data_file) = &self.data_file {
                    lengthen(data_file, bytes)?;
                }
                bytes
            }
        };
        tracing::debug!(directory = %self.directory.display(), bytes, "the map of the database grows");
        // SAFETY: no transaction of this process may be open. They live only inside `read` and `write`, under
        // the shared half of the lock that is held exclusively here, and in the functions that open
        // the environment, which have returned. Other processes have maps of their own.
        unsafe { self.env.resize(bytes) }.map_err(|error| database_error(&self.directory, "enlarge", error))
    }
}

/// Opens LMDB with its default, full durability: with none of the flags that trade it for speed.
#[allow(unsafe_code, reason = "a memory map is only sound while nobody else changes the file")]
fn open_environment(
    directory: &Path,
    map_bytes: Option<usize>,
    flags: EnvFlags,
) -> Result<Env<WithoutTls>, StorageError> {
    let mut options = EnvOpenOptions::new().read_txn_without_tls();
    options.max_dbs(2);
    if let Some(bytes) = map_bytes {
        options.map_size(bytes);
    }
    // SAFETY: the only flag ever given is `READ_ONLY`, which is none of the unsafe ones. The file is changed
    // through LMDB alone, whose lock file keeps readers and the writer apart; a second writer is kept out
    // by `DirectoryLock`, and a second environment of one process by heed. Keeping other programs from
    // writing into the file is up to the operator, as for any database.
    let opened = unsafe { options.flags(flags).open(directory) };
    opened.map_err(|error| database_error(directory, "open", error))
}

/// Begins to read. A process that was killed while it read never released its slot in the table of readers:
/// when the table is full, such slots are cleared.
fn read_txn(env: &Env<WithoutTls>) -> heed::Result<RoTxn<'_, WithoutTls>> {
    match env.read_txn() {
        Err(heed::Error::Mdb(MdbError::ReadersFull)) => {
            env.clear_stale_readers()?;
            env.read_txn()
        }
        begun => begun,
    }
}

/// Makes the file at least as long as the map; the added part takes no space before it is written.
///
/// LMDB allocates page numbers that it releases in the same transaction and never writes, so that its file
/// may end before the last page that it counts. A truncated file would look the same.
fn lengthen(data_file: &LockedFile, map_bytes: usize) -> Result<(), StorageError> {
    let (file, path) = (data_file.file(), data_file.path());
    if file.metadata().map_err(io_error("open", path))?.len() < map_bytes as u64 {
        file.set_len(map_bytes as u64).and_then(|()| file.sync_all()).map_err(io_error("write to", path))?;
    }
    Ok(())
}

/// Excludes other processes that have the same file under another name.
fn lock_data_file(directory: &Path) -> Result<LockedFile, StorageError> {
    let path = directory.join(DATA_FILE);
    let mut options = File::options();
    // LMDB initializes a new file, because it is empty.
    options.read(true).write(true).create(true).truncate(false);
    let file = options.open(&path).map_err(io_error("open", &path))?;
    LockedFile::take(file, path.clone()).map_err(|error| match error {
        TryLockError::WouldBlock => StorageError::InUse { path: directory.to_owned() },
        TryLockError::Error(source) => io_error("lock", &path)(source),
    })
}

/// LMDB's table of readers and the pages that they read. Without it, pages may be overwritten while they are
/// read; writes stay correct.
struct ReadersTable {
    path: PathBuf,
    /// LMDB has the file open, so that no other file gets this number meanwhile.
    #[cfg(unix)]
    file: Option<(u64, u64)>,
    is_missed: AtomicBool,
}

impl ReadersTable {
    fn of(directory: &Path) -> ReadersTable {
        let path = directory.join(READERS_FILE);
        ReadersTable {
            #[cfg(unix)]
            file: device_and_number(&path),
            path,
            is_missed: AtomicBool::new(false),
        }
    }

    /// Warns once if the file is missing.
    #[cfg(unix)]
    fn check(&self) {
        if device_and_number(&self.path) != self.file && !self.is_missed.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::warn!(
                %path,
                "the database's table of readers was removed or replaced: do not look at this directory with \
                 `raftify-cli describe` before the node was started again"
            );
        }
    }

    #[cfg(not(unix))]
    fn check(&self) {}
}

#[cfg(unix)]
fn device_and_number(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// LMDB maps the file, and the process would die of a bus error on missing pages. [`lengthen`] was called
/// before each counted page.
fn check_length(directory: &Path, env: &Env<WithoutTls>) -> Result<(), StorageError> {
    let path = directory.join(DATA_FILE);
    let expected = (env.info().last_page_number as u64 + 1) * u64::from(env.stat().page_size);
    let found = fs::metadata(&path).map_err(io_error("open", &path))?.len();
    if found < expected {
        let reason = format!("it has {found} bytes, but its own record says {expected}");
        return Err(StorageError::Corrupt { what: path.display().to_string(), reason });
    }
    Ok(())
}

/// The error of a full disk, or of an exhausted quota, if the disk of `directory` reports one.
fn no_room(directory: &Path) -> Option<io::Error> {
    // Less than this was left: LMDB could not write this much, or it writes more at once.
    let pages = vec![0; 64 << 10];
    let path = directory.join("room.partial");
    let error = fs::write(&path, pages).err();
    // If the file stays, it is empty and is overwritten the next time.
    let _ = fs::remove_file(&path);
    error.filter(|error| matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}

/// LMDB would begin a new database in an empty file.
fn check_begun(directory: &Path) -> Result<(), StorageError> {
    let path = directory.join(DATA_FILE);
    match fs::metadata(&path).map_err(io_error("open", &path))?.len() {
        0 => Err(empty(directory)),
        _ => Ok(()),
    }
}

/// A data file gets its name only with its databases in it.
fn empty(directory: &Path) -> StorageError {
    let what = directory.join(DATA_FILE).display().to_string();
    StorageError::Corrupt { what, reason: "its two databases are gone".to_owned() }
}

fn half_there(directory: &Path) -> StorageError {
    let what = directory.join(DATA_FILE).display().to_string();
    StorageError::Corrupt { what, reason: "of its two databases, only one is there".to_owned() }
}

fn storage_error(directory: &Path, action: &'static str, failure: Failure) -> StorageError {
    match failure {
        Failure::Heed(error) => database_error(directory, action, error),
        Failure::Storage(error) => error,
    }
}

fn database_error(directory: &Path, action: &'static str, error: heed::Error) -> StorageError {
    let path = directory.to_owned();
    match error {
        heed::Error::Io(source) => StorageError::Io { action, path, source },
        heed::Error::EnvAlreadyOpened => StorageError::InUse { path },
        heed::Error::Mdb(error @ (MdbError::Corrupted | MdbError::PageNotFound | MdbError::Invalid)) => {
            let what = directory.join(DATA_FILE).display().to_string();
            StorageError::Corrupt { what, reason: error.to_string() }
        }
        heed::Error::Mdb(error) => StorageError::Database { action, path, reason: error.to_string() },
        // A key that is not a number of this width: only a damaged page has one.
        heed::Error::Encoding(error) | heed::Error::Decoding(error) => {
            let what = directory.join(DATA_FILE).display().to_string();
            StorageError::Corrupt { what, reason: io::Error::other(error).to_string() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{self, Command};

    use super::*;

    const DIRECTORY: &str = "RAFTIFY_STORAGE_TEST_DIRECTORY";

    fn open(directory: &Path) -> Environment {
        Environment::open(directory, |_, _| Ok(())).unwrap()
    }

    /// Runs `test` in a separate process, which must call [`die_reading`].
    fn let_readers_die(test: &str, directory: &Path) {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", &format!("lmdb::environment::tests::{test}"), "--nocapture"]);
        let output = child.env(DIRECTORY, directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// In the child, takes all slots in the table of readers, and never releases them.
    fn die_reading() {
        if let Some(directory) = std::env::var_os(DIRECTORY) {
            hold_all(&Environment::open_read_only(directory.as_ref()).unwrap(), 0);
        }
    }

    fn hold_all(environment: &Environment, held: i32) {
        let read = environment.read(|_| {
            hold_all(environment, held + 1);
            Ok(())
        });
        assert!(read.is_err() && held > 1, "the table of readers is not full with {held}");
        process::exit(0);
    }

    #[test]
    fn killed_readers_do_not_block_later_readers() {
        die_reading();
        let directory = tempfile::tempdir().unwrap();
        let environment = open(directory.path());
        // The second finds the table full already.
        for _ in 0..2 {
            let_readers_die("killed_readers_do_not_block_later_readers", directory.path());
        }
        environment.read(|_| Ok(())).unwrap();
    }

    #[test]
    fn readers_that_were_killed_do_not_let_the_map_grow() {
        die_reading();
        let directory = tempfile::tempdir().unwrap();
        let environment = open(directory.path());
        let overwrite = || {
            let put = |txn: &mut RwTxn<'_>| Ok(environment.table(Table::Meta).put(txn, &0, &[1; 50_000])?);
            environment.write(put).unwrap();
        };
        overwrite();
        let_readers_die("readers_that_were_killed_do_not_let_the_map_grow", directory.path());
        for _ in 0..50 {
            overwrite();
        }
        assert_eq!(environment.env.info().map_size, MAP_BYTES_INITIAL);
    }
}
