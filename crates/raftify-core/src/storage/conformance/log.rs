//! The log: append, truncate, compact, reset, and read.

use bytes::Bytes;

use super::opened::{
    Opened, TestDisk, compacted, entries, entry, hard_state, snapshot_meta, succeeds, take_snapshot,
};
use crate::entry::{Entry, EntryKind};
use crate::storage::{LogReader, StableStorage, StorageError, Write};
use crate::types::{LogIndex, LogPosition};

pub(super) fn entries_survive<D: TestDisk>(disk: &D) {
    let kinds = [EntryKind::Empty, EntryKind::User, EntryKind::MembershipChange, EntryKind::MemberRecord];
    let payloads =
        [Bytes::new(), Bytes::from_static(&[0]), vec![0xa5; 70_000].into(), Bytes::from_static(b"x")];
    let log: Vec<Entry> = (1..)
        .zip(kinds.into_iter().zip(payloads))
        .map(|(index, (kind, payload))| Entry { position: LogPosition::new(2, index), kind, payload })
        .collect();
    let mut opened = Opened::new(disk);
    opened.write(Write { append: log.clone(), hard_state: Some(hard_state(2, None, 0)), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, LogPosition::ZERO);
    assert_eq!(opened.loaded.last, LogPosition::new(2, 4));
    assert_eq!(opened.log(), log);
}

pub(super) fn append_cuts_everything_from_its_first_index_on<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 0);
    opened.write(Write {
        append: entries(2, [3]),
        hard_state: Some(hard_state(2, None, 0)),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(2, 3), "a shorter new tail makes the log shorter");
    let log = [entry(1, 1), entry(1, 2), entry(2, 3)];
    assert_eq!(opened.log(), log);

    let same_term = Entry { payload: Bytes::from_static(b"another"), ..entry(1, 1) };
    opened.write(Write { append: vec![same_term.clone()], ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(1, 1), "the suffix is cut whatever its term");
    assert_eq!(opened.loaded.term_starts, [LogPosition::new(1, 1)]);
    assert_eq!(opened.log(), [same_term]);
}

pub(super) fn longer_tail_replaces_the_old_one<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 4, 2);
    opened.write(Write {
        append: entries(3, 3..=9),
        hard_state: Some(hard_state(3, None, 2)),
        ..Write::default()
    });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.last, LogPosition::new(3, 9));
    assert_eq!(opened.log(), [entries(1, 1..=2), entries(3, 3..=9)].concat());
}

pub(super) fn gap_in_the_log_is_refused<D: TestDisk>(disk: &D) {
    let empty =
        Opened::new(disk).refuses("a log starts at 1", Write { append: entries(1, [2]), ..Write::default() });
    drop(empty);
    let opened = Opened::with_log(disk, 3, 0);
    let opened = opened.refuses("a gap", Write { append: entries(1, [5]), ..Write::default() });
    opened.refuses("a gap within the new entries", Write { append: entries(1, [4, 6]), ..Write::default() });
}

pub(super) fn entry_before_the_log_is_refused<D: TestDisk>(disk: &D) {
    let opened = Opened::new(disk)
        .refuses("there is no entry 0", Write { append: entries(0, [0]), ..Write::default() });
    drop(opened);
    let mut opened = Opened::with_log(disk, 4, 3);
    opened.write_snapshot(&snapshot_meta(1, 3));
    opened.write(Write { compact: Some(LogPosition::new(1, 3)), ..Write::default() });
    opened
        .refuses("an entry that was compacted away", Write { append: entries(1, 3..=5), ..Write::default() });
}

pub(super) fn term_that_goes_down_in_the_log_is_refused<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 2, 0);
    opened.write(Write {
        append: entries(3, [3]),
        hard_state: Some(hard_state(3, None, 0)),
        ..Write::default()
    });
    let opened = opened.refuses("a lower term", Write { append: entries(2, [4]), ..Write::default() });
    let down = vec![entry(3, 4), entry(2, 5)];
    opened.refuses("a lower term within the new entries", Write { append: down, ..Write::default() });
}

pub(super) fn committed_entry_is_never_replaced<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 4, 3);
    let cut =
        Write { append: entries(2, [3, 4]), hard_state: Some(hard_state(2, None, 3)), ..Write::default() };
    opened.refuses("cutting a committed entry", cut);
}

pub(super) fn reset_forgets_all_entries<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 2);
    let meta = snapshot_meta(6, 40);
    take_snapshot(&opened.storage.snapshots(), &meta, b"received");
    opened.write(Write {
        reset_log: Some(meta.position),
        hard_state: Some(hard_state(6, None, 40)),
        members: Some(meta.members.clone()),
        snapshot: Some(meta.clone()),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, meta.position);
    assert_eq!(opened.loaded.last, meta.position);
    assert_eq!(opened.loaded.term_starts, []);
    compacted(opened.read(5, 6, 1), 5, meta.position);
    compacted(opened.read(40, 41, 1), 40, meta.position);
    opened.write(Write { append: entries(6, [41]), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.log(), entries(6, [41]), "the log goes on after the position");
    assert_eq!(opened.loaded.term_starts, [], "entry 41 has the term of the truncated position");
}

pub(super) fn reset_forgets_what_comes_after_its_position<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 9, 2);
    let meta = snapshot_meta(6, 4);
    take_snapshot(&opened.storage.snapshots(), &meta, b"received");
    opened.write(Write {
        reset_log: Some(meta.position),
        hard_state: Some(hard_state(6, None, 4)),
        members: Some(meta.members.clone()),
        snapshot: Some(meta.clone()),
        ..Write::default()
    });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (meta.position, meta.position));
    opened.write(Write { append: entries(6, [5]), ..Write::default() });
    assert_eq!(opened.reopen().log(), entries(6, [5]), "nothing of the old log is left after it");
}

pub(super) fn reset_never_forgets_what_is_committed<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 5, 4);
    let reset =
        Write { reset_log: Some(LogPosition::new(1, 3)), append: entries(1, 4..=5), ..Write::default() };
    opened.refuses("a log that begins again before its commit index", reset);
}

pub(super) fn compaction_forgets_a_prefix<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 8, 6);
    opened.write_snapshot(&snapshot_meta(1, 6));
    let position = LogPosition::new(1, 4);
    opened.write(Write { compact: Some(position), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (position, LogPosition::new(1, 8)));
    assert_eq!(opened.log(), entries(1, 5..=8));
    compacted(opened.read(4, 9, u64::MAX), 4, position);
    opened.write(Write { compact: Some(LogPosition::new(1, 2)), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.truncated, position, "compaction up to an earlier place changes nothing");
    assert_eq!(opened.log(), entries(1, 5..=8));
}

pub(super) fn compaction_of_everything_leaves_an_empty_log<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 3, 3);
    opened.write_snapshot(&snapshot_meta(1, 3));
    let last = LogPosition::new(1, 3);
    opened.write(Write { compact: Some(last), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!((opened.loaded.truncated, opened.loaded.last), (last, last));
    assert_eq!(opened.log(), []);
    opened.write(Write { append: entries(1, [4]), ..Write::default() });
    assert_eq!(opened.reopen().log(), entries(1, [4]));
}

pub(super) fn compaction_needs_a_snapshot_and_an_entry<D: TestDisk>(disk: &D) {
    let compact = |term, index| Write { compact: Some(LogPosition::new(term, index)), ..Write::default() };
    let mut opened = Opened::with_log(disk, 6, 6).refuses("compaction without a snapshot", compact(1, 1));
    opened.write_snapshot(&snapshot_meta(1, 4));
    let opened = opened.refuses("compaction beyond the snapshot", compact(1, 5));
    let opened = opened.refuses("compaction beyond the log", compact(1, 7));
    opened.refuses("compaction at another term than the entry's", compact(2, 3));
}

pub(super) fn term_starts_name_every_change_of_term<D: TestDisk>(disk: &D) {
    let log = [entries(1, 1..=2), entries(3, 3..=3), entries(4, 4..=7), entries(9, 8..=8)].concat();
    let mut opened = Opened::new(disk);
    opened.write(Write { append: log, hard_state: Some(hard_state(9, None, 6)), ..Write::default() });
    let starts = [(1, 1), (3, 3), (4, 4), (9, 8)].map(|(term, index)| LogPosition::new(term, index));
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, starts);
    opened.write_snapshot(&snapshot_meta(4, 6));
    opened.write(Write { compact: Some(LogPosition::new(3, 3)), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!(
        opened.loaded.term_starts,
        starts[2..],
        "the term after the truncated position differs from its own"
    );
    opened.write(Write { compact: Some(LogPosition::new(4, 5)), ..Write::default() });
    let mut opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, starts[3..]);
    opened.write(Write { append: entries(9, [7]), ..Write::default() });
    let opened = opened.reopen();
    assert_eq!(opened.loaded.term_starts, [LogPosition::new(9, 7)], "a cut suffix takes its terms with it");
}

pub(super) fn reader_stops_at_the_bytes_it_may_give_but_gives_one_entry<D: TestDisk>(disk: &D) {
    let opened = Opened::with_log(disk, 9, 0);
    let size = entry(1, 1).size_bytes();
    for (bytes_max, count) in [(0, 1), (1, 1), (size, 1), (2 * size - 1, 1), (2 * size, 2), (9 * size, 6)] {
        let read = succeeds("reading", opened.read(2, 8, bytes_max));
        assert_eq!(read, entries(1, 2..2 + count), "with {bytes_max} bytes for entries of {size}");
    }
}

pub(super) fn reader_gives_the_whole_range_or_an_error<D: TestDisk>(disk: &D) {
    let mut opened = Opened::with_log(disk, 5, 0);
    assert_eq!(
        succeeds("reading", opened.read(2, 5, u64::MAX)),
        entries(1, 2..=4),
        "the end is not included"
    );
    assert_eq!(succeeds("reading nothing", opened.read(3, 3, u64::MAX)), []);
    assert_eq!(succeeds("reading backwards", opened.read(5, 2, u64::MAX)), []);
    assert_eq!(succeeds("reading after the end", opened.read(6, 6, u64::MAX)), []);
    compacted(opened.read(0, 3, u64::MAX), 0, LogPosition::ZERO);
    opened.write(Write { append: entries(1, [4]), ..Write::default() });
    for (from, until, bytes_max) in [(5, 6, 1), (2, 6, u64::MAX), (1, 6, 0), (9, 11, 1)] {
        match opened.read(from, until, bytes_max) {
            Err(StorageError::BeyondEnd { index, last }) => {
                assert_eq!((index, last), (LogIndex(from.max(5)), LogPosition::new(1, 4)));
            }
            other => panic!("reading {from} to {until} of a log that ends at 4 gave {other:?}"),
        }
    }
}

pub(super) fn reader_sees_what_was_written_and_works_on_any_thread<D: TestDisk>(disk: &D) {
    let mut opened = Opened::new(disk);
    let reader = opened.storage.log_reader();
    for index in 1..=20 {
        let write = Write {
            append: entries(1, [index]),
            hard_state: Some(hard_state(1, None, 0)),
            ..Write::default()
        };
        opened.write(write);
        let reader = reader.clone();
        let read = std::thread::scope(|scope| {
            let read = scope.spawn(move || reader.read(LogIndex(1), LogIndex(index + 1), u64::MAX));
            read.join().expect("a reader must not panic")
        });
        assert_eq!(succeeds("reading", read), entries(1, 1..=index), "a write is visible when it returns");
    }
}
