//! Converts errors of the operating system to the error of this crate.

use std::io;
use std::path::Path;

use raftify_core::StorageError;

/// Converts an error of the operating system, or of a check before the call, about `path` to a
/// [`StorageError`].
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| match source.downcast::<StorageError>() {
        Ok(error) => error,
        Err(source) => StorageError::Io { action, path: path.to_owned(), source },
    }
}
