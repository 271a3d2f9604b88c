//! The state that a node reports when it starts, and its progress since.
//!
//! The state that a node *found* when it started is compared with the last state that it reported in an
//! earlier run. Messages of one run may overtake each other, so that they are not compared with each other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, LogIndex, NodeId, RunId, Term};

/// The durable progress of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DurableState {
    /// How many times it was started on its directory.
    pub starts: u64,
    /// The newest term.
    pub term: Term,
    /// The node that it voted for in that term.
    pub vote: Option<NodeId>,
    /// In the state found at a start: the end of its log. In a reported state: the index up to which its log
    /// agrees with that of the leader of the term. Within a term no log falls behind that index: a
    /// leader never removes its entries, and a node ignores an older snapshot of it.
    pub index: LogIndex,
}

impl DurableState {
    /// Whether a node that found this state at its start has lost some of the state that it had reported
    /// before.
    pub fn is_behind(&self, told: &DurableState) -> bool {
        let lacks_vote = told.vote.is_some() && self.vote != told.vote;
        self.starts <= told.starts
            || self.term < told.term
            || (self.term == told.term && (self.index < told.index || lacks_vote))
    }

    /// Adds a later report of the same run.
    pub(crate) fn tells(&mut self, term: Term, vote: Option<NodeId>, index: LogIndex) {
        if term > self.term {
            *self = DurableState { term, vote, index, ..*self };
        } else if term == self.term {
            self.vote = self.vote.or(vote);
            self.index = self.index.max(index);
        }
    }
}

impl fmt::Display for DurableState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DurableState { starts, term, vote, index } = self;
        write!(f, "start {starts}, term {term}, ")?;
        match vote {
            Some(vote) => write!(f, "vote for node {vote}, ")?,
            None => write!(f, "no vote, ")?,
        }
        write!(f, "log up to {index}")
    }
}

/// One start of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Started {
    /// Random, generated at this start: two runs that count the same number of starts are not the same.
    pub run: RunId,
    /// The state found at the start.
    pub found: DurableState,
}

/// The remembered state of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerRecord {
    /// The incarnation of its directory.
    pub incarnation: Incarnation,
    /// Its last run.
    pub run: RunId,
    /// The maximum of the states that it reported in that run and in the runs before.
    pub told: DurableState,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durable_state(starts: u64, term: u64, vote: u64, index: u64) -> DurableState {
        DurableState { starts, term: Term(term), vote: NodeId::new(vote), index: LogIndex(index) }
    }

    #[test]
    fn a_node_that_starts_with_less_than_it_reported_is_behind_and_one_in_a_later_term_may_have_truncated_its_log()
     {
        let told = durable_state(4, 7, 2, 100);
        for behind in
            [(4, 7, 2, 100), (3, 9, 2, 900), (5, 6, 2, 100), (5, 7, 2, 99), (5, 7, 0, 100), (5, 7, 3, 100)]
        {
            let (starts, term, vote, index) = behind;
            assert!(durable_state(starts, term, vote, index).is_behind(&told), "{behind:?}");
        }
        for level in [(5, 7, 2, 100), (5, 7, 2, 101), (9, 8, 0, 3), (5, 8, 1, 100)] {
            let (starts, term, vote, index) = level;
            assert!(!durable_state(starts, term, vote, index).is_behind(&told), "{level:?}");
        }
        assert!(!durable_state(5, 7, 3, 100).is_behind(&durable_state(4, 7, 0, 100)), "no vote was told");
    }

    #[test]
    fn what_comes_late_takes_nothing_back() {
        let mut told = durable_state(1, 7, 0, 10);
        told.tells(Term(7), NodeId::new(3), LogIndex(8));
        assert_eq!(told, durable_state(1, 7, 3, 10));
        told.tells(Term(6), NodeId::new(1), LogIndex(50));
        told.tells(Term(7), None, LogIndex(12));
        assert_eq!(told, durable_state(1, 7, 3, 12));
        told.tells(Term(8), None, LogIndex(5));
        assert_eq!(told, durable_state(1, 8, 0, 5));
    }
}
