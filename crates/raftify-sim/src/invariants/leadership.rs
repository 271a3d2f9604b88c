//! Leadership: no node leads without a vote in the membership in force (thesis, section 4.2.2), or with a
//! disk that has hung for longer than the settings allow, so that another node can take over (a promise of
//! the README). And leadership is not transferred to an inactive node: proposals would wait in vain (section
//! 3.10).

use raftify_core::NodeId;

use super::Checked;

/// `node` leads; `has_vote` in the membership that is in force there.
pub(crate) fn leads(node: NodeId, has_vote: bool) -> Checked {
    if has_vote {
        return Ok(());
    }
    Err(format!("leadership: {node} leads, and has no vote"))
}

/// `node` leads, and its oldest write has been pending for `stalled_ticks`, where `most_ticks` are allowed.
pub(crate) fn leads_with_disk(node: NodeId, stalled_ticks: u64, most_ticks: u64) -> Checked {
    if stalled_ticks <= most_ticks {
        return Ok(());
    }
    Err(format!(
        "leadership: {node} leads, though its disk has hung for {stalled_ticks} ticks, more than {most_ticks}"
    ))
}

/// `leader` was asked to transfer its leadership to `to`, from which it has received no message for an
/// election timeout.
pub(crate) fn transfers_to_inactive(leader: NodeId, to: NodeId, is_answered: bool) -> Checked {
    if is_answered {
        return Ok(());
    }
    Err(format!("leadership: {leader} begins a transfer to {to}, which has been inactive for long"))
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
    fn a_transfer_to_an_inactive_node_is_rejected() {
        transfers_to_inactive(NodeId::FIRST, NodeId::FIRST, true).unwrap();
        transfers_to_inactive(NodeId::FIRST, NodeId::FIRST, false).unwrap_err();
    }
}
