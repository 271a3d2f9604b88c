//! File descriptors that are reserved for the files of a data directory: other files and sockets of the
//! process, above all the connections of clients, must not prevent a node from writing its log.

use std::fs::File;
use std::io;
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use raftify_core::StorageError;

/// How many are reserved: for the next segment, its directory, a snapshot, and some files that are read, all
/// at once.
const RESERVED: usize = 8;

/// How many attempts are made, with a pause before each, when none is left, before that is an error.
const ATTEMPTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Descriptors of one process, reserved by unused handles.
#[derive(Debug)]
pub(crate) struct Reserve {
    spare: Mutex<Vec<File>>,
    /// Any file: it is only duplicated.
    original: io::Result<File>,
}

impl Reserve {
    /// Reserves the descriptors, by duplicating that of `file`. If there are not enough, it continues with
    /// fewer.
    pub(crate) fn of(file: &File) -> Reserve {
        let reserve = Reserve { spare: Mutex::default(), original: file.try_clone() };
        reserve.refill();
        reserve
    }

    /// Opens a file; with a descriptor of the reserve, if there is no other.
    pub(crate) fn open<T, E: Refusal>(&self, open: impl Fn() -> Result<T, E>) -> Result<T, E> {
        let mut attempts = 0;
        loop {
            match open() {
                Err(error) if error.cause().is_some_and(is_out_of_descriptors) => {
                    let given_up = self.spare().pop();
                    if given_up.is_none() {
                        attempts += 1;
                        if attempts > ATTEMPTS {
                            return Err(error);
                        }
                        thread::sleep(PAUSE);
                    }
                }
                opened => {
                    self.refill();
                    return opened;
                }
            }
        }
    }

    fn refill(&self) {
        let Ok(original) = &self.original else { return };
        let mut spare = self.spare();
        while spare.len() < RESERVED
            && let Ok(another) = original.try_clone()
        {
            spare.push(another);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<File>> {
        self.spare.lock()
    }
}

/// Why a file could not be opened.
pub(crate) trait Refusal {
    /// The error of the operating system.
    fn cause(&self) -> Option<&io::Error>;
}

impl Refusal for io::Error {
    fn cause(&self) -> Option<&io::Error> {
        Some(self)
    }
}

impl Refusal for StorageError {
    fn cause(&self) -> Option<&io::Error> {
        match self {
            StorageError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Whether the process, or the whole system, has no descriptors left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    const CODES: [i32; 2] = [libc::EMFILE, libc::ENFILE];
    /// `ERROR_TOO_MANY_OPEN_FILES`
    #[cfg(not(unix))]
    const CODES: [i32; 1] = [4];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}
