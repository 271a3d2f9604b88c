//! The values in LMDB: each is checked by its own checksum, and the entries of `HeedStorage` in their order.

use std::io;
use std::path::Path;
use std::sync::Arc;

use raftify_core::{HardState, LogIndex, LogPosition, Members, Remembered};

use super::{Checked, ProblemKind};
use crate::fields::{Damage, GROUP_ID};
use crate::files::io_error;
use crate::layout::StorageKind;
use crate::lmdb::pages::{PageFile, Unusable};
use crate::lmdb::values::{self, MetaKey, Table};
use crate::wal::{LogStart, Metadata};

/// What `data.mdb` holds besides entries, as far as it is sound.
#[derive(Default)]
pub(super) struct Values {
    pub(super) kind: Option<StorageKind>,
    pub(super) metadata: Metadata,
    pub(super) hard_state: Option<HardState>,
    pub(super) start: Option<LogStart>,
    /// Whether the values that say where the log begins are sound.
    pub(super) log_is_known: bool,
}

/// The log in LMDB.
#[derive(Default)]
pub(super) struct HeedEntries {
    pub(super) last: LogPosition,
    pub(super) term_starts: Vec<LogPosition>,
}

/// Reads the whole file. The log is `None` if it is not in this file, or its tree cannot be walked.
pub(super) fn check(path: &Path, checked: &mut Checked) -> (Values, Option<HeedEntries>) {
    let mut values = Values::default();
    let mut log = None;
    let mut file = match PageFile::open(path) {
        Ok(file) => file,
        Err(Unusable::Io(error)) => {
            checked.error(ProblemKind::Database, error);
            return (values, log);
        }
        Err(Unusable::Damaged(reason)) => {
            checked.problem(ProblemKind::Database, path.display(), reason);
            return (values, log);
        }
    };
    let walked = walk(path, &mut file, &mut values, &mut log, checked);
    for reason in file.take_problems() {
        checked.problem(ProblemKind::Database, path.display(), reason);
    }
    if let Err(error) = walked {
        checked.error(ProblemKind::Database, io_error("read", path)(error));
    }
    checked.read_bytes += file.read_bytes();
    (values, log)
}

fn walk(
    path: &Path,
    file: &mut PageFile,
    values: &mut Values,
    log: &mut Option<HeedEntries>,
    checked: &mut Checked,
) -> io::Result<()> {
    let trees = file.tables()?;
    let tree = |table: Table| trees.get(table.name().as_bytes()).copied();
    let (Some(meta), Some(entries)) = (tree(Table::Meta), tree(Table::Entries)) else {
        checked.problem(ProblemKind::Database, path.display(), "one of its two databases is missing");
        return Ok(());
    };
    let mut found = MetaValues { path, values, checked, is_log_damaged: false, has_layout: false };
    file.walk(Table::Meta.name(), meta, &mut |key, _, value| found.value(key, value))?;
    let MetaValues { is_log_damaged, has_layout, .. } = found;
    if !has_layout {
        let what = what_of(path, "metadata Layout");
        checked.problem(ProblemKind::Metadata, what, "it is missing");
    }
    values.log_is_known = !is_log_damaged;
    let mut rows = Rows {
        path,
        next: values.metadata.truncated.index.next(),
        log: HeedEntries { last: values.metadata.truncated, term_starts: Vec::new() },
        is_known: values.kind.is_some() && !is_log_damaged,
        is_kept_here: values.kind == Some(StorageKind::Heed) && !is_log_damaged,
        checked,
    };
    file.walk(Table::Entries.name(), entries, &mut |key, _, value| rows.row(key, value))?;
    let Rows { log: rows, is_kept_here, .. } = rows;
    *log = is_kept_here.then_some(rows);
    file.check_free_pages()
}

fn what_of(path: &Path, value: &str) -> String {
    format!("{}: {value}", path.display())
}

/// The group and the number of a key; `None` if it is no key of raftify.
fn key_of(key: &[u8]) -> Option<(u128, u64, u64)> {
    let key = u128::from_be_bytes(key.try_into().ok()?);
    let (group_id, number) = values::split_key(key);
    Some((key, group_id, number))
}

struct MetaValues<'a> {
    path: &'a Path,
    values: &'a mut Values,
    checked: &'a mut Checked,
    is_log_damaged: bool,
    has_layout: bool,
}

impl MetaValues<'_> {
    fn value(&mut self, key: &[u8], value: &[u8]) {
        let known = key_of(key)
            .filter(|(_, group_id, _)| *group_id == GROUP_ID)
            .and_then(|(key, _, number)| Some((key, MetaKey::from_number(number)?)));
        let Some((key, name)) = known else {
            let what = what_of(self.path, &format!("metadata with key {key:02x?}"));
            return self.checked.problem(ProblemKind::Metadata, what, "this program knows no such key");
        };
        self.has_layout |= name == MetaKey::Layout;
        let read = values::unframe(Table::Meta, key, value).and_then(|content| self.take(name, content));
        if let Err(damage) = read {
            self.is_log_damaged |= matches!(name, MetaKey::Truncated | MetaKey::Log | MetaKey::Layout);
            let what = what_of(self.path, &format!("metadata {name:?}"));
            self.checked.error(ProblemKind::Metadata, damage.of(what));
        }
    }

    fn take(&mut self, name: MetaKey, content: &[u8]) -> Result<(), Damage> {
        let Values { kind, metadata, hard_state, start, .. } = &mut *self.values;
        match name {
            MetaKey::Layout => *kind = Some(StorageKind::decode(content)?),
            MetaKey::Identity => metadata.identity = Some(values::decode_identity(content)?),
            MetaKey::HardState => *hard_state = Some(values::decode_hard_state(content)?),
            MetaKey::Members => metadata.members = Some(Members::decode(content)?),
            MetaKey::Snapshot => metadata.snapshot = Some(values::decode_snapshot_meta(content)?),
            MetaKey::Truncated => metadata.truncated = values::decode_position(content)?,
            MetaKey::Log => *start = Some(LogStart::decode(content)?),
            MetaKey::Remembered => metadata.remembered = Arc::new(Remembered::decode(content)?),
        }
        Ok(())
    }
}

/// The rows of the entries, in the order of their keys.
struct Rows<'a> {
    path: &'a Path,
    /// The expected index.
    next: LogIndex,
    log: HeedEntries,
    /// Whether it is known which log the directory has, and where it begins.
    is_known: bool,
    /// Whether that log is here.
    is_kept_here: bool,
    checked: &'a mut Checked,
}

impl Rows<'_> {
    fn row(&mut self, key: &[u8], value: &[u8]) {
        if !self.is_known {
            return;
        }
        let known = key_of(key).filter(|(_, group_id, _)| *group_id == GROUP_ID && self.is_kept_here);
        let Some((_, _, number)) = known else {
            let what = what_of(self.path, &format!("entry with key {key:02x?}"));
            return self.checked.problem(ProblemKind::Log, what, "there should be no such entry");
        };
        let index = LogIndex(number);
        if index < self.next {
            // Compacted: the row is deleted later.
            return;
        }
        let what = |index: LogIndex| what_of(self.path, &format!("entry {index}"));
        if index > self.next {
            let reason = format!("it is missing, {index} follows instead");
            self.checked.problem(ProblemKind::Log, what(self.next), reason);
        }
        self.next = LogIndex(index.0.saturating_add(1));
        let entry = match values::decode_entry(index, value) {
            Ok(view) => view.to_entry(),
            Err(damage) => return self.checked.error(ProblemKind::Log, damage.of(what(index))),
        };
        let (term, before) = (entry.position.term, self.log.last.term);
        if term < before {
            let reason = format!("its term is {term}, that of the entry before is {before}");
            return self.checked.problem(ProblemKind::Log, what(index), reason);
        }
        if term > before {
            self.log.term_starts.push(entry.position);
        }
        self.log.last = entry.position;
        self.checked.entry(&entry);
    }
}
