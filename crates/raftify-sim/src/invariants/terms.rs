//! Terms: a node that receives a higher term adopts it (thesis, figure 3.1, rules for all servers). Vote
//! requests are excluded, because a node may ignore them while it follows a leader (section 4.2.3), and so
//! are messages that raise no term (pre-vote, section 9.6).

use raftify_core::{NodeId, RaftMessage, RaftMessageBody, Term};

use super::Checked;

/// The term that the receiver of `message` must adopt, if any. A node whose log is not durable yet ignores
/// answers to a candidacy.
pub(crate) fn taught_by(message: &RaftMessage, is_log_durable: bool) -> Option<Term> {
    match message.body {
        RaftMessageBody::AppendResponse { .. }
        | RaftMessageBody::Heartbeat { .. }
        | RaftMessageBody::HeartbeatResponse { .. } => Some(message.term),
        RaftMessageBody::VoteResponse { granted: false, .. }
        | RaftMessageBody::PreVoteResponse { granted: false, .. } => is_log_durable.then_some(message.term),
        _ => None,
    }
}

/// `node` has received `taught`, and is in term `now`.
pub(crate) fn learns(node: NodeId, taught: Term, now: Term) -> Checked {
    if now >= taught {
        return Ok(());
    }
    Err(format!("terms: {node} stays in term {now}, though it has received term {taught}"))
}

#[cfg(test)]
mod tests {
    use raftify_core::LogPosition;

    use super::*;

    #[test]
    fn a_node_that_does_not_adopt_a_higher_term_is_rejected() {
        learns(NodeId::FIRST, Term(3), Term(3)).unwrap();
        learns(NodeId::FIRST, Term(3), Term(4)).unwrap();
        learns(NodeId::FIRST, Term(4), Term(3)).unwrap_err();
    }

    #[test]
    fn a_granted_pre_vote_raises_no_term_and_a_refused_one_does() {
        let answer = |granted| RaftMessage {
            from: NodeId::FIRST,
            to: NodeId::FIRST,
            term: Term(7),
            body: RaftMessageBody::PreVoteResponse { granted, commit: LogPosition::ZERO },
        };
        assert_eq!(taught_by(&answer(true), true), None);
        assert_eq!(taught_by(&answer(false), true), Some(Term(7)));
        assert_eq!(taught_by(&answer(false), false), None);
    }
}
