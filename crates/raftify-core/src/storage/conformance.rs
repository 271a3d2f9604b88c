//! One case for every sentence of the contracts of [`StableStorage`](super::StableStorage),
//! [`LogReader`](super::LogReader) and [`SnapshotStore`](super::SnapshotStore). Each implementation calls
//! [`check`] in a test. If it violates the contract, the test panics with the sentence that it violates.

mod log;
mod opened;
mod snapshots;
mod state;

pub use self::opened::TestDisk;

/// Runs all cases, each on a fresh disk.
///
/// # Panics
/// If a sentence of the contract is violated.
pub fn check<D: TestDisk>(fresh_disk: impl Fn() -> D) {
    macro_rules! run {
        ($($room:ident::$case:ident)*) => { $(
            eprintln!("conformance: {}", stringify!($case));
            $room::$case(&fresh_disk());
        )* };
    }
    run! {
        state::fresh_storage_is_empty
        state::identity_is_written_once
        log::entries_survive
        log::append_cuts_everything_from_its_first_index_on
        log::longer_tail_replaces_the_old_one
        log::gap_in_the_log_is_refused
        log::entry_before_the_log_is_refused
        log::term_that_goes_down_in_the_log_is_refused
        log::committed_entry_is_never_replaced
        state::hard_state_survives
        state::hard_state_never_goes_back
        state::hard_state_must_fit_to_the_log
        state::members_survive
        state::memory_of_starts_survives
        state::snapshot_metadata_survives
        log::reset_forgets_all_entries
        log::reset_forgets_what_comes_after_its_position
        log::reset_never_forgets_what_is_committed
        log::compaction_forgets_a_prefix
        log::compaction_of_everything_leaves_an_empty_log
        log::compaction_needs_a_snapshot_and_an_entry
        state::parts_of_a_write_are_carried_out_in_order
        log::term_starts_name_every_change_of_term
        state::batch_is_carried_out_in_order
        state::refused_batch_leaves_a_prefix_of_its_writes
        state::empty_writes_change_nothing
        log::reader_stops_at_the_bytes_it_may_give_but_gives_one_entry
        log::reader_gives_the_whole_range_or_an_error
        log::reader_sees_what_was_written_and_works_on_any_thread
        snapshots::snapshot_is_invisible_before_it_is_finished
        snapshots::dropped_snapshot_leaves_nothing_behind
        snapshots::snapshot_carries_its_metadata_and_any_number_of_bytes
        snapshots::finished_snapshot_replaces_the_one_before_as_a_whole
        snapshots::retain_deletes_all_others_but_those_being_written
        snapshots::what_was_received_survives_and_is_gone_on_with
        snapshots::what_was_received_is_gone_on_with_only_by_the_same_snapshot
        snapshots::what_was_received_is_deleted_when_it_is_discarded_or_outdated
    }
}
