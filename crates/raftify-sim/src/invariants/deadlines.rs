//! Deadlines: a node answers or forwards each request before its deadline by that node's clock, whatever
//! fails around it; and a request is forwarded to a leader only once (thesis, section 6.2). A promise of the
//! README; Raft itself has no deadlines.

use std::sync::{Arc, Weak};

use raftify_core::NodeId;

use super::Checked;

/// Owned by a request for as long as the node has it.
pub(crate) struct Waits(#[expect(dead_code, reason = "only its existence matters")] Arc<()>);

/// The deadlines of one run of a node.
#[derive(Default)]
pub(crate) struct Deadlines {
    now_ticks: u64,
    waiting: Vec<(u64, Weak<()>, &'static str)>,
}

impl Deadlines {
    /// Ticks since the node started.
    pub(crate) fn now_ticks(&self) -> u64 {
        self.now_ticks
    }

    /// The node receives the request `what`, and has `most_ticks` for it.
    pub(crate) fn asked(&mut self, what: &'static str, most_ticks: u64) -> Waits {
        let waits = Arc::new(());
        self.waiting.push((self.now_ticks + most_ticks, Arc::downgrade(&waits), what));
        Waits(waits)
    }

    /// The node has processed one more tick.
    pub(crate) fn tick(&mut self, node: NodeId) -> Checked {
        self.now_ticks += 1;
        self.waiting.retain(|(_, waits, _)| waits.strong_count() > 0);
        match self.waiting.iter().find(|(until, ..)| *until < self.now_ticks) {
            Some((until, _, what)) => Err(format!(
                "deadlines: {node} still has {what} at tick {}, whose deadline was tick {until}",
                self.now_ticks
            )),
            None => Ok(()),
        }
    }
}

/// `node` forwards a request, which may have been forwarded to it.
pub(crate) fn forwards(node: NodeId, was_forwarded: bool) -> Checked {
    match was_forwarded {
        true => Err(format!("forwarding: {node} forwards a forwarded request")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_pending_beyond_its_deadline_is_rejected() {
        let mut deadlines = Deadlines::default();
        let (read, write) = (deadlines.asked("a read", 1), deadlines.asked("a write", 2));
        deadlines.tick(NodeId::FIRST).unwrap();
        drop(read);
        deadlines.tick(NodeId::FIRST).expect("the read was answered in time");
        deadlines.tick(NodeId::FIRST).unwrap_err();
        drop(write);
        deadlines.tick(NodeId::FIRST).unwrap();
    }

    #[test]
    fn a_request_that_is_forwarded_twice_is_rejected() {
        forwards(NodeId::FIRST, false).unwrap();
        forwards(NodeId::FIRST, true).unwrap_err();
    }
}
