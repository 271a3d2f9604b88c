//! Tables, JSON and hints, the same for all commands.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{ContentArrangement, Table};
use raftify::BoxError;
use raftify::membership::Members;
use raftify::status::PeerProgress;
use raftify::storage::StorageError;
use serde_json::{Value, json};

/// A table with these headings, at most as wide as the terminal.
pub(crate) fn table<const COLUMNS: usize>(headings: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table
        .load_style(UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings);
    table
}

/// One line for each property.
pub(crate) fn print_facts(output: &mut dyn Write, facts: &[(&str, String)]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, fact) in facts {
        table.add_row([name, fact.as_str()]);
    }
    writeln!(output, "{table}")
}

/// One line for each member; with its progress, if that is known.
pub(crate) fn print_members(
    output: &mut dyn Write,
    members: Option<&Members>,
    progress: Option<&[PeerProgress]>,
) -> io::Result<()> {
    let Some(members) = members.filter(|members| !members.is_empty()) else {
        return writeln!(output, "no members yet: this node waits for its admission to a cluster");
    };
    let mut table = table(["member", "address", "role", "incarnation", "log agrees up to"]);
    if progress.is_none_or(<[PeerProgress]>::is_empty) {
        table.column_mut(4).map(|column| column.set_constraint(comfy_table::ColumnConstraint::Hidden));
    }
    for member in members.iter() {
        let peer = progress.and_then(|progress| progress.iter().find(|peer| peer.id == member.id));
        let agrees = peer.map_or(String::new(), |peer| {
            let silent = if peer.recently_active { "" } else { ", not recently active" };
            format!("{} ({}{silent})", peer.matched, peer.state)
        });
        let incarnation = member.incarnation.map_or("not yet known".to_owned(), |known| known.to_string());
        table.add_row([
            member.id.to_string(),
            member.address.clone(),
            member.role.to_string(),
            incarnation,
            agrees,
        ]);
    }
    writeln!(output, "{table}")?;
    let joint = if members.is_joint() { ", in a joint configuration" } else { "" };
    writeln!(output, "members as of index {}{joint}", members.as_of())
}

/// The members, for programs: `docs/cli.md` describes it.
pub(crate) fn members_json(members: &Members) -> Value {
    let list: Vec<Value> = members
        .iter()
        .map(|member| {
            let (id, incarnation) = (member.id, member.incarnation);
            json!({ "id": id, "address": member.address, "role": member.role, "incarnation": incarnation })
        })
        .collect();
    json!({ "as_of": members.as_of(), "joint": members.is_joint(), "members": list })
}

/// Prints indented JSON.
pub(crate) fn print_json(output: &mut dyn Write, value: &Value) -> serde_json::Result<()> {
    serde_json::to_writer_pretty(&mut *output, value)?;
    output.write_all(b"\n").map_err(serde_json::Error::io)
}

/// All bytes, without spaces.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // Writing to a String cannot fail.
        text
    })
}

/// Why `directory` could not be opened; if no node has ever written there, with the expected file.
pub(crate) fn with_advice(directory: &Path, error: StorageError) -> BoxError {
    match &error {
        StorageError::Io { path, source, .. }
            if path.parent() == Some(directory)
                && matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
        {
            format!("{} is not the data directory of a node: {error}", directory.display()).into()
        }
        _ => error.into(),
    }
}

/// Whether the reader of the output has closed it.
pub(crate) fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let kind = |error: &serde_json::Error| error.io_error_kind();
    let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
    io.or_else(|| error.downcast_ref().and_then(kind)) == Some(ErrorKind::BrokenPipe)
}
