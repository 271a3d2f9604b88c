//! Records what is asked of the system below some directories, by whomever in this process: our code, Rust's
//! standard library, and LMDB, which is C.
//!
//! The functions of the C library that change files are defined here once more. The linker prefers those of
//! the program to those of a library, so that all callers in it get these; they pass the call on to the
//! kernel, and put it down if it succeeded. What LMDB changes through a map of memory (its lock file, which
//! means nothing after a crash) is not seen; that nothing else bypasses the recorder is checked at the end of
//! each recording, byte for byte.

#![allow(unsafe_code, reason = "whoever stands in for the C library gets its raw pointers")]

use std::collections::HashMap;
use std::ffi::{CStr, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{AT_FDCWD, c_char, c_int, c_long, c_uint, c_void, iovec, mode_t, off_t, size_t, ssize_t};

use super::disk::{Image, Node, Operation, Place, ROOT};

/// One directory, and what happened below it.
#[derive(Default)]
pub(crate) struct Recording {
    root: PathBuf,
    pub(crate) begin: Image,
    /// What is there now, as it follows from the journal.
    pub(crate) live: Image,
    pub(crate) journal: Vec<Operation>,
}

static RECORDER: Mutex<Option<Recorder>> = Mutex::new(None);

struct Recorder {
    recording: Recording,
    /// Open files and directories below the root, and whether each write to them is synced at once.
    open: HashMap<c_int, (Node, bool)>,
}

fn recorder() -> MutexGuard<'static, Option<Recorder>> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Records what happens in `root`, which holds `begin`, from now on until [`stop`].
pub(crate) fn start(root: &Path, begin: Image) {
    let recording = Recording { root: root.to_owned(), live: begin.clone(), begin, journal: Vec::new() };
    *recorder() = Some(Recorder { recording, open: HashMap::new() });
}

/// How much has been recorded.
pub(crate) fn length() -> usize {
    recorder().as_ref().map_or(0, |recorder| recorder.recording.journal.len())
}

pub(crate) fn stop() -> Recording {
    recorder().take().expect("`start` comes before `stop`").recording
}

impl Recorder {
    /// The directory and the name of a path, if it is below the root; `None` for the name of the root itself.
    fn find(&self, directory: c_int, path: &Path) -> Option<(usize, Option<OsString>)> {
        let (mut at, path) = if path.is_absolute() || directory == AT_FDCWD {
            (ROOT, path.strip_prefix(&self.recording.root).ok()?)
        } else {
            match self.open.get(&directory)? {
                (Node::Directory(directory), _) => (*directory, path),
                (Node::File(_), _) => return None,
            }
        };
        let mut names: Vec<&OsStr> = path
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
            .collect();
        let last = names.pop();
        for name in names {
            match self.recording.live.names.get(&(at, name.to_owned()))? {
                Node::Directory(inner) => at = *inner,
                Node::File(_) => return None,
            }
        }
        Some((at, last.map(OsStr::to_owned)))
    }

    fn place(&self, directory: c_int, path: &Path) -> Option<Place> {
        self.find(directory, path).and_then(|(directory, name)| Some((directory, name?)))
    }

    fn record(&mut self, operation: Operation) {
        self.recording.live.carry_out(&operation);
        self.recording.journal.push(operation);
    }

    fn opened(&mut self, descriptor: c_int, directory: c_int, path: &Path, flags: c_int) {
        // It may have been closed inside of the C library.
        self.open.remove(&descriptor);
        let node = match self.find(directory, path) {
            None => return,
            Some((directory, None)) => Node::Directory(directory),
            Some((directory, Some(name))) => {
                match self.recording.live.names.get(&(directory, name.clone())) {
                    Some(node) => *node,
                    None => {
                        let node = Node::File(self.recording.live.files.len());
                        self.record(Operation::Names { gone: None, come: Some(((directory, name), node)) });
                        node
                    }
                }
            }
        };
        if let Node::File(file) = node
            && flags & libc::O_TRUNC != 0
        {
            self.record(Operation::SetLength { file, length: 0 });
        }
        self.open.insert(descriptor, (node, flags & libc::O_DSYNC != 0));
    }

    fn closed(&mut self, descriptor: c_int) {
        self.open.remove(&descriptor);
    }

    fn wrote(&mut self, descriptor: c_int, offset: off_t, data: Vec<u8>) {
        if let Some((Node::File(file), synced)) = self.open.get(&descriptor).copied() {
            self.record(Operation::Write { file, offset: offset as u64, data, synced });
        }
    }

    fn synced(&mut self, descriptor: c_int) {
        match self.open.get(&descriptor) {
            Some((Node::File(file), _)) => self.record(Operation::SyncFile(*file)),
            Some((Node::Directory(directory), _)) => self.record(Operation::SyncDirectory(*directory)),
            None => {}
        }
    }

    fn renamed(&mut self, from: Option<Place>, to: Option<Place>) {
        let node = from.as_ref().and_then(|from| self.recording.live.names.get(from).copied());
        if let (Some(node), Some(to)) = (node, to) {
            self.record(Operation::Names { gone: from, come: Some((to, node)) });
        }
    }
}

/// Calls the kernel, and has it put down if it succeeded: nobody else comes between.
fn call(system: impl FnOnce() -> c_long, record: impl FnOnce(&mut Recorder, c_long)) -> c_long {
    let mut recorder = recorder();
    let result = system();
    if result >= 0
        && let Some(recorder) = recorder.as_mut()
    {
        record(recorder, result);
    }
    result
}

/// # Safety
/// It is a path as the C library takes it.
unsafe fn path<'p>(path: *const c_char) -> &'p Path {
    // SAFETY: as the caller promises.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// Defines functions of the C library.
macro_rules! instead {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty $body:block)*) => {
        $(
            $(#[$doc])*
            /// # Safety
            /// As for the function of the C library.
            #[allow(clippy::unnecessary_cast, reason = "some call each other, some the kernel")]
            #[unsafe(no_mangle)]
            pub(crate) unsafe extern "C" fn $name($($argument: $kind),*) -> $result {
                // SAFETY: the caller keeps to the contract of the function, and its arguments are passed on as they are.
                unsafe {
                    let result = $body;
                    result as $result
                }
            }
        )*
    };
}

instead! {
    // The mode is there if a file may be made, and passed on, whatever it is, if not: the kernel looks at it as seldom.
    fn open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int { openat(AT_FDCWD, name, flags, mode) }
    fn open64(name: *const c_char, flags: c_int, mode: mode_t) -> c_int { openat(AT_FDCWD, name, flags, mode) }
    fn openat64(directory: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        openat(directory, name, flags, mode)
    }
    fn openat(directory: c_int, name: *const c_char, flags: c_int, mode: mode_t) -> c_int {
        call(
            || libc::syscall(libc::SYS_openat, directory, name, flags, mode),
            |recorder, descriptor| recorder.opened(descriptor as c_int, directory, path(name), flags),
        )
    }
    fn close(descriptor: c_int) -> c_int {
        call(
            || libc::syscall(libc::SYS_close, descriptor),
            |recorder, _| recorder.closed(descriptor),
        )
    }
    fn write(descriptor: c_int, data: *const c_void, length: size_t) -> ssize_t {
        call(
            || libc::syscall(libc::SYS_write, descriptor, data, length),
            |recorder, written| {
                let end = libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR);
                recorder.wrote(descriptor, end - written, bytes(data, written));
            },
        )
    }
    fn writev(descriptor: c_int, parts: *const iovec, count: c_int) -> ssize_t {
        call(
            || libc::syscall(libc::SYS_writev, descriptor, parts, count),
            |recorder, written| {
                let end = libc::syscall(libc::SYS_lseek, descriptor, 0, libc::SEEK_CUR);
                recorder.wrote(descriptor, end - written, gathered(parts, count, written));
            },
        )
    }
    fn pwrite64(descriptor: c_int, data: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        pwrite(descriptor, data, length, offset)
    }
    fn pwrite(descriptor: c_int, data: *const c_void, length: size_t, offset: off_t) -> ssize_t {
        call(
            || libc::syscall(libc::SYS_pwrite64, descriptor, data, length, offset),
            |recorder, written| recorder.wrote(descriptor, offset, bytes(data, written)),
        )
    }
    fn pwritev64(descriptor: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        pwritev(descriptor, parts, count, offset)
    }
    fn pwritev(descriptor: c_int, parts: *const iovec, count: c_int, offset: off_t) -> ssize_t {
        call(
            || libc::syscall(libc::SYS_pwritev, descriptor, parts, count, offset, 0),
            |recorder, written| recorder.wrote(descriptor, offset, gathered(parts, count, written)),
        )
    }
    fn fsync(descriptor: c_int) -> c_int {
        call(|| libc::syscall(libc::SYS_fsync, descriptor), |recorder, _| recorder.synced(descriptor))
    }
    fn fdatasync(descriptor: c_int) -> c_int {
        call(|| libc::syscall(libc::SYS_fdatasync, descriptor), |recorder, _| recorder.synced(descriptor))
    }
    fn ftruncate64(descriptor: c_int, length: off_t) -> c_int { ftruncate(descriptor, length) }
    fn ftruncate(descriptor: c_int, length: off_t) -> c_int {
        call(
            || libc::syscall(libc::SYS_ftruncate, descriptor, length),
            |recorder, _| {
                if let Some((Node::File(file), _)) = recorder.open.get(&descriptor).copied() {
                    recorder.record(Operation::SetLength { file, length: length as u64 });
                }
            },
        )
    }
    fn rename(from: *const c_char, to: *const c_char) -> c_int { renameat(AT_FDCWD, from, AT_FDCWD, to) }
    fn renameat(from_directory: c_int, from: *const c_char, to_directory: c_int, to: *const c_char) -> c_int {
        call(
            || libc::syscall(libc::SYS_renameat2, from_directory, from, to_directory, to, 0 as c_uint),
            |recorder, _| {
                let places = (recorder.place(from_directory, path(from)), recorder.place(to_directory, path(to)));
                recorder.renamed(places.0, places.1);
            },
        )
    }
    fn unlink(name: *const c_char) -> c_int { unlinkat(AT_FDCWD, name, 0) }
    fn rmdir(name: *const c_char) -> c_int { unlinkat(AT_FDCWD, name, libc::AT_REMOVEDIR) }
    fn unlinkat(directory: c_int, name: *const c_char, flags: c_int) -> c_int {
        call(
            || libc::syscall(libc::SYS_unlinkat, directory, name, flags),
            |recorder, _| {
                if let Some(place) = recorder.place(directory, path(name)) {
                    recorder.record(Operation::Names { gone: Some(place), come: None });
                }
            },
        )
    }
    fn mkdir(name: *const c_char, mode: mode_t) -> c_int {
        call(
            || libc::syscall(libc::SYS_mkdirat, AT_FDCWD, name, mode),
            |recorder, _| {
                if let Some(place) = recorder.place(AT_FDCWD, path(name)) {
                    let node = Node::Directory(recorder.recording.live.directories);
                    recorder.record(Operation::Names { gone: None, come: Some((place, node)) });
                }
            },
        )
    }
}

/// # Safety
/// So many bytes were just read from there by the kernel.
unsafe fn bytes(data: *const c_void, length: c_long) -> Vec<u8> {
    if length == 0 {
        return Vec::new();
    }
    // SAFETY: as the caller promises.
    unsafe { std::slice::from_raw_parts(data.cast(), length as usize) }.to_vec()
}

/// # Safety
/// So many bytes were just read from these parts by the kernel.
unsafe fn gathered(parts: *const iovec, count: c_int, length: c_long) -> Vec<u8> {
    let mut data = Vec::with_capacity(length as usize);
    for at in 0..count as usize {
        // SAFETY: as the caller promises.
        let part = unsafe { &*parts.add(at) };
        let wanted = part.iov_len.min(length as usize - data.len());
        // SAFETY: the same.
        data.extend(unsafe { bytes(part.iov_base, wanted as c_long) });
    }
    data
}
