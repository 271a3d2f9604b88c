//! How an application's entries and snapshots are printed for people: in this node's logs, and by the CLI.

use std::fmt::Write;
use std::io::{self, Read};

use crate::application::state_machine::StateMachine;

/// How many bytes [`hex_and_text`] shows.
const SHOWN_BYTES_MAX: usize = 64;

/// Prints an application's entries and snapshots.
///
/// Every method has a default that does not depend on the types and prints bytes: [`DefaultFormatter`].
///
/// ```
/// use raftify::formatter::CustomFormatter;
/// use raftify::StateMachine;
///
/// struct Pretty;
///
/// impl<FSM: StateMachine<LogEntry = String>> CustomFormatter<String, FSM> for Pretty {
///     fn format_entry(&self, entry: &String, _encoded: &[u8]) -> String {
///         format!("say {entry}")
///     }
/// }
/// ```
pub trait CustomFormatter<Entry, FSM: StateMachine<LogEntry = Entry>>: Send + Sync + 'static {
    /// One line about an entry.
    fn format_entry(&self, entry: &Entry, encoded: &[u8]) -> String {
        let _ = entry;
        hex_and_text(encoded)
    }

    /// The content of a snapshot, in any number of lines.
    ///
    /// # Errors
    /// Errors of the reader.
    fn format_snapshot(&self, data: &mut dyn Read) -> io::Result<String> {
        let mut start = Vec::new();
        let bytes = data.take(SHOWN_BYTES_MAX as u64 + 1).read_to_end(&mut start)? as u64;
        let rest = io::copy(data, &mut io::sink())?;
        Ok(format!("{} bytes: {}", bytes + rest, hex_and_text(&start)))
    }
}

/// Prints every entry and snapshot as hex and text.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultFormatter;

impl<Entry, FSM: StateMachine<LogEntry = Entry>> CustomFormatter<Entry, FSM> for DefaultFormatter {}

/// The first bytes as hex, and as text where they are printable ASCII.
///
/// ```
/// assert_eq!(raftify::formatter::hex_and_text(b"\x01key"), "01 6b 65 79  |.key|");
/// ```
pub fn hex_and_text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let mut line = String::with_capacity(shown.len() * 4 + 16);
    for byte in shown {
        let _ = write!(line, "{byte:02x} "); // Writing to a String cannot fail.
    }
    line.push_str(" |");
    line.extend(shown.iter().map(
        |byte| {
            if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' }
        },
    ));
    line.push('|');
    if bytes.len() > shown.len() {
        let _ = write!(line, " (the first {} of {} bytes)", shown.len(), bytes.len());
    }
    line
}
