//! How a refusal of the operating system becomes the error of this crate.

use std::io;
use std::path::Path;

use raftify_core::StorageError;

/// Turns what the operating system, or a check before it, said about `path` into a [`StorageError`].
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| match source.downcast::<StorageError>() {
        Ok(error) => error,
        Err(source) => StorageError::Io { action, path: path.to_owned(), source },
    }
}
