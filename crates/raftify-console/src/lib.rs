//! What the programs that try and measure raftify do alike at a terminal: wrong arguments get one line, Ctrl+C ends a run
//! with its summary, and where nobody listens any more, a program ends quietly.
//!
//! It knows nothing of what they try, or measure.

use std::fmt;
use std::io::{self, Write as _};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code for arguments that make no sense.
pub const WRONG_ARGUMENTS: u8 = 2;

/// The arguments of this process. Where they make no sense, it ends with one line and [`WRONG_ARGUMENTS`]; where they ask
/// for help, with the help.
pub fn arguments<Arguments: clap::Parser>() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The first paragraph says what is wrong.
        let text = error.to_string();
        let what: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        eprintln!("{}", what.join(" "));
        process::exit(WRONG_ARGUMENTS.into());
    })
}

/// Becomes true with Ctrl+C, which from now on does not end the process. To be called once.
pub fn interruption() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&interrupted);
    if let Err(error) = ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed)) {
        eprintln!("Ctrl+C will end the run without its summary: {error}");
    }
    interrupted
}

/// Says a line on standard output, as `println!` does. Where nobody listens any more, the process ends, without a word.
#[macro_export]
macro_rules! say {
    ($($what:tt)*) => { $crate::say_line(format_args!($($what)*)) };
}

/// What [`say!`] does.
#[doc(hidden)]
pub fn say_line(line: fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: cannot write to standard output: {error}");
        }
        process::exit(1);
    }
}
