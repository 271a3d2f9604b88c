//! Terms: who hears of a higher term takes it over (thesis, figure 3.1, rules for all servers). Votes asked for are left
//! out, which a node may refuse to hear while it follows a leader (section 4.2.3), and so is what raises no term (pre-vote,
//! section 9.6).

use raftify_core::{NodeId, RaftMessage, RaftMessageBody, Term};

use super::Checked;

/// The term that `message` must teach, if any. A node whose log is not durable yet does not hear answers to a candidacy.
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

/// `node` has heard of `taught`, and is in term `now`.
pub(crate) fn learns(node: NodeId, taught: Term, now: Term) -> Checked {
    if now >= taught {
        return Ok(());
    }
    Err(format!("terms: {node} stays in term {now}, though it was told of term {taught}"))
}

#[cfg(test)]
mod tests {
    use raftify_core::LogPosition;

    use super::*;

    #[test]
    fn who_does_not_take_over_a_higher_term_is_rejected() {
        learns(NodeId::FIRST, Term(3), Term(3)).unwrap();
        learns(NodeId::FIRST, Term(3), Term(4)).unwrap();
        learns(NodeId::FIRST, Term(4), Term(3)).unwrap_err();
    }

    #[test]
    fn a_granted_pre_vote_teaches_nothing_and_a_refused_one_its_term() {
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
