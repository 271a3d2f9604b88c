//! Members that come and go while the clients write: nodes join at spare places and leave again, die while they catch up,
//! cannot be reached, take the place of others, come back elsewhere. All the while a write has to be acknowledged, and who
//! can be reached has to become a voter.

use std::pin::pin;
use std::time::Duration;

use futures_util::future::{join_all, try_join};
use raftify::NodeId;
use raftify::membership::MemberRole;
use rand::RngExt;
use tokio::time::{Instant, sleep};

use crate::clients::Client;
use crate::cluster::{Cluster, PATIENCE, Trouble};
use crate::faults::Fault;
use crate::http::Connection;
use crate::links::Party;
use crate::nemesis::{Nemesis, REFUSAL_PATIENCE, SECOND_FAULTS, SERVICE_PATIENCE};
use crate::node::Program;
use crate::recovery::first_write;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two writes that tell whether the cluster still serves.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// A joiner that is to be killed needs at least this long for the whole state, even a small one: it is sent less in a
/// second.
const SLOWED_DOWN_TO: Duration = Duration::from_secs(8);
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;

/// How long after it was let in a joiner is killed, in milliseconds.
const KILLED_AFTER: std::ops::Range<u64> = 0..1_500;

/// How often it is tried to kill a joiner before it has caught up.
const TRIES: usize = 5;

/// How long a joiner that cannot be reached is left to itself, in milliseconds.
const HIDDEN: std::ops::Range<u64> = 4_000..8_000;

impl Nemesis<'_> {
    /// Nodes join at the spare places, and leave at once.
    pub(crate) async fn join_and_leave(&mut self, fault: Fault) -> Result<(), Trouble> {
        let spares = self.cluster.spares();
        let joiners = if fault == Fault::TwoJoiners { &spares[..] } else { &spares[..1] };
        for joiner in joiners {
            self.cluster.start_node(*joiner)?;
        }
        let told = self.let_in(fault, joiners).await?;
        self.let_go(fault, joiners, &told).await
    }

    /// A node dies while it catches up, and goes on from its directory under its id.
    pub(crate) async fn kill_joiner(&mut self) -> Result<(), Trouble> {
        let fault = Fault::KilledJoiner;
        let [joiner, _] = self.cluster.spares();
        let mut bytes_per_second = self.cluster.state_bytes() / SLOWED_DOWN_TO.as_secs();
        let mut killed = None;
        for _ in 0..TRIES {
            bytes_per_second = bytes_per_second.max(BYTES_PER_SECOND_MIN);
            let mut links = self.cluster.open_links();
            links.slow_down(joiner, bytes_per_second);
            self.cluster.network.set(links);
            self.cluster.start_node(joiner)?;
            let begin = Instant::now();
            let webs = self.cluster.webs();
            let (id, _) = serve_while(&webs, self.cluster.until_let_in(joiner)).await?;
            sleep(Duration::from_millis(self.random.random_range(KILLED_AFTER))).await;
            let role = self.cluster.member_at(joiner).await.map(|member| member.role);
            self.cluster.node(joiner).kill()?;
            if role == Some(MemberRole::Joining) {
                killed = Some((id, begin.elapsed()));
                break;
            }
            self.cluster.remove(joiner, id).await?;
            self.cluster.node(joiner).wipe()?;
            bytes_per_second /= 2;
        }
        let Some((id, after)) = killed else {
            return Err(Trouble::Unwell(format!("node {joiner} always catches up before it can be killed")));
        };
        let service = self.measure_service(fault).await;
        self.cluster.heal()?;
        self.cluster.start_node(joiner)?;
        let told = self.let_in(fault, &[joiner]).await?;
        let now = self.cluster.id_of(joiner).await?;
        if now != id {
            return Err(Trouble::Unwell(format!("node {id}, killed while it joined, came back as {now}")));
        }
        let told = format!("killed after {} ms: {service}started again: {told}", after.as_millis());
        self.let_go(fault, &[joiner], &told).await
    }

    /// A node asks to join at an address that leads nowhere: it must not count as a voter, until it can be reached.
    pub(crate) async fn hide_joiner(&mut self) -> Result<(), Trouble> {
        let fault = Fault::UnreachableJoiner;
        let [joiner, _] = self.cluster.spares();
        let node = self.cluster.node(joiner);
        let elsewhere = Some(node.addresses.elsewhere.clone());
        let listen = std::mem::replace(&mut node.addresses.listen, elsewhere);
        self.cluster.start_node(joiner)?;
        let hidden = Duration::from_millis(self.random.random_range(HIDDEN));
        let webs = self.cluster.webs();
        let ((), longest) = serve_while(&webs, self.cluster.never_votes(joiner, hidden)).await?;
        self.figures.of(fault).after_fault.push(longest);
        let was = match self.cluster.node(joiner).ended()? {
            Some(end) => format!("ended, {end}"),
            None => format!("was no voter for {} ms", hidden.as_millis()),
        };
        let node = self.cluster.node(joiner);
        node.kill()?;
        node.addresses.listen = listen;
        self.cluster.start_node(joiner)?;
        let told = self.let_in(fault, &[joiner]).await?;
        self.let_go(fault, &[joiner], &format!("{was}; then it could be reached: {told}")).await
    }

    /// A member goes and a new node comes, and the other way round, so that all places are as before.
    pub(crate) async fn exchange(&mut self, fault: Fault, place: Party, what: &str) -> Result<(), Trouble> {
        let [spare, _] = self.cluster.spares();
        let mut told = String::new();
        for (goes, comes) in [(place, spare), (spare, place)] {
            let begin = Instant::now();
            let id = self.cluster.id_of(goes).await?;
            let door = self.cluster.nodes[goes - 1].doors.web.clone();
            let client = self.cluster.client_without(goes)?;
            self.cluster.set_member(goes, false);
            let webs = self.cluster.webs();
            self.cluster.node(comes).program = Program::Dynamic;
            self.cluster.start_node(comes)?;
            let work = async {
                if fault == Fault::ReplacedVoter {
                    let new = self.cluster.until_let_in(comes).await?;
                    replace(&client, id, new, self.cluster.patience()).await?;
                    self.cluster.until_voters(&[comes]).await
                } else {
                    let leave = leave(goes, id, door, client);
                    try_join(leave, self.cluster.until_voters(&[comes])).await.map(|((), took)| took)
                }
            };
            let (_, longest) = serve_while(&webs, work).await?;
            self.figures.joined.push(begin.elapsed());
            self.figures.of(fault).after_fault.push(longest);
            let end = self.end(goes).await?;
            self.cluster.set_member(comes, true);
            self.wait_until_well().await?;
            told += &format!(
                "{goes} for {comes} within {} ms, {} ms without a write, {end}; ",
                begin.elapsed().as_millis(),
                longest.as_millis()
            );
        }
        self.heal_and_measure(fault, what, &told).await
    }

    /// Members die, and come back at other addresses, with all that they knew.
    pub(crate) async fn move_away(
        &mut self,
        fault: Fault,
        places: &[Party],
        what: &str,
    ) -> Result<(), Trouble> {
        for place in places {
            self.cluster.node(*place).kill()?;
        }
        let told = match fault {
            Fault::MovedMember => self.measure_service(fault).await,
            _ => String::new(),
        };
        for place in places {
            self.cluster.move_away(*place)?;
        }
        for place in places {
            self.cluster.start_node(*place)?;
        }
        self.heal_and_measure(fault, what, &told).await
    }

    /// Waits until joiners, which run, are voters, and lets the clients go to them, too. Every now and then a member is
    /// killed or stopped meanwhile, or links are bad.
    async fn let_in(&mut self, fault: Fault, joiners: &[Party]) -> Result<String, Trouble> {
        let mut told = String::new();
        if self.random.random_bool(SECOND_FAULTS) {
            let up = self.cluster.places();
            told = self.second_fault(&up).await?;
        }
        let webs = self.cluster.webs();
        let (took, longest) = serve_while(&webs, self.cluster.until_voters(joiners)).await?;
        self.figures.of(fault).after_fault.push(longest);
        self.figures.joined.extend(vec![took; joiners.len()]);
        self.cluster.heal()?;
        for joiner in joiners {
            self.cluster.set_member(*joiner, true);
        }
        self.wait_until_well().await?;
        Ok(format!(
            "{told}a voter after {} ms, {} ms without a write; ",
            took.as_millis(),
            longest.as_millis()
        ))
    }

    /// Nodes leave, all at once, by their own word.
    async fn let_go(&mut self, fault: Fault, places: &[Party], told: &str) -> Result<(), Trouble> {
        let mut leaving = Vec::new();
        for place in places {
            let id = self.cluster.id_of(*place).await?;
            let door = self.cluster.nodes[*place - 1].doors.web.clone();
            leaving.push((*place, id, door));
        }
        for place in places {
            self.cluster.set_member(*place, false);
        }
        let client = self.cluster.client_without(places[0])?;
        let webs = self.cluster.webs();
        let all =
            join_all(leaving.into_iter().map(|(place, id, door)| leave(place, id, door, client.clone())));
        let work = async { all.await.into_iter().collect::<Result<(), Trouble>>() };
        let ((), longest) = serve_while(&webs, work).await?;
        let mut told = format!("{told}left, {} ms without a write; ", longest.as_millis());
        for place in places {
            told += &format!("{place} {}; ", self.end(*place).await?);
        }
        self.heal_and_measure(fault, &format!("{places:?}"), &told).await
    }

    /// Waits until the process of a member that has left has ended, and empties the place.
    async fn end(&mut self, place: Party) -> Result<String, Trouble> {
        let end = match self.cluster.ends(place, REFUSAL_PATIENCE).await? {
            Some(end) => format!("ended, {}", end.status),
            None => {
                self.cluster.node(place).kill()?;
                "had to be killed".to_owned()
            }
        };
        self.cluster.node(place).wipe()?;
        Ok(end)
    }
}

impl Cluster {
    /// Waits until the node at this place, which is starting, belongs to the cluster in any role. Its id.
    async fn until_let_in(&mut self, place: Party) -> Result<NodeId, Trouble> {
        let begin = Instant::now();
        loop {
            if let Some(member) = self.member_at(place).await {
                return Ok(member.id);
            }
            self.start_again(place, begin)?;
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unwell(format!("node {place} is not let in")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until the nodes at these places, which are starting, are voters. How long it took.
    async fn until_voters(&mut self, places: &[Party]) -> Result<Duration, Trouble> {
        let begin = Instant::now();
        loop {
            let mut missing = None;
            for place in places {
                let member = self.member_at(*place).await;
                if member.as_ref().is_none_or(|member| member.role != MemberRole::Voter) {
                    missing = Some((*place, member));
                }
                self.start_again(*place, begin)?;
            }
            let Some((place, member)) = missing else { return Ok(begin.elapsed()) };
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unwell(format!("node {place} does not become a voter: {member:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Looks on for this long: a node that no other reaches is no voter in any membership.
    async fn never_votes(&mut self, place: Party, time: Duration) -> Result<(), Trouble> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.member_at(place).await.is_some_and(|member| member.role == MemberRole::Voter) {
                return Err(Trouble::Unnoticed(place, "it votes, and no other node reaches it".to_owned()));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// A joiner whose process has ended asks again, with the same words: in the time that it had, it was not let in.
    fn start_again(&mut self, place: Party, begin: Instant) -> Result<(), Trouble> {
        match self.node(place).ended()? {
            Some(end) if begin.elapsed() > PATIENCE => Err(Trouble::Ended(place, end)),
            Some(_) => Ok(self.start_node(place)?),
            None => Ok(()),
        }
    }
}

/// Has a node leave by its own word, again and again until it is no member any more.
async fn leave(place: Party, id: NodeId, door: String, client: Client) -> Result<(), Trouble> {
    let begin = Instant::now();
    let mut connection = Connection::new(door);
    loop {
        let outcome = connection.ask("POST", "/leave", b"", PATIENCE).await;
        if outcome.as_ref().is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        // It may have left, and have ended before its answer was on the way.
        if let Ok(inspection) = client.inspect().await
            && inspection.status.members.get(id).is_none()
        {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            let told = match outcome {
                Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
                Err(error) => format!("{error:?}"),
            };
            return Err(Trouble::Unwell(format!("node {place} cannot leave: {told}")));
        }
        sleep(PAUSE).await;
    }
}

/// Puts one node in the place of another, as an operator does.
async fn replace(client: &Client, old: NodeId, new: NodeId, patience: Duration) -> Result<(), Trouble> {
    let begin = Instant::now();
    loop {
        let Err(error) = client.replace(old, new).await else { return Ok(()) };
        // What was of unknown outcome may have happened.
        if let Ok(inspection) = client.inspect().await
            && inspection.status.members.get(old).is_none()
        {
            return Ok(());
        }
        if begin.elapsed() > patience {
            return Err(Trouble::Unwell(format!("node {old} is not replaced by {new}: {error}")));
        }
        sleep(PAUSE).await;
    }
}

/// Writes all the while that something is done. What came of it, and the longest time without an acknowledged write.
///
/// # Errors
/// If writes are not acknowledged any more: what is done here costs no cluster its majority.
async fn serve_while<T>(
    webs: &[String],
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<(T, Duration), Trouble> {
    let mut longest = Duration::ZERO;
    let mut work = pin!(work);
    loop {
        let write = async {
            let time = first_write(webs, SERVICE_PATIENCE).await;
            sleep(WRITE_PAUSE).await;
            time
        };
        tokio::select! {
            outcome = &mut work => return Ok((outcome?, longest)),
            time = write => match time {
                Some(time) => longest = longest.max(time),
                None => {
                    let what = format!("no write is acknowledged for {SERVICE_PATIENCE:?} while nodes come and go");
                    return Err(Trouble::Unwell(what));
                }
            },
        }
    }
}
