//! A leader whose disk has less free space than its reserve takes no proposals.

use raftify_core::storage::Write;
use raftify_core::{EntryKind, NodeId, Role, Status};

use super::Checked;

/// `node` decides on this write.
pub(crate) fn writes(node: NodeId, status: &Status, disk_is_full: bool, write: &Write) -> Checked {
    let takes_proposals = status.role == Role::Leader
        && write
            .append
            .iter()
            .any(|entry| entry.kind == EntryKind::User && entry.position.term == status.term);
    if disk_is_full && takes_proposals {
        return Err(format!("storage reserve: leader {node} takes proposals although its disk is full"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use raftify_core::{Entry, LogIndex, LogPosition, Members, Term};

    use super::*;

    #[test]
    fn a_leader_with_a_full_disk_that_takes_a_proposal_is_rejected() {
        let node = NodeId::new(1).unwrap();
        let (last, truncated) = (LogPosition::new(2, 5), LogPosition::ZERO);
        let status = Status {
            node_id: node,
            identity: None,
            role: Role::Leader,
            term: Term(2),
            leader_id: Some(node),
            commit: LogIndex(5),
            applied: LogIndex(5),
            last,
            truncated,
            snapshot: None,
            members: Members::none().into(),
        };
        let write = |kind| {
            let entry = Entry { position: LogPosition::new(2, 6), kind, payload: Default::default() };
            Write { append: vec![entry], ..Write::default() }
        };
        writes(node, &status, false, &write(EntryKind::User)).unwrap();
        writes(node, &status, true, &write(EntryKind::Empty)).unwrap();
        writes(node, &status, true, &write(EntryKind::User)).unwrap_err();
        let follower = Status { role: Role::Follower, ..status };
        writes(node, &follower, true, &write(EntryKind::User)).unwrap();
    }
}
