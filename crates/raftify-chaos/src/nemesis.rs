//! The nemesis: injects one fault after the other, waits until the service is back, heals, waits until all
//! nodes are healthy, and measures both times. It also checks the errors of nodes that refuse to start: a
//! refusal is correct, a wrong answer is not.

use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::{Cluster, PATIENCE, Trouble};
use crate::faults::{Fault, Schedule};
use crate::http::Connection;
use crate::links::{Links, Party};
use crate::recovery::{Figures, first_write};

/// The duration of a fault, in milliseconds.
pub(crate) const FAULT_LASTS: std::ops::Range<u64> = 1_000..5_000;

/// Between two faults.
const CALM: std::ops::Range<u64> = 300..1_500;

/// How often a second fault is added to one that lasts and leaves enough nodes.
pub(crate) const SECOND_FAULTS: f64 = 0.3;

/// The service must return within this time after a fault that leaves a majority connected. A longer time is
/// reported, and only the end of the fault is awaited.
pub(crate) const SERVICE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a leader with a slow disk may take to transfer its leadership, including the measurements and an
/// election.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(30);

/// The size of the writes that use up the preallocated space of a log.
const BULK_VALUE_BYTES: usize = 1 << 20;
const BULK_WRITES_MAX: usize = 40;

/// How long a wiped node may take to learn that it is refused, and a node to detect a full disk.
pub(crate) const REFUSAL_PATIENCE: Duration = Duration::from_secs(30);

/// Injects the faults of a schedule into a cluster.
pub(crate) struct Nemesis<'c> {
    pub cluster: &'c mut Cluster,
    pub schedule: Schedule,
    pub random: ChaCha8Rng,
    pub figures: &'c mut Figures,
    pub begin: Instant,
}

/// When the run is complete.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    Time(Instant),
    Rounds(usize),
}

impl Nemesis<'_> {
    /// Injects faults until the run is complete.
    ///
    /// # Errors
    /// A process that ended by itself, or a cluster that did not become healthy.
    pub(crate) async fn run(mut self, until: Until) -> Result<(), Trouble> {
        loop {
            let is_enough = match until {
                Until::Time(end) => Instant::now() >= end,
                Until::Rounds(rounds) => self.schedule.rounds() >= rounds,
            };
            let fault = if is_enough { None } else { self.schedule.next(&mut self.random) };
            let Some(fault) = fault else { return self.wait_until_healthy().await };
            self.calm().await?;
            self.do_fault(fault).await?;
        }
    }

    /// Waits for a while without faults; no process may end meanwhile.
    async fn calm(&mut self) -> Result<(), Trouble> {
        sleep(Duration::from_millis(self.random.random_range(CALM))).await;
        self.wait_until_healthy().await
    }

    async fn do_fault(&mut self, fault: Fault) -> Result<(), Trouble> {
        let all = self.cluster.places().len();
        let leader = self.cluster.leader().await;
        let shown = |places: &[Party]| {
            let leads = leader.filter(|leader| places.contains(leader));
            let leads = leads.map_or(String::new(), |leader| format!(", {leader} leads"));
            format!("{places:?}{leads}")
        };
        match fault {
            Fault::KillOne | Fault::KillMinority | Fault::KillMajority | Fault::KillAll => {
                let victims = self.victims(leader, count_of(fault, all));
                for place in &victims {
                    self.cluster.node(*place).kill()?;
                }
                self.outlast(fault, &victims, &shown(&victims)).await
            }
            Fault::StopOne => {
                let victims = self.victims(leader, 1);
                for place in &victims {
                    if let Some(end) = self.cluster.node(*place).terminate().await?
                        && end.is_failure()
                    {
                        return Err(Trouble::Ended(*place, end));
                    }
                }
                self.outlast(fault, &victims, &shown(&victims)).await
            }
            Fault::PauseOne | Fault::PauseMajority => {
                let victims = self.victims(leader, count_of(fault, all));
                for place in &victims {
                    self.cluster.node(*place).signal(Signal::STOP)?;
                }
                self.outlast(fault, &victims, &shown(&victims)).await
            }
            Fault::Loss | Fault::Delay | Fault::SlowLinks => {
                let (links, what) = self.bad_links(fault, leader);
                self.cluster.network.set(links);
                self.outlast(fault, &[], &what).await
            }
            Fault::Halves | Fault::Isolated | Fault::OneWay | Fault::Bridge | Fault::Ring => {
                let first = self.victims(leader, 1);
                if let (Some(shape), [first]) = (fault.shape(), &first[..]) {
                    self.cluster.network.set(Links::partitioned(all, shape, *first, &mut self.random));
                }
                self.outlast(fault, &[], &shown(&first)).await
            }
            Fault::TransferredLeader => self.transfer_leader(leader).await,
            Fault::FullDisk => {
                let place = self.victim(leader);
                self.fill_disk(place, &shown(&[place])).await
            }
            Fault::AlmostFullDisk => {
                let place = leader.filter(|_| self.random.random_bool(0.7));
                let place = place.unwrap_or_else(|| self.victim(leader));
                self.fill_disk_almost(place, leader, &shown(&[place])).await
            }
            Fault::SlowDisk => {
                let place = leader.filter(|_| self.random.random_bool(0.7));
                let place = place.unwrap_or_else(|| self.victim(leader));
                self.slow_disk(place, leader, &shown(&[place])).await
            }
            Fault::FlippedBit => {
                let place = self.victim(leader);
                self.flip_bit(place, &shown(&[place])).await
            }
            Fault::WipedDirectory => self.wipe_directory(leader).await,
            Fault::RolledBackDirectory => self.roll_back_directory(leader).await,
            Fault::ReplacedMember => {
                let place = self.victim(leader);
                self.replace_member(place, &shown(&[place])).await
            }
            Fault::FewDescriptors => {
                let place = self.victim(leader);
                self.starve(place, &shown(&[place])).await
            }
            Fault::CancelledCalls => {
                let place = self.victim(leader);
                self.cancel_calls(place, &shown(&[place])).await
            }
            Fault::RenewedCertificates => {
                let place = self.victim(leader);
                self.renew_certificates(place, &shown(&[place])).await
            }
            Fault::Join | Fault::TwoJoiners => self.join_and_leave(fault).await,
            Fault::KilledJoiner => self.kill_joiner().await,
            Fault::UnreachableJoiner => self.hide_joiner().await,
            Fault::LeftMember | Fault::ReplacedVoter => {
                let place = self.victim(leader);
                self.exchange(fault, place, &shown(&[place])).await
            }
            Fault::MovedMember | Fault::MovedAll => {
                let victims = self.victims(leader, count_of(fault, all));
                self.move_away(fault, &victims, &shown(&victims)).await
            }
        }
    }

    /// The leader is one of them in at least half of the cases.
    pub(crate) fn victims(&mut self, leader: Option<Party>, count: usize) -> Vec<Party> {
        let mut places = self.cluster.places();
        places.shuffle(&mut self.random);
        if let Some(leader) = leader
            && self.random.random_bool(0.4)
        {
            places.sort_by_key(|place| *place != leader);
        }
        places.truncate(count);
        places.sort_unstable();
        places
    }

    pub(crate) fn victim(&mut self, leader: Option<Party>) -> Party {
        self.victims(leader, 1).first().copied().unwrap_or(1)
    }

    fn bad_links(&mut self, fault: Fault, leader: Option<Party>) -> (Links, String) {
        let mut links = self.cluster.open_links();
        let around = self.random.random_bool(0.5).then(|| self.victim(leader));
        let random = &mut self.random;
        let (percent, millis) = (random.random_range(5..30), random.random_range(20..200));
        let rate = 1 << random.random_range(14..18);
        links.between_nodes(|from, to, link| {
            if around.is_some_and(|around| from != around && to != around) {
                return;
            }
            match fault {
                Fault::Loss => link.loss_percent = percent,
                Fault::Delay => {
                    link.delay = Duration::from_millis(millis);
                    link.jitter = link.delay / 2;
                }
                _ => link.bytes_per_second = Some(rate),
            }
        });
        let where_ = around.map_or("between all".to_owned(), |around| format!("around node {around}"));
        let what = match fault {
            Fault::Loss => format!("{percent} % {where_}"),
            Fault::Delay => format!("{millis} to {} ms {where_}", millis + millis / 2),
            _ => format!("{rate} bytes per second {where_}"),
        };
        (links, what)
    }

    /// Lets a fault last, while the nodes `down` do not answer; heals it, and waits until all nodes are
    /// healthy.
    async fn outlast(&mut self, fault: Fault, down: &[Party], what: &str) -> Result<(), Trouble> {
        let end = Instant::now() + Duration::from_millis(self.random.random_range(FAULT_LASTS));
        let up: Vec<Party> =
            self.cluster.places().into_iter().filter(|place| !down.contains(place)).collect();
        let mut told = String::new();
        if self.cluster.network.links().some_majority_is_connected(&up) {
            told = self.measure_service(fault).await;
            if self.random.random_bool(SECOND_FAULTS) {
                told += &self.second_fault(&up).await?;
            }
        }
        sleep_until(end).await;
        self.heal_and_measure(fault, what, &told).await
    }

    /// Adds another fault to one that lasts, such that a majority remains whose members all reach each other.
    /// Returns its result, if one was added. A weaker condition would not do: the only node that reaches
    /// a majority may lack entries that the others committed.
    pub(crate) async fn second_fault(&mut self, up: &[Party]) -> Result<String, Trouble> {
        let links = self.cluster.network.links();
        let can_miss = |place: &Party| {
            let rest: Vec<Party> = up.iter().copied().filter(|other| other != place).collect();
            links.some_majority_is_complete(&rest)
        };
        let mut kinds = vec![Fault::KillOne, Fault::PauseOne];
        if links == self.cluster.open_links() {
            kinds.extend([Fault::Loss, Fault::Delay]);
        }
        kinds.retain(|kind| self.schedule.has(*kind));
        let leader = self.cluster.leader().await;
        let Some(fault) = kinds.choose(&mut self.random).copied() else { return Ok(String::new()) };
        let what = match fault {
            Fault::Loss | Fault::Delay => {
                let (links, what) = self.bad_links(fault, leader);
                self.cluster.network.set(links);
                what
            }
            _ => {
                let order = self.victims(leader, up.len());
                let order = leader.into_iter().filter(|_| self.random.random_bool(0.4)).chain(order);
                let Some(victim) = order.filter(|place| up.contains(place)).find(can_miss) else {
                    return Ok(String::new());
                };
                match fault {
                    Fault::KillOne => self.cluster.node(victim).kill()?,
                    _ => self.cluster.node(victim).signal(Signal::STOP)?,
                }
                format!("[{victim}]")
            }
        };
        let time = first_write(&self.cluster.webs(), SERVICE_PATIENCE).await;
        self.figures.second.count += 1;
        self.figures.second.after_fault.push(time.unwrap_or(SERVICE_PATIENCE));
        Ok(format!("and {} {what}: {}", fault.name(), told(time)))
    }

    /// How long after the fault a write is acknowledged again.
    pub(crate) async fn measure_service(&mut self, fault: Fault) -> String {
        let time = first_write(&self.cluster.webs(), SERVICE_PATIENCE).await;
        self.figures.of(fault).after_fault.push(time.unwrap_or(SERVICE_PATIENCE));
        told(time)
    }

    pub(crate) async fn heal_and_measure(
        &mut self,
        fault: Fault,
        what: &str,
        told: &str,
    ) -> Result<(), Trouble> {
        self.cluster.heal()?;
        let healed = Instant::now();
        let time = first_write(&self.cluster.webs(), PATIENCE).await;
        let Some(time) = time else {
            return Err(Trouble::Unhealthy(format!(
                "no write is acknowledged after {} {what}",
                fault.name()
            )));
        };
        self.wait_until_healthy().await?;
        let measured = self.figures.of(fault);
        measured.after_healing.push(time);
        measured.count += 1;
        self.say(&format!(
            "{} {what}: {told}healed, a write after {} ms, all healthy after {} ms",
            fault.name(),
            time.as_millis(),
            healed.elapsed().as_millis()
        ));
        Ok(())
    }

    fn say(&self, what: &str) {
        say!("{:7.1} s  {what}", self.begin.elapsed().as_secs_f64());
    }

    /// Like that of the cluster, but a node with a damaged directory may detect it late, and is then
    /// replaced.
    pub(crate) async fn wait_until_healthy(&mut self) -> Result<(), Trouble> {
        loop {
            match self.cluster.wait_until_healthy().await {
                Err(Trouble::Ended(place, end))
                    if self.cluster.node(place).is_damaged && end.is_about_damage() =>
                {
                    self.say(&format!("node {place} detected its damage: {end}"));
                    self.figures.detected_later();
                    self.replace_down(place, None).await?;
                }
                outcome => return outcome,
            }
        }
    }

    async fn transfer_leader(&mut self, leader: Option<Party>) -> Result<(), Trouble> {
        let fault = Fault::TransferredLeader;
        let others: Vec<Party> =
            self.cluster.places().into_iter().filter(|place| Some(*place) != leader).collect();
        let to = others.choose(&mut self.random).copied().unwrap_or(1);
        let id = self.cluster.id_of(to).await?;
        let from = leader.unwrap_or(to);
        let mut connection = Connection::new(self.cluster.node(from).endpoints.web.clone());
        let outcome = connection.ask("POST", &format!("/transfer_leader/{id}"), b"", SERVICE_PATIENCE).await;
        let outcome = outcome.map_or_else(|error| format!("{error:?}"), |answer| answer.status.to_string());
        let told = self.measure_service(fault).await;
        self.heal_and_measure(fault, &format!("from {from} to {to} ({outcome})"), &told).await
    }

    /// A full disk: the node must report it and stop, and must continue once there is space.
    async fn fill_disk(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        self.cluster.node(place).fill()?;
        let others = self.cluster.nodes.iter().filter(|node| node.is_member && node.place != place);
        let mut connections: Vec<Connection> =
            others.map(|node| Connection::new(node.endpoints.web.clone())).collect();
        let value = vec![b'x'; BULK_VALUE_BYTES];
        let mut end = None;
        for number in 0..BULK_WRITES_MAX {
            let through = number % connections.len();
            // The request only has to reach the logs.
            let _ = connections[through].ask("PUT", "/store/bulk", &value, SERVICE_PATIENCE).await;
            end = self.cluster.node(place).ended()?;
            if end.is_some() {
                break;
            }
        }
        if end.is_none() {
            end = self.cluster.ends(place, REFUSAL_PATIENCE).await?;
        }
        match end {
            Some(end) if end.says("No space left on device") => {}
            Some(end) => return Err(Trouble::Ended(place, end)),
            None => {
                return Err(Trouble::Unhealthy(format!("node {place} has not detected its full disk")));
            }
        }
        let told = self.measure_service(Fault::FullDisk).await;
        self.heal_and_measure(Fault::FullDisk, what, &told).await
    }

    /// A disk with less space than the reserve: writes are served by others, and the node continues.
    async fn fill_disk_almost(
        &mut self,
        place: Party,
        leader: Option<Party>,
        what: &str,
    ) -> Result<(), Trouble> {
        let begin = Instant::now();
        let end = begin + Duration::from_millis(self.random.random_range(FAULT_LASTS));
        self.cluster.node(place).fill_almost()?;
        let mut told = String::new();
        if leader == Some(place) {
            while self.cluster.leader().await == Some(place) {
                if begin.elapsed() > HANDED_OVER_WITHIN {
                    return Err(Trouble::Unhealthy(format!(
                        "node {place} still leads, though its disk is full"
                    )));
                }
                sleep(Duration::from_millis(100)).await;
            }
            told += &format!("another leads after {} ms, ", begin.elapsed().as_millis());
        }
        told += &self.measure_service(Fault::AlmostFullDisk).await;
        sleep_until(end).await;
        if let Some(end) = self.cluster.node(place).ended()? {
            return Err(Trouble::Ended(place, end));
        }
        self.heal_and_measure(Fault::AlmostFullDisk, what, &told).await
    }

    /// Each fsync of one disk is slow, those of the others are not. If the leader's disk is slow, another
    /// node must take over the leadership in time.
    async fn slow_disk(&mut self, place: Party, leader: Option<Party>, what: &str) -> Result<(), Trouble> {
        let fault = Fault::SlowDisk;
        let delay = Duration::from_millis(self.random.random_range(200..400));
        let begin = Instant::now();
        let end = begin + Duration::from_millis(self.random.random_range(FAULT_LASTS));
        self.cluster.node(place).delay_syncs(delay)?;
        let mut told = self.measure_service(fault).await;
        if leader == Some(place) {
            while self.cluster.leader().await == Some(place) {
                if begin.elapsed() > HANDED_OVER_WITHIN {
                    let trouble = format!(
                        "node {place} still leads, though its disk has been slow for {:?}",
                        begin.elapsed()
                    );
                    return Err(Trouble::Unhealthy(trouble));
                }
                sleep(Duration::from_millis(100)).await;
            }
            told += &format!("another leads after {} ms, ", begin.elapsed().as_millis());
        }
        sleep_until(end).await;
        if !self.cluster.node(place).is_slowed()? {
            return Err(Trouble::Unhealthy(format!("the syncs of node {place} could not be delayed")));
        }
        let what = format!("{what}, {} ms for each sync", delay.as_millis());
        self.heal_and_measure(fault, &what, &told).await
    }

    /// A member is removed, and another one is added.
    async fn replace_member(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let id = self.cluster.id_of(place).await?;
        self.cluster.remove(place, id).await?;
        let told = self.measure_service(Fault::ReplacedMember).await;
        let left = match self.cluster.ends(place, REFUSAL_PATIENCE).await? {
            Some(end) => format!("it ended, {}", end.status),
            None => {
                self.cluster.node(place).kill()?;
                "it had to be killed".to_owned()
            }
        };
        self.cluster.node(place).wipe()?;
        self.cluster.join(place).await?;
        self.heal_and_measure(Fault::ReplacedMember, &format!("{what}, {left}"), &told).await
    }
}

fn told(time: Option<Duration>) -> String {
    match time {
        Some(time) => format!("a write after {} ms; ", time.as_millis()),
        None => format!("no write within {SERVICE_PATIENCE:?}; "),
    }
}

/// The number of nodes that a fault hits.
fn count_of(fault: Fault, all: usize) -> usize {
    let minority = all.div_ceil(2) - 1;
    match fault {
        Fault::KillAll | Fault::MovedAll => all,
        Fault::KillMajority | Fault::PauseMajority => all / 2 + 1,
        Fault::KillMinority => minority,
        _ => 1,
    }
}

/// A random seed, if none was given.
pub(crate) fn any_seed() -> u64 {
    rand::rng().next_u64() >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faults_hit_a_minority_or_a_majority_as_named() {
        for (all, minority, majority) in [(3, 1, 2), (4, 1, 3), (5, 2, 3)] {
            assert_eq!(count_of(Fault::KillMinority, all), minority);
            assert_eq!(count_of(Fault::KillMajority, all), majority);
            assert_eq!(count_of(Fault::KillAll, all), all);
        }
    }
}
