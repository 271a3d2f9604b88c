//! The commit index never falls while a node runs, and never goes beyond what a quorum holds *durably*; in a joint
//! configuration, a quorum of both halves (thesis, sections 3.5, 3.8 and 4.3).

use std::collections::BTreeSet;

use raftify_core::members::Configuration;
use raftify_core::{LogIndex, NodeId};

use super::Checked;

#[derive(Default)]
pub(crate) struct Commit;

impl Commit {
    /// The commit index of a running node goes from `before` to `now`.
    pub(crate) fn moves(&self, node: NodeId, before: LogIndex, now: LogIndex) -> Checked {
        if now >= before {
            return Ok(());
        }
        Err(format!("commit index: that of {node} falls from {before} to {now}"))
    }

    /// `leader` commits `index`, while one of `configurations` is in force; `holds` tells whose disk has it.
    pub(crate) fn leader_commits(
        &self,
        leader: NodeId,
        index: LogIndex,
        configurations: &[Configuration],
        holds: impl Fn(NodeId) -> bool,
    ) -> Checked {
        let is_quorum = |voters: &BTreeSet<NodeId>| {
            voters.iter().filter(|voter| holds(**voter)).count() > voters.len() / 2
        };
        let agrees = |configuration: &Configuration| {
            is_quorum(&configuration.voters)
                && (configuration.voters_outgoing.is_empty() || is_quorum(&configuration.voters_outgoing))
        };
        if configurations.iter().any(agrees) {
            return Ok(());
        }
        let voters = configurations.iter().flat_map(|all| all.voters.union(&all.voters_outgoing));
        let holders: BTreeSet<NodeId> = voters.copied().filter(|voter| holds(*voter)).collect();
        Err(format!(
            "commit index: leader {leader} commits {index}, which only {holders:?} hold durably, of {configurations:?}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId::new(*id).unwrap()).collect()
    }

    #[test]
    fn a_commit_index_that_falls_is_rejected() {
        Commit.moves(NodeId::FIRST, LogIndex(3), LogIndex(3)).unwrap();
        Commit.moves(NodeId::FIRST, LogIndex(3), LogIndex(2)).unwrap_err();
    }

    #[test]
    fn a_commit_without_a_durable_quorum_is_rejected() {
        let simple = Configuration { voters: ids(&[1, 2, 3]), ..Configuration::default() };
        let check = |configuration: &Configuration, holders: &[u64]| {
            let holders = ids(holders);
            let all = [configuration.clone()];
            Commit.leader_commits(NodeId::FIRST, LogIndex(9), &all, |node| holders.contains(&node))
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
