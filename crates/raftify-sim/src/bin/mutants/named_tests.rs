//! The tests that must detect each mutation, and how they are run: by their names, from programs that were
//! built before.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use raftify_core::mutants::{Mutant, VARIABLE};
use serde_json::Value;

/// A test that takes longer hangs. The slowest takes some seconds.
const TEST_AT_MOST: Duration = Duration::from_secs(120);

/// One test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestName {
    /// The target of cargo: a file in `tests`, or the crate itself.
    target: &'static str,
    /// As the test program lists it.
    pub(crate) name: &'static str,
}

impl fmt::Display for TestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.target)
    }
}

/// All programs with tests, by target.
pub(crate) struct Executables(BTreeMap<String, Executable>);

struct Executable {
    program: PathBuf,
    /// Tests run in their package.
    directory: PathBuf,
}

impl Executables {
    /// From the output of cargo when it built them.
    pub(crate) fn read(path: &Path) -> Result<Executables, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{}: {error}: use `make mutants`", path.display()))?;
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let said: Value =
                serde_json::from_str(line).map_err(|error| format!("{}: {error}", path.display()))?;
            let (Some(program), Some(target), Some(manifest)) = (
                said["executable"].as_str(),
                said["target"]["name"].as_str(),
                said["manifest_path"].as_str(),
            ) else {
                continue;
            };
            if said["profile"]["test"] == true {
                let directory = Path::new(manifest).parent().unwrap_or(Path::new(".")).to_owned();
                all.insert(target.to_owned(), Executable { program: program.into(), directory });
            }
        }
        Ok(Executables(all))
    }

    /// Whether `test` passes; `Err` describes another result.
    pub(crate) fn passes(
        &self,
        test: &TestName,
        mutant: Option<Mutant>,
        interrupted: &AtomicBool,
    ) -> Result<Result<(), String>, String> {
        let Executable { program, directory } =
            self.0.get(test.target).ok_or_else(|| format!("no program has the tests of {}", test.target))?;
        let mut child = Command::new(program)
            .args(["--exact", test.name, "--test-threads=1"])
            .current_dir(directory)
            .env("CARGO_MANIFEST_DIR", directory)
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .env(VARIABLE, mutant.map_or("", Mutant::name))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let output = child.stdout.take().expect("standard output is a pipe");
        let output = thread::spawn(move || std::io::read_to_string(output).unwrap_or_default());
        let deadline = Instant::now() + TEST_AT_MOST;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if Instant::now() > deadline || interrupted.load(Ordering::SeqCst) {
                // The test may end by itself meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Err(format!("does not finish within {TEST_AT_MOST:?}")));
            }
            thread::sleep(Duration::from_millis(10));
        };
        let output = output.join().unwrap_or_default();
        if output.contains("running 0 tests") {
            return Err(format!("there is no test {test}"));
        }
        Ok(if status.success() { Ok(()) } else { Err("fails".to_owned()) })
    }
}

/// The test that must detect `mutant`, if the simulator does not.
pub(crate) fn of(mutant: Mutant) -> TestName {
    const CORE: &str = "raftify_core";
    const BUGS: &str = "known_bugs";
    const ROLLED_BACK: &str = "rolled_back";
    const MEMBERSHIP: &str = "membership";
    const SLOW_DISK: &str = "slow_disk";
    const STOPPING: &str = "stopping";
    const STORAGE: &str = "raftify_storage";
    const SHELL: &str = "raftify";
    const NODE: &str = "node";
    let (target, name) = match mutant {
        Mutant::AnswersByIndexAlone => {
            (BUGS, "bug_1_a_lost_proposal_is_not_answered_by_the_entry_that_took_its_place")
        }
        Mutant::SuffixIsKept => (CORE, "storage::memory::tests::memory_storage_keeps_the_contract"),
        Mutant::CommitIndexIsNotWritten => {
            (CORE, "storage::memory::tests::memory_storage_keeps_the_contract")
        }
        Mutant::LeadsByConfiguration => (BUGS, "bug_4_no_node_leads_without_votes"),
        Mutant::RefusedChangeSucceeds => (BUGS, "bug_5_a_change_that_is_refused_is_answered_with_the_reason"),
        Mutant::PendingChangeIsNotAnswered => {
            (BUGS, "bug_5_a_change_that_is_refused_is_answered_with_the_reason")
        }
        Mutant::SnapshotInOneMessage => {
            (SHELL, "network::tests::snapshots::a_snapshot_larger_than_any_message_is_installed")
        }
        Mutant::DamagedEntriesAreSkipped => {
            (STORAGE, "wal::tests::damaged_entry_is_noticed_when_it_is_read_and_the_others_can_be_read")
        }
        Mutant::MembersAreLostOverRestart => {
            (BUGS, "bug_9_a_node_that_starts_again_knows_all_members_and_their_addresses")
        }
        Mutant::SnapshotWithoutMembers => {
            (NODE, "snapshots::a_new_member_that_got_a_snapshot_only_votes_and_leads")
        }
        Mutant::ReservationsRepeat => {
            (BUGS, "bug_10_two_nodes_that_join_at_once_get_two_ids_and_an_id_is_never_used_again")
        }
        Mutant::RemovedIdsComeBack => {
            (BUGS, "bug_10_two_nodes_that_join_at_once_get_two_ids_and_an_id_is_never_used_again")
        }
        Mutant::AcknowledgesBeforeDurable => {
            (BUGS, "bug_12_no_vote_and_no_acknowledgement_leaves_before_it_is_durable")
        }
        Mutant::MessagesLeaveBeforeTheWrite => {
            (NODE, "durability::a_follower_whose_write_fails_has_acknowledged_nothing")
        }
        Mutant::SyncIsLeftOut => {
            (STORAGE, "wal::crash_tests::power_cut_after_any_operation_loses_nothing_that_was_acknowledged")
        }
        Mutant::TermAndVoteAreNotWritten => {
            (BUGS, "bug_12_no_vote_and_no_acknowledgement_leaves_before_it_is_durable")
        }
        Mutant::VotesBeforeDurable => {
            (BUGS, "bug_12_no_vote_and_no_acknowledgement_leaves_before_it_is_durable")
        }
        Mutant::SpeaksBeforeItsTermIsDurable => {
            (BUGS, "bug_12_a_single_voter_sends_nothing_to_its_learners_before_its_term_is_durable")
        }
        Mutant::SnapshotKeepsSuffix => {
            (BUGS, "bug_14_an_installed_snapshot_leaves_nothing_of_a_longer_suffix")
        }
        Mutant::SnapshotKeepsOldMembers => {
            (BUGS, "bug_15_an_installed_snapshot_brings_its_members_into_force")
        }
        Mutant::RejectionAcknowledges => (BUGS, "bug_16_a_rejection_moves_no_match_index"),
        Mutant::CommitsWithoutQuorum => (BUGS, "bug_17_nothing_is_committed_without_a_quorum"),
        Mutant::CommitsEarlierTermsByCounting => {
            (BUGS, "bug_17_an_entry_of_an_earlier_term_is_not_committed_by_counting_its_copies")
        }
        Mutant::FetchedEntriesAreNotCompared => (
            CORE,
            "raft_rs::log_view::tests::bug_18_entries_that_were_fetched_before_the_log_changed_are_not_given_out",
        ),
        Mutant::HungDiskKeepsTheLeader => {
            (BUGS, "bug_19_a_leader_whose_disk_hangs_makes_room_for_one_that_can_write")
        }
        Mutant::FullDiskTakesProposals => {
            (SLOW_DISK, "a_leader_without_another_voter_with_room_refuses_writes_and_serves_reads")
        }
        Mutant::FullDiskKeepsTheLeader => {
            (SLOW_DISK, "a_leader_with_a_full_disk_makes_room_for_one_with_space")
        }
        Mutant::DeliversBeforeMajority => (SLOW_DISK, "a_proposal_that_no_majority_has_is_not_answered"),
        Mutant::OnDiskMachineGetsUnsynced => {
            (SLOW_DISK, "a_state_machine_on_disk_is_given_nothing_that_its_own_node_may_lose")
        }
        Mutant::DeliversTwice => {
            (SLOW_DISK, "a_leader_that_loses_office_while_it_is_ahead_of_its_disk_follows")
        }
        Mutant::DeliversChangesBeforeDurable => {
            (SLOW_DISK, "a_change_of_members_and_what_follows_it_wait_for_the_leaders_own_disk")
        }
        Mutant::SlowDiskKeepsTheLeader => {
            (SLOW_DISK, "a_leader_whose_disk_is_slow_for_long_transfers_leadership_to_one_that_is_faster")
        }
        Mutant::OnlyThreadWaitsForTheDisk => {
            (NODE, "durability::a_hanging_disk_blocks_no_caller_on_a_runtime_of_one_thread")
        }
        Mutant::TransfersToTheDead => {
            (BUGS, "bug_20_a_transfer_to_a_dead_node_is_refused_and_blocks_no_caller")
        }
        Mutant::RefusedPreVoteTeachesNothing => (BUGS, "bug_21_a_refused_pre_vote_teaches_the_higher_term"),
        Mutant::SeveralVotersAtOnce => {
            (BUGS, "bug_22_a_joint_configuration_stays_until_it_is_left_on_request")
        }
        Mutant::JointIsNeverLeft => (BUGS, "bug_22_any_leader_leaves_a_joint_configuration"),
        Mutant::RemovedLeaderLeads => {
            (BUGS, "bug_23_a_leader_that_loses_its_vote_by_an_earlier_leaders_change_steps_down")
        }
        Mutant::EarlierOutcomeCounts => {
            (BUGS, "bug_24_the_outcome_of_an_earlier_attempt_to_send_a_snapshot_is_not_that_of_the_last_one")
        }
        Mutant::SnapshotOutcomeIsLost => (BUGS, "bug_24_snapshots_in_quick_succession_and_one_that_is_lost"),
        Mutant::StopsWithoutTransfer => (
            STOPPING,
            "a_leader_that_is_told_to_stop_transfers_leadership_at_once_and_what_it_had_taken_is_answered",
        ),
        Mutant::NoLeaderIsAnAnswer => {
            (STOPPING, "requests_that_come_while_no_leader_is_known_are_served_by_the_next_one")
        }
        Mutant::GivenUpCallsAreReset => (
            SHELL,
            "runtime::calls::tests::a_call_that_is_given_up_runs_to_its_end_in_its_place_and_further_ones_wait",
        ),
        Mutant::PromotesBeforeCaughtUp => (MEMBERSHIP, "a_node_that_is_behind_is_not_promoted_on_request"),
        Mutant::PromotesTheUnreached => {
            (MEMBERSHIP, "a_joining_node_that_no_majority_reaches_at_its_address_is_not_promoted")
        }
        Mutant::AcceptsStrandingChange => {
            (MEMBERSHIP, "a_change_that_leaves_no_live_majority_is_refused_and_removing_the_dead_is_not")
        }
        Mutant::RoleLeftOutOfClusterId => (
            CORE,
            "members::tests::first_members_that_differ_in_a_role_only_are_another_cluster_and_the_difference_is_named",
        ),
        Mutant::ReadsWithoutQuorum => (BUGS, "bug_26_a_leader_that_is_cut_off_answers_no_read"),
        Mutant::ReadsBeforeApplied => (BUGS, "bug_26_a_read_waits_until_its_index_is_applied"),
        Mutant::IncarnationIsNotChecked => {
            (BUGS, "bug_27_a_node_with_a_wiped_disk_is_refused_under_its_old_id")
        }
        Mutant::LossIsNotNoticed => (BUGS, "bug_27_a_node_whose_log_has_lost_what_it_acknowledged_stops"),
        Mutant::ProofOfLossIsIgnored => (
            ROLLED_BACK,
            "a_node_that_has_what_a_new_leader_lacks_stops_with_the_proof_that_writes_were_lost",
        ),
        Mutant::RolledBackMayVote => (
            ROLLED_BACK,
            "a_copy_of_an_earlier_day_is_refused_by_the_leader_that_knew_its_log_and_nothing_is_lost",
        ),
        Mutant::VotesBeforeHearing => (
            ROLLED_BACK,
            "a_node_votes_for_none_and_acknowledges_nothing_before_it_has_heard_from_the_others",
        ),
        Mutant::StartsAreNotCounted => (
            ROLLED_BACK,
            "a_copy_of_before_the_last_start_counts_fewer_starts_and_one_of_before_this_start_as_many",
        ),
        Mutant::FailedRestoreIsIgnored => {
            (NODE, "snapshots::a_restore_that_fails_stops_the_node_and_is_tried_again_at_the_next_start")
        }
        Mutant::UnfinishedSnapshotIsInstalled => {
            (SHELL, "network::tests::snapshots::damaged_and_incomplete_snapshots_leave_nothing_behind")
        }
        Mutant::DirectoryIsNotSynced => {
            (STORAGE, "snapshot_files::tests::file_is_synced_before_it_gets_its_name_and_the_directory_after")
        }
        Mutant::SnapshotIsNotSynced => {
            (STORAGE, "snapshot_files::tests::file_is_synced_before_it_gets_its_name_and_the_directory_after")
        }
        Mutant::RemovedNodeStopsAtOnce => (BUGS, "bug_30_a_removed_node_stays_until_a_majority_refuses_it"),
        Mutant::WritesAfterAFailure => {
            (STORAGE, "wal::crash_tests::failure_of_any_operation_stops_the_log_and_loses_nothing")
        }
        Mutant::LogWaitsForTheSlowest => (BUGS, "bug_34_the_log_is_cut_although_a_member_is_dead"),
        Mutant::UnflushedLogCounts => {
            (BUGS, "bug_35_a_leader_does_not_count_its_own_log_before_it_is_flushed")
        }
        Mutant::StaleAcknowledgementCounts => {
            (BUGS, "bug_35_an_acknowledgement_of_an_earlier_term_counts_for_nothing")
        }
        Mutant::CompactsBeyondTheSnapshot => (BUGS, "bug_36_compaction_never_passes_what_is_applied"),
        Mutant::BatchHasNoLimit => (SHELL, "network::tests::entries_larger_than_any_batch_arrive_whole"),
        Mutant::RepeatsEntriesOnTheirWay => (
            SHELL,
            "network::outbox::peer_queue::tests::\
             entries_that_fit_into_a_batch_are_sent_once_however_many_heartbeats_are_answered_meanwhile",
        ),
        Mutant::CommitIsNotAnnounced => (SLOW_DISK, "followers_learn_of_a_commit_before_the_next_heartbeat"),
        Mutant::BatchWaitsForEver => (SLOW_DISK, "proposals_wait_for_a_batch_no_longer_than_a_tick"),
        Mutant::RolledBackLeaderConfirmsReads => {
            (CORE, "machines::reads::tests::an_answer_below_what_was_known_to_be_committed_shows_lost_writes")
        }
        Mutant::DroppedMeansSilence => (BUGS, "bug_38_a_waiting_request_that_is_dropped_is_answered"),
        Mutant::ProposalsHaveNoDeadline => {
            (BUGS, "bug_6_a_request_that_reaches_no_majority_is_answered_when_its_deadline_passes")
        }
        Mutant::ReadsHaveNoDeadline => {
            (BUGS, "bug_6_a_request_that_reaches_no_majority_is_answered_when_its_deadline_passes")
        }
        Mutant::ForwardsForEver => (BUGS, "a_request_that_was_forwarded_is_not_forwarded_again"),
        Mutant::BrokenStreamMeansUnsent => {
            (SHELL, "network::tests::client::the_client_never_repeats_what_may_have_happened")
        }
        Mutant::RepliesMatchedByOrder => {
            (SHELL, "network::tests::streams::each_caller_gets_its_own_reply_in_whatever_order_they_come")
        }
        Mutant::StreamHasNoLimit => (
            SHELL,
            "network::tests::streams::\
             a_client_that_sends_on_and_on_is_held_back_at_the_limit_of_unanswered_requests",
        ),
        Mutant::ForwardsWithoutLimit => {
            (SHELL, "network::tests::a_node_forwards_no_more_than_it_would_take_itself")
        }
        Mutant::ChangeInForceBeforeDurable => {
            (BUGS, "bug_30_a_removed_node_stays_until_the_voters_that_need_its_vote_know_of_the_removal")
        }
        Mutant::ChangesApplyTwice => (BUGS, "bug_30_a_removed_node_that_is_started_again_stops_at_once"),
        Mutant::SignalsWaitBehindEntries => {
            (SHELL, "network::outbox::peer_queue::tests::heartbeats_and_votes_do_not_wait_behind_entries")
        }
        Mutant::PayloadIsNoSignOfLife => (
            SHELL,
            "runtime::stall_guard::tests::a_connection_that_takes_in_what_is_sent_does_not_fail_however_long_that_takes",
        ),
        Mutant::DueSnapshotIsNotHurried => (
            MEMBERSHIP,
            "a_snapshot_that_is_being_taken_at_leisure_is_hurried_when_a_joining_node_waits_for_it",
        ),
        Mutant::EarlierSnapshotIsRefused => {
            (MEMBERSHIP, "a_joining_node_is_sent_the_snapshot_from_before_it_became_a_member")
        }
        Mutant::StandInIsTakenForAMember => (
            MEMBERSHIP,
            "another_change_may_come_before_the_one_that_adds_the_receiver_of_an_earlier_snapshot",
        ),
        Mutant::NotYetMemberMeansRemoved => {
            (MEMBERSHIP, "a_joining_node_that_has_an_earlier_snapshot_and_restarts_is_not_taken_for_removed")
        }
        Mutant::TornRecordIsAccepted => {
            (STORAGE, "wal::crash_tests::power_cut_after_any_operation_loses_nothing_that_was_acknowledged")
        }
        Mutant::EntryChecksumIsNotChecked => {
            (STORAGE, "wal::tests::damaged_entry_is_noticed_when_it_is_read_and_the_others_can_be_read")
        }
        Mutant::LastRecordIsNotFlushedAgain => {
            (STORAGE, "wal::crash_tests::failure_of_any_operation_stops_the_log_and_loses_nothing")
        }
        Mutant::SnapshotChecksumIsNotChecked => {
            (STORAGE, "snapshot_files::tests::flipped_bit_anywhere_never_gives_wrong_bytes")
        }
        Mutant::RecoverPicksByLength => {
            (STORAGE, "recovery::tests::the_log_with_the_highest_last_term_is_chosen_before_a_longer_one")
        }
        Mutant::RecoverKeepsClusterId => (
            STORAGE,
            "recovery::tests::a_recovered_directory_is_a_cluster_of_its_node_alone_and_keeps_all_entries",
        ),
        Mutant::RecoverKeepsOtherMembers => (
            STORAGE,
            "recovery::tests::a_recovered_directory_is_a_cluster_of_its_node_alone_and_keeps_all_entries",
        ),
        Mutant::RestoreKeepsClusterId => {
            (STORAGE, "restore::tests::a_restored_cluster_has_the_state_a_new_id_and_only_the_given_members")
        }
        Mutant::CheckTrustsSnapshotData => (STORAGE, "check::tests::damaged_data_of_a_snapshot_is_named"),
        Mutant::FailedApplyIsSkipped => {
            (NODE, "state_machine::an_apply_that_fails_stops_the_node_and_is_not_skipped")
        }
        Mutant::SlowReaderHoldsUpTheNode => {
            (SHELL, "channels::node_events::tests::a_reader_that_reads_nothing_does_not_hold_up_the_node")
        }
        Mutant::MissedEventsAreNotReported => {
            (SHELL, "channels::node_events::tests::a_slow_reader_is_told_exactly_how_many_events_it_missed")
        }
        Mutant::RefusedQueryIsSilent => {
            (NODE, "overload::a_query_that_panics_when_it_is_dropped_unanswered_does_not_stop_the_raft_loop")
        }
        Mutant::AnsweredBytesStayCounted => (
            NODE,
            "overload::the_limit_counts_what_is_held_and_what_it_refuses_is_not_encoded_and_has_no_effect",
        ),
    };
    TestName { target, name }
}
