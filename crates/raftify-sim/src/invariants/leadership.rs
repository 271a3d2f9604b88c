//! Who may lead: not who has no vote in the membership in force (thesis, section 4.2.2), nor who could not write for longer
//! than the settings allow, so that another one can take over (a promise of the README). And leadership is not handed to
//! who is not heard of: proposals would wait for nothing (section 3.10).

use raftify_core::NodeId;

use super::Checked;

/// `node` leads; `has_vote` in the membership that is in force there.
pub(crate) fn leads(node: NodeId, has_vote: bool) -> Checked {
    if has_vote {
        return Ok(());
    }
    Err(format!("leadership: {node} leads, and has no vote"))
}

/// `node` leads, and its oldest write has been under way for `stalled_ticks`, where `most_ticks` are allowed.
pub(crate) fn leads_with_disk(node: NodeId, stalled_ticks: u64, most_ticks: u64) -> Checked {
    if stalled_ticks <= most_ticks {
        return Ok(());
    }
    Err(format!(
        "leadership: {node} leads, though its disk has hung for {stalled_ticks} ticks, more than {most_ticks}"
    ))
}

/// `leader` was asked to hand over to `to`, of whom it has heard nothing for an election timeout.
pub(crate) fn hands_over_to_silent(leader: NodeId, to: NodeId, is_answered: bool) -> Checked {
    if is_answered {
        return Ok(());
    }
    Err(format!("leadership: {leader} begins to hand over to {to}, of whom it heard nothing for long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_without_a_vote_or_a_disk_is_rejected() {
        leads(NodeId::FIRST, true).unwrap();
        leads(NodeId::FIRST, false).unwrap_err();
        leads_with_disk(NodeId::FIRST, 10, 10).unwrap();
        leads_with_disk(NodeId::FIRST, 11, 10).unwrap_err();
    }

    #[test]
    fn a_hand_over_to_the_dead_is_rejected() {
        hands_over_to_silent(NodeId::FIRST, NodeId::FIRST, true).unwrap();
        hands_over_to_silent(NodeId::FIRST, NodeId::FIRST, false).unwrap_err();
    }
}
