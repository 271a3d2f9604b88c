//! File descriptors that are kept for the files of a data directory: what else a process opens, the connections of clients
//! above all, must not keep a node from writing its log.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use raftify_core::StorageError;

/// How many are kept: for the next segment, its directory, a snapshot, and some that are read, all at once.
const RESERVED: usize = 8;

/// When none is left, it is tried again so often, after a pause, before that is an error.
const ATTEMPTS: usize = 50;
const PAUSE: Duration = Duration::from_millis(20);

/// Descriptors of one process, held by handles that are not used.
#[derive(Debug)]
pub(crate) struct Reserve {
    spare: Mutex<Vec<File>>,
    /// Whatever it is: it is duplicated.
    original: io::Result<File>,
}

impl Reserve {
    /// Takes the descriptors, by duplicating that of `file`. If there are not as many, it continues without.
    pub(crate) fn of(file: &File) -> Reserve {
        let reserve = Reserve { spare: Mutex::default(), original: file.try_clone() };
        reserve.refill();
        reserve
    }

    /// Opens something; with a descriptor of the reserve, if there is no other.
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

    /// Nothing that is done under the lock can panic half way.
    fn spare(&self) -> MutexGuard<'_, Vec<File>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why something could not be opened.
pub(crate) trait Refusal {
    /// What the system said.
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

/// Whether the process, or the whole system, has no more of them.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    #[cfg(unix)]
    const CODES: [i32; 2] = [libc::EMFILE, libc::ENFILE];
    /// `ERROR_TOO_MANY_OPEN_FILES`
    #[cfg(not(unix))]
    const CODES: [i32; 1] = [4];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}
