//! The node itself: its settings, its clock, and the identity of its directory.

use std::time::Duration;

use crate::config::CheckedConfig;
use crate::error::{JoinError, StopReason};
use crate::request::Responder;
use crate::turn::TurnNumber;
use crate::types::{Identity, Incarnation, NodeId};

/// See the module.
pub(crate) struct LocalNode {
    id: NodeId,
    address: String,
    config: CheckedConfig,
    now_ticks: u64,
    identity: Option<Identity>,
    /// Requests that wait until the identity is durable, each with the turn that writes it.
    identity_waiters: Vec<(TurnNumber, Responder<(), JoinError>)>,
}

impl LocalNode {
    pub(crate) fn new(
        id: NodeId,
        address: String,
        config: CheckedConfig,
        identity: Option<Identity>,
    ) -> LocalNode {
        LocalNode { id, address, config, now_ticks: 0, identity, identity_waiters: Vec::new() }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// The address at which the other nodes reach it.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn config(&self) -> &CheckedConfig {
        &self.config
    }

    // --- Clock ---

    /// How many ticks have passed since the start.
    pub(crate) fn now(&self) -> u64 {
        self.now_ticks
    }

    pub(crate) fn tick(&mut self) {
        self.now_ticks += 1;
    }

    pub(crate) fn ticks(&self, span: Duration) -> u64 {
        self.config.ticks(span)
    }

    /// The tick at which `timeout` will have passed.
    pub(crate) fn deadline(&self, timeout: Duration) -> u64 {
        self.now_ticks.saturating_add(self.config.ticks(timeout))
    }

    // --- Identity ---

    /// `None` while this node belongs to no cluster.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity
    }

    pub(crate) fn incarnation(&self) -> Option<Incarnation> {
        self.identity.map(|identity| identity.incarnation)
    }

    /// This node takes an identity, which `turn` writes. `reply` is answered when that turn is durable.
    pub(crate) fn take_identity(
        &mut self,
        identity: Identity,
        turn: TurnNumber,
        reply: Responder<(), JoinError>,
    ) {
        self.identity = Some(identity);
        self.identity_waiters.push((turn, reply));
    }

    /// Answers when the present identity of this node is durable.
    pub(crate) fn confirm_identity(&mut self, reply: Responder<(), JoinError>) {
        match self.identity_waiters.last() {
            Some(&(turn, _)) => self.identity_waiters.push((turn, reply)),
            None => reply.answer(Ok(())),
        }
    }

    /// All turns up to `turn` are durable.
    pub(crate) fn written(&mut self, turn: TurnNumber) {
        for (_, reply) in self.identity_waiters.extract_if(.., |(with, _)| *with <= turn) {
            reply.answer(Ok(()));
        }
    }

    pub(crate) fn stop(&mut self, reason: &StopReason) {
        for (_, reply) in self.identity_waiters.drain(..) {
            reply.answer(Err(reason.clone().into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver};

    use super::*;
    use crate::config::Config;
    use crate::types::ClusterId;

    fn responder() -> (Responder<(), JoinError>, Receiver<Result<(), JoinError>>) {
        let (answered, answer) = mpsc::channel();
        (Responder::new(move |outcome| answered.send(outcome).unwrap()), answer)
    }

    #[test]
    fn a_second_request_for_the_same_identity_waits_for_the_same_write() {
        let identity =
            Identity { cluster_id: ClusterId(1), node_id: NodeId::FIRST, incarnation: Incarnation(2) };
        let config = Config::default().check().unwrap();
        let mut node = LocalNode::new(NodeId::FIRST, "node-1:1".to_owned(), config, None);
        let (first, first_answer) = responder();
        let (second, second_answer) = responder();
        node.take_identity(identity, TurnNumber(3), first);
        node.confirm_identity(second);
        node.written(TurnNumber(2));
        assert!(first_answer.try_recv().is_err() && second_answer.try_recv().is_err());
        node.written(TurnNumber(3));
        assert!(matches!((first_answer.try_recv(), second_answer.try_recv()), (Ok(Ok(())), Ok(Ok(())))));

        let (third, third_answer) = responder();
        node.confirm_identity(third);
        assert!(matches!(third_answer.try_recv(), Ok(Ok(()))), "it is durable already");
    }
}
