//! Faults of the data directory of a node: flipped bits, loss, and replacement by an older copy.

use rand::RngExt;
use tokio::time::Instant;

use crate::bits::Aim;
use crate::cluster::Trouble;
use crate::faults::Fault;
use crate::http::Connection;
use crate::links::Party;
use crate::nemesis::{Nemesis, REFUSAL_PATIENCE, SERVICE_PATIENCE};
use crate::node::Program;
use crate::recovery::Flip;

impl Nemesis<'_> {
    /// Flips a bit of a node that is down. The node must refuse to start, or work as before.
    pub(crate) async fn flip_bit(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let mut connection = Connection::new(self.cluster.node(place).endpoints.web.clone());
        // Makes sure that there is a snapshot to damage; a failure of this call is not a failure of the test.
        let _ = connection.ask("POST", "/snapshot", b"", SERVICE_PATIENCE).await;
        let id = self.cluster.id_of(place).await?;
        self.cluster.node(place).kill()?;
        let told = self.measure_service(Fault::FlippedBit).await;
        // A damaged last record looks like a torn write: it is dropped, as after a crash. So no other node
        // may depend on this node's copy.
        self.cluster.wait_until_others_caught_up(place).await?;
        let must_notice = self.figures.of(Fault::FlippedBit).count.is_multiple_of(2);
        let aim = if must_notice { Aim::Noticed } else { Aim::Anything };
        let bit = self.cluster.node(place).flip(aim, &mut self.random)?;
        self.cluster.start_node(place)?;
        let (flip, outcome) = match self.cluster.ends_or_is_healthy(place).await? {
            None if must_notice => return Err(Trouble::Undetected(place, bit)),
            None => (Flip::Undetected, "no effect".to_owned()),
            Some(end) if end.is_about_damage() => {
                self.replace_down(place, Some(id)).await?;
                (Flip::Refused, format!("refused ({}), replaced", end.error.unwrap_or_default()))
            }
            Some(end) => return Err(Trouble::Ended(place, end)),
        };
        *self.figures.flips.entry(flip).or_default() += 1;
        self.heal_and_measure(Fault::FlippedBit, &format!("{what}, {bit}: {outcome}"), &told).await
    }

    /// A node starts without its data and with its first arguments: it claims its old id or, if it had
    /// joined, its old address under a new id. It must be refused, stop, and report why.
    pub(crate) async fn wipe_directory(&mut self, leader: Option<Party>) -> Result<(), Trouble> {
        let order = self.victims(leader, self.cluster.places().len());
        let has_its_first_id = |place: &&Party| self.cluster.nodes[**place - 1].program == Program::Static;
        // Those first, because they become fewer.
        let place = order.iter().find(has_its_first_id).or(order.first()).copied().unwrap_or(1);
        let id = self.cluster.id_of(place).await?;
        let node = self.cluster.node(place);
        node.kill()?;
        node.wipe()?;
        let program = node.program;
        let (claim, refusal) = match program {
            Program::Static => ("id", "was wiped or replaced".to_owned()),
            Program::Dynamic => ("address", format!("it belongs to node {id}")),
        };
        self.cluster.start_node(place)?;
        let told = self.measure_service(Fault::WipedDirectory).await;
        let begin = Instant::now();
        loop {
            match self.cluster.ends(place, REFUSAL_PATIENCE).await? {
                Some(end) if end.says(&refusal) => break,
                // There was no leader, and the node had no id before its deadline: start it again.
                Some(_) if program == Program::Dynamic && begin.elapsed() < REFUSAL_PATIENCE => {
                    self.cluster.start_node(place)?;
                }
                Some(end) => return Err(Trouble::Ended(place, end)),
                None => return Err(Trouble::Undetected(place, "its directory was wiped".to_owned())),
            }
        }
        self.cluster.node(place).wipe()?;
        self.cluster.remove(place, id).await?;
        self.cluster.join(place).await?;
        let what = format!("[{place}], which claimed its old {claim}");
        self.heal_and_measure(Fault::WipedDirectory, &what, &told).await
    }

    /// A node starts with a copy of its directory from before its last starts. It has forgotten later
    /// acknowledgements, so all other nodes must refuse it: it stops, and reports why.
    pub(crate) async fn roll_back_directory(&mut self, leader: Option<Party>) -> Result<(), Trouble> {
        let place = self.victim(leader);
        let id = self.cluster.id_of(place).await?;
        self.cluster.node(place).kill()?;
        self.cluster.node(place).copy_aside()?;
        // A copy from before two starts has a lower start count than the others know, one from before the
        // last start an equal one.
        let starts = self.random.random_range(1..=2);
        for _ in 0..starts {
            self.cluster.node(place).kill()?;
            self.cluster.start_node(place)?;
            self.wait_until_healthy().await?;
        }
        self.cluster.node(place).kill()?;
        self.cluster.node(place).put_back()?;
        self.cluster.start_node(place)?;
        let told = self.measure_service(Fault::RolledBackDirectory).await;
        let refusals = ["with an older copy of its data directory", "have been started for the"];
        match self.cluster.ends(place, REFUSAL_PATIENCE).await? {
            Some(end) if refusals.iter().any(|refusal| end.says(refusal)) => {}
            Some(end) => return Err(Trouble::Ended(place, end)),
            None => return Err(Trouble::Undetected(place, "its directory was rolled back".to_owned())),
        }
        self.replace_down(place, Some(id)).await?;
        let what = format!("[{place}], to before its last {starts} starts");
        self.heal_and_measure(Fault::RolledBackDirectory, &what, &told).await
    }

    /// Replaces a node that is down and whose directory is unusable by one with a new id.
    pub(crate) async fn replace_down(
        &mut self,
        place: Party,
        id: Option<raftify::NodeId>,
    ) -> Result<(), Trouble> {
        let id = match id {
            Some(id) => Some(id),
            None => self.id_at_address(place).await,
        };
        self.cluster.node(place).wipe()?;
        if let Some(id) = id {
            self.cluster.remove(place, id).await?;
        }
        self.cluster.join(place).await
    }

    /// The id that the other nodes know for this slot's address.
    async fn id_at_address(&self, place: Party) -> Option<raftify::NodeId> {
        let address = &self.cluster.nodes[place - 1].addresses.raft;
        for other in self.cluster.places().into_iter().filter(|other| *other != place) {
            if let Some(inspection) = self.cluster.inspect(other).await {
                let member = inspection.status.members.iter().find(|member| &member.address == address);
                return member.map(|member| member.id);
            }
        }
        None
    }
}
