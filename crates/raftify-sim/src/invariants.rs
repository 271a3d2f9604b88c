//! The invariants, checked after every step: one property in each file, with its source.
//!
//! Each receives its data as plain numbers, remembers what it has observed, and reports contradictions. None
//! relies on another one, or on a report of a core where the simulator can observe the fact itself.

pub(crate) mod answers;
pub(crate) mod bounded_log;
pub(crate) mod commit;
pub(crate) mod committed_entries;
pub(crate) mod deadlines;
pub(crate) mod durable_state;
pub(crate) mod election_safety;
pub(crate) mod leader_append_only;
pub(crate) mod leader_completeness;
pub(crate) mod leadership;
pub(crate) mod live_majority;
pub(crate) mod log_matching;
pub(crate) mod membership;
pub(crate) mod reads;
pub(crate) mod state_machine_safety;
pub(crate) mod storage_reserve;
pub(crate) mod terms;
pub(crate) mod transfers;

/// `Err` describes the violation.
pub(crate) type Checked = Result<(), String>;

/// All invariants.
#[derive(Default)]
pub(crate) struct Invariants {
    pub(crate) answers: answers::Answers,
    pub(crate) committed: committed_entries::CommittedEntries,
    pub(crate) durable: durable_state::DurableState,
    pub(crate) elections: election_safety::ElectionSafety,
    pub(crate) completeness: leader_completeness::LeaderCompleteness,
    pub(crate) live_majority: live_majority::LiveMajority,
    pub(crate) logs: log_matching::LogMatching,
    pub(crate) membership: membership::Membership,
    pub(crate) reads: reads::Reads,
    pub(crate) states: state_machine_safety::StateMachineSafety,
}
