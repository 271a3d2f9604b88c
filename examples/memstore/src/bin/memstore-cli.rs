//! The commands of `raftify-cli`, for directories of this store: they show keys and values instead of bytes.

use std::process::ExitCode;

use memstore::{HashStore, LogEntry, StoreFormatter};

fn main() -> ExitCode {
    raftify_cli::cli_handler_with::<LogEntry, HashStore>(StoreFormatter)
}
