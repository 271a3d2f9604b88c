//! A captured state, and how to read a value back from a snapshot.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::application::encoding;
use crate::error::BoxError;

type WriteOut = Box<dyn FnOnce(&mut dyn Write) -> Result<(), BoxError> + Send>;

/// The state of a state machine at one moment, ready to be written by another thread.
pub struct Snapshot(WriteOut);

impl Snapshot {
    /// A snapshot in the application's own format. `write_out` is called at most once, on a separate thread,
    /// and may be slow; the writer is buffered.
    pub fn new(write_out: impl FnOnce(&mut dyn Write) -> Result<(), BoxError> + Send + 'static) -> Snapshot {
        Snapshot(Box::new(write_out))
    }

    /// A snapshot of a value in the format of `postcard`; [`read_value`](Self::read_value) reads it back in
    /// one step: for states that fit into memory twice.
    pub fn from_value(value: impl Serialize + Send + 'static) -> Snapshot {
        Snapshot::new(move |writer| {
            let mut writer = KeepsError { writer, error: None };
            match postcard::to_io(&value, &mut writer).map(drop) {
                Ok(()) => Ok(()),
                // For an error of the writer, postcard only reports that there is no room.
                Err(error) => Err(writer.error.map_or_else(|| error.into(), Into::into)),
            }
        })
    }

    /// Reads back a snapshot of [`from_value`](Self::from_value).
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use raftify::Snapshot;
    ///
    /// let state = BTreeMap::from([(1, "one".to_owned())]);
    /// let mut bytes = Vec::new();
    /// Snapshot::from_value(state.clone()).write_to(&mut bytes)?;
    /// let restored: BTreeMap<i32, String> = Snapshot::read_value(&mut bytes.as_slice())?;
    /// assert_eq!(restored, state);
    /// # Ok::<(), raftify::BoxError>(())
    /// ```
    ///
    /// # Errors
    /// Errors of the reader, and an error if the bytes are not exactly one `T`.
    pub fn read_value<T: DeserializeOwned>(reader: &mut dyn Read) -> Result<T, BoxError> {
        let mut data = Vec::new();
        reader.read_to_end(&mut data)?;
        encoding::decode(&data)
    }

    /// Writes the state out.
    ///
    /// # Errors
    /// Errors of the user's closure and of the writer.
    pub fn write_to(self, writer: &mut dyn Write) -> Result<(), BoxError> {
        (self.0)(writer)
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Snapshot")
    }
}

/// Remembers why the writer failed.
struct KeepsError<'a> {
    writer: &'a mut dyn Write,
    error: Option<io::Error>,
}

impl KeepsError<'_> {
    fn keep<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            let kind = error.kind();
            // The writer is called again after an interruption.
            if kind != io::ErrorKind::Interrupted {
                self.error.get_or_insert(error);
            }
            kind.into()
        })
    }
}

impl Write for KeepsError<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(data);
        self.keep(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        self.keep(flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that accepts a limited number of bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                // No space left on device.
                return Err(io::Error::from_raw_os_error(28));
            }
            let written = data.len().min(self.0);
            self.0 -= written;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn writing_a_snapshot_of_a_value_reports_a_full_disk_as_such() {
        for room in [0, 10] {
            let error = Snapshot::from_value(vec![7_u8; 100]).write_to(&mut Full(room)).unwrap_err();
            let system = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            assert_eq!(system, Some(28), "{error}");
        }
    }
}
