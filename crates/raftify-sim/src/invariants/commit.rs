//! The commit index never decreases while a node runs, and never exceeds the entries that a quorum holds
//! *durably*; in a joint configuration, a quorum of both halves (thesis, sections 3.5, 3.8 and 4.3). A leader
//! commits by counting copies only entries of its own term (section 3.6.2, figure 3.7), and counts only
//! existing copies (figure 3.1, `matchIndex`).

use std::collections::BTreeSet;

use raftify_core::members::Configuration;
use raftify_core::{LogIndex, NodeId, Term};

use super::Checked;

/// The commit index of a running node changes from `before` to `now`.
pub(crate) fn moves(node: NodeId, before: LogIndex, now: LogIndex) -> Checked {
    if now >= before {
        return Ok(());
    }
    Err(format!("commit index: that of {node} decreases from {before} to {now}"))
}

/// `leader` of `term` commits up to `index`, where an entry of `entry_term` is.
pub(crate) fn leader_commits_of_term(
    leader: NodeId,
    term: Term,
    index: LogIndex,
    entry_term: Term,
) -> Checked {
    if entry_term == term {
        return Ok(());
    }
    Err(format!(
        "commit index: leader {leader} of term {term} commits up to {index}, which is of term {entry_term}"
    ))
}

/// `leader` assumes that `follower` has its log up to `index`; `holds` returns whether that is durable there.
pub(crate) fn leader_counts(leader: NodeId, follower: NodeId, index: LogIndex, holds: bool) -> Checked {
    if holds {
        return Ok(());
    }
    Err(format!(
        "commit index: leader {leader} wrongly assumes that {follower} holds its log up to {index} durably"
    ))
}

/// `leader` commits `index`, while one of `configurations` is in force; `holds` returns whether a node has it
/// durably.
pub(crate) fn leader_commits(
    leader: NodeId,
    index: LogIndex,
    configurations: &[Configuration],
    holds: impl Fn(NodeId) -> bool,
) -> Checked {
    if configurations.iter().any(|configuration| has_quorum(configuration, &holds)) {
        return Ok(());
    }
    let voters = configurations.iter().flat_map(|all| all.voters.union(&all.voters_outgoing));
    let holders: BTreeSet<NodeId> = voters.copied().filter(|voter| holds(*voter)).collect();
    Err(format!(
        "commit index: leader {leader} commits {index}, which only {holders:?} hold durably, of {configurations:?}"
    ))
}

/// Whether the nodes for which `counts` is true are a quorum of `configuration`, of both halves if it is a
/// joint one.
pub(crate) fn has_quorum(configuration: &Configuration, counts: impl Fn(NodeId) -> bool) -> bool {
    let is_majority =
        |voters: &BTreeSet<NodeId>| voters.iter().filter(|voter| counts(**voter)).count() > voters.len() / 2;
    is_majority(&configuration.voters)
        && (configuration.voters_outgoing.is_empty() || is_majority(&configuration.voters_outgoing))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId::new(*id).unwrap()).collect()
    }

    #[test]
    fn a_decreasing_commit_index_is_rejected() {
        moves(NodeId::FIRST, LogIndex(3), LogIndex(3)).unwrap();
        moves(NodeId::FIRST, LogIndex(3), LogIndex(2)).unwrap_err();
    }

    #[test]
    fn entries_of_earlier_terms_and_missing_copies_do_not_count() {
        leader_commits_of_term(NodeId::FIRST, Term(4), LogIndex(3), Term(4)).unwrap();
        leader_commits_of_term(NodeId::FIRST, Term(4), LogIndex(3), Term(2)).unwrap_err();
        leader_counts(NodeId::FIRST, NodeId::FIRST, LogIndex(3), true).unwrap();
        leader_counts(NodeId::FIRST, NodeId::FIRST, LogIndex(3), false).unwrap_err();
    }

    #[test]
    fn a_commit_without_a_durable_quorum_is_rejected() {
        let simple = Configuration { voters: ids(&[1, 2, 3]), ..Configuration::default() };
        let check = |configuration: &Configuration, holders: &[u64]| {
            let holders = ids(holders);
            let all = [configuration.clone()];
            leader_commits(NodeId::FIRST, LogIndex(9), &all, |node| holders.contains(&node))
        };
        check(&simple, &[1, 3]).unwrap();
        check(&simple, &[1]).unwrap_err();
        check(&simple, &[1, 4, 5]).unwrap_err();
        let joint = Configuration { voters_outgoing: ids(&[3, 4, 5]), ..simple };
        check(&joint, &[1, 3, 4]).unwrap();
        check(&joint, &[1, 2, 3]).unwrap_err();
        check(&joint, &[3, 4, 5]).unwrap_err();
    }
}
