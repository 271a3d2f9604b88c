//! Shared behaviour of the test and benchmark programs at a terminal: wrong arguments are reported in one
//! line, Ctrl+C ends a run with its summary, and a program ends quietly when its standard output is closed.
//!
//! It does not depend on these programs.

use std::fmt;
use std::io::{self, Write as _};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The exit code for invalid arguments.
pub const WRONG_ARGUMENTS: u8 = 2;

/// The arguments of this process. If they are invalid, the process ends with one line and
/// [`WRONG_ARGUMENTS`]; if they ask for help, with the help.
pub fn arguments<Arguments: clap::Parser>() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        // The first paragraph names the error.
        let text = error.to_string();
        let what: Vec<&str> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        eprintln!("{}", what.join(" "));
        process::exit(WRONG_ARGUMENTS.into());
    })
}

/// Becomes true on Ctrl+C, which from now on does not end the process. Must be called once.
pub fn interruption() -> Arc<AtomicBool> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&interrupted);
    if let Err(error) = ctrlc::set_handler(move || asked.store(true, Ordering::Relaxed)) {
        eprintln!("Ctrl+C will end the run without its summary: {error}");
    }
    interrupted
}

/// Prints a line on standard output, as `println!` does. If standard output is closed, the process ends
/// quietly.
#[macro_export]
macro_rules! say {
    ($($what:tt)*) => { $crate::say_line(format_args!($($what)*)) };
}

/// The implementation of [`say!`].
#[doc(hidden)]
pub fn say_line(line: fmt::Arguments<'_>) {
    if let Err(error) = writeln!(io::stdout(), "{line}") {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("error: cannot write to standard output: {error}");
        }
        process::exit(1);
    }
}
