//! What goes wrong with the data directory of a node: bits change, it is lost, or replaced by an older copy.

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
    /// A bit of a node that is down is turned. It must refuse to start, or be as good as before.
    pub(crate) async fn flip_bit(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let mut connection = Connection::new(self.cluster.node(place).doors.web.clone());
        // So that there is a snapshot that can be hit; whether there is one is not what is tried.
        let _ = connection.ask("POST", "/snapshot", b"", SERVICE_PATIENCE).await;
        let id = self.cluster.id_of(place).await?;
        self.cluster.node(place).kill()?;
        let told = self.measure_service(Fault::FlippedBit).await;
        // A last record that is damaged looks like one that was being written: it is dropped, as after a crash. So
        // nobody may depend on this node's copy any more.
        self.cluster.wait_until_others_have_all(place).await?;
        let must_notice = self.figures.of(Fault::FlippedBit).count.is_multiple_of(2);
        let aim = if must_notice { Aim::Noticed } else { Aim::Anything };
        let bit = self.cluster.node(place).flip(aim, &mut self.random)?;
        self.cluster.start_node(place)?;
        let (flip, outcome) = match self.cluster.ends_or_is_well(place).await? {
            None if must_notice => return Err(Trouble::Unnoticed(place, bit)),
            None => (Flip::Unnoticed, "as good as before".to_owned()),
            Some(end) if end.is_about_damage() => {
                self.replace_down(place, Some(id)).await?;
                (Flip::Refused, format!("refused ({}), replaced", end.error.unwrap_or_default()))
            }
            Some(end) => return Err(Trouble::Ended(place, end)),
        };
        *self.figures.flips.entry(flip).or_default() += 1;
        self.heal_and_measure(Fault::FlippedBit, &format!("{what}, {bit}: {outcome}"), &told).await
    }

    /// A node comes back without what it knew, with the words with which it began: it claims its old id or, if it had
    /// joined, its old address for a new one. It must be refused, stop, and say why.
    pub(crate) async fn wipe_directory(&mut self, leader: Option<Party>) -> Result<(), Trouble> {
        let order = self.victims(leader, self.cluster.places().len());
        let has_its_first_id = |place: &&Party| self.cluster.nodes[**place - 1].program == Program::Static;
        // Those first: there are ever fewer of them.
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
                // Nobody led, and it was given no id in the time that it had: it asks again.
                Some(_) if program == Program::Dynamic && begin.elapsed() < REFUSAL_PATIENCE => {
                    self.cluster.start_node(place)?;
                }
                Some(end) => return Err(Trouble::Ended(place, end)),
                None => return Err(Trouble::Unnoticed(place, "its directory was wiped".to_owned())),
            }
        }
        self.cluster.node(place).wipe()?;
        self.cluster.remove(place, id).await?;
        self.cluster.join(place).await?;
        let what = format!("[{place}], which claimed its old {claim}");
        self.heal_and_measure(Fault::WipedDirectory, &what, &told).await
    }

    /// A node comes back with a copy of its directory from before its last starts. It has forgotten what it acknowledged
    /// since, so all others must refuse it: it stops, and says why.
    pub(crate) async fn roll_back_directory(&mut self, leader: Option<Party>) -> Result<(), Trouble> {
        let place = self.victim(leader);
        let id = self.cluster.id_of(place).await?;
        self.cluster.node(place).kill()?;
        self.cluster.node(place).copy_aside()?;
        // A copy from before two starts counts fewer of them than the others know of, one from before the last as many.
        let starts = self.random.random_range(1..=2);
        for _ in 0..starts {
            self.cluster.node(place).kill()?;
            self.cluster.start_node(place)?;
            self.wait_until_well().await?;
        }
        self.cluster.node(place).kill()?;
        self.cluster.node(place).put_back()?;
        self.cluster.start_node(place)?;
        let told = self.measure_service(Fault::RolledBackDirectory).await;
        let refusals = ["with an older copy of its data directory", "have been started for the"];
        match self.cluster.ends(place, REFUSAL_PATIENCE).await? {
            Some(end) if refusals.iter().any(|refusal| end.says(refusal)) => {}
            Some(end) => return Err(Trouble::Ended(place, end)),
            None => return Err(Trouble::Unnoticed(place, "its directory was rolled back".to_owned())),
        }
        self.replace_down(place, Some(id)).await?;
        let what = format!("[{place}], to before its last {starts} starts");
        self.heal_and_measure(Fault::RolledBackDirectory, &what, &told).await
    }

    /// A node that is down and whose directory is worth nothing is replaced by one with a new id.
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

    /// Who the others say is at this place.
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
