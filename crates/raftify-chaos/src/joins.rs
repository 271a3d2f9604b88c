//! Membership changes while the clients write: nodes join in spare slots and leave again, die while they
//! catch up, are unreachable, replace other nodes, restart at other addresses. Writes must be acknowledged
//! throughout, and every reachable joiner must become a voter.

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
use crate::http::{Connection, Web};
use crate::links::Party;
use crate::nemesis::{Nemesis, REFUSAL_PATIENCE, SECOND_FAULTS, SERVICE_PATIENCE};
use crate::node::Program;
use crate::recovery::first_write;

/// The polling interval.
const PAUSE: Duration = Duration::from_millis(50);

/// Between two writes that check whether the cluster still serves.
const WRITE_PAUSE: Duration = Duration::from_millis(100);

/// The time in which a joiner that is to be killed receives the whole state, at least: the transfer of a
/// small state is slowed down.
const SLOWED_DOWN_TO: Duration = Duration::from_secs(8);
const BYTES_PER_SECOND_MIN: u64 = 128 << 10;

/// How long after its admission a joiner is killed, in milliseconds.
const KILLED_AFTER: std::ops::Range<u64> = 0..1_500;

/// The number of attempts to kill a joiner before it has caught up.
const TRIES: usize = 5;

/// How long a joiner is unreachable, in milliseconds.
const HIDDEN: std::ops::Range<u64> = 4_000..8_000;

impl Nemesis<'_> {
    /// Nodes join in the spare slots, and leave at once.
    pub(crate) async fn join_and_leave(&mut self, fault: Fault) -> Result<(), Trouble> {
        let spares = self.cluster.spares();
        let joiners = if fault == Fault::TwoJoiners { &spares[..] } else { &spares[..1] };
        for joiner in joiners {
            self.cluster.start_node(*joiner)?;
        }
        let told = self.wait_until_joined(fault, joiners).await?;
        self.remove_joined(fault, joiners, &told).await
    }

    /// A node dies while it catches up, and continues from its directory under its id.
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
            let (id, _) = serve_while(&webs, self.cluster.until_admitted(joiner)).await?;
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
            return Err(Trouble::Unhealthy(format!(
                "node {joiner} always catches up before it can be killed"
            )));
        };
        let service = self.measure_service(fault).await;
        self.cluster.heal()?;
        self.cluster.start_node(joiner)?;
        let told = self.wait_until_joined(fault, &[joiner]).await?;
        let now = self.cluster.id_of(joiner).await?;
        if now != id {
            return Err(Trouble::Unhealthy(format!("node {id}, killed while it joined, came back as {now}")));
        }
        let told = format!("killed after {} ms: {service}started again: {told}", after.as_millis());
        self.remove_joined(fault, &[joiner], &told).await
    }

    /// A node requests to join at an unreachable address: it must not count as a voter before it is
    /// reachable.
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
        let told = self.wait_until_joined(fault, &[joiner]).await?;
        self.remove_joined(fault, &[joiner], &format!("{was}; then reachable: {told}")).await
    }

    /// A member leaves and a new node joins, and the reverse, so that all slots are as before.
    pub(crate) async fn exchange(&mut self, fault: Fault, place: Party, what: &str) -> Result<(), Trouble> {
        let [spare, _] = self.cluster.spares();
        let mut told = String::new();
        for (goes, comes) in [(place, spare), (spare, place)] {
            let begin = Instant::now();
            let id = self.cluster.id_of(goes).await?;
            let web = self.cluster.nodes[goes - 1].endpoints.web.clone();
            let client = self.cluster.client_without(goes)?;
            self.cluster.set_member(goes, false);
            let webs = self.cluster.webs();
            self.cluster.node(comes).program = Program::Dynamic;
            self.cluster.start_node(comes)?;
            let work = async {
                if fault == Fault::ReplacedVoter {
                    let new = self.cluster.until_admitted(comes).await?;
                    replace(&client, id, new, self.cluster.patience()).await?;
                    self.cluster.until_voters(&[comes]).await
                } else {
                    let leave = leave(goes, id, web, client);
                    try_join(leave, self.cluster.until_voters(&[comes])).await.map(|((), took)| took)
                }
            };
            let (_, longest) = serve_while(&webs, work).await?;
            self.figures.joined.push(begin.elapsed());
            self.figures.of(fault).after_fault.push(longest);
            let end = self.end(goes).await?;
            self.cluster.set_member(comes, true);
            self.wait_until_healthy().await?;
            told += &format!(
                "{goes} for {comes} within {} ms, {} ms without a write, {end}; ",
                begin.elapsed().as_millis(),
                longest.as_millis()
            );
        }
        self.heal_and_measure(fault, what, &told).await
    }

    /// Members die, and restart at other addresses, with their data.
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

    /// Waits until joiners, which run, are voters, and sends the clients to them, too. At times a member is
    /// killed or stopped meanwhile, or links are bad.
    async fn wait_until_joined(&mut self, fault: Fault, joiners: &[Party]) -> Result<String, Trouble> {
        let mut told = String::new();
        if self.random.random_bool(SECOND_FAULTS) {
            let up = self.cluster.places();
            told = self.second_fault(&up).await?;
        }
        let webs = self.cluster.webs();
        let is_lossy = self.cluster.network.links().lose_packets();
        let voters = self.cluster.until_voters(joiners);
        let (took, longest) = if is_lossy {
            (voters.await?, first_write(&webs, SERVICE_PATIENCE).await.unwrap_or(SERVICE_PATIENCE))
        } else {
            serve_while(&webs, voters).await?
        };
        self.figures.of(fault).after_fault.push(longest);
        self.figures.joined.extend(vec![took; joiners.len()]);
        self.cluster.heal()?;
        for joiner in joiners {
            self.cluster.set_member(*joiner, true);
        }
        self.wait_until_healthy().await?;
        Ok(format!(
            "{told}a voter after {} ms, {} ms without a write; ",
            took.as_millis(),
            longest.as_millis()
        ))
    }

    /// Nodes leave, all at once, each by its own request.
    async fn remove_joined(&mut self, fault: Fault, places: &[Party], told: &str) -> Result<(), Trouble> {
        let mut leaving = Vec::new();
        for place in places {
            let id = self.cluster.id_of(*place).await?;
            let web = self.cluster.nodes[*place - 1].endpoints.web.clone();
            leaving.push((*place, id, web));
        }
        for place in places {
            self.cluster.set_member(*place, false);
        }
        let client = self.cluster.client_without(places[0])?;
        let webs = self.cluster.webs();
        let all = join_all(leaving.into_iter().map(|(place, id, web)| leave(place, id, web, client.clone())));
        let work = async { all.await.into_iter().collect::<Result<(), Trouble>>() };
        let ((), longest) = serve_while(&webs, work).await?;
        let mut told = format!("{told}left, {} ms without a write; ", longest.as_millis());
        for place in places {
            told += &format!("{place} {}; ", self.end(*place).await?);
        }
        self.heal_and_measure(fault, &format!("{places:?}"), &told).await
    }

    /// Waits until the process of a removed member has ended, and empties the slot.
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
    /// Waits until the node in this slot, which is starting, belongs to the cluster in any role. Returns its
    /// id.
    async fn until_admitted(&mut self, place: Party) -> Result<NodeId, Trouble> {
        let begin = Instant::now();
        loop {
            if let Some(member) = self.member_at(place).await {
                return Ok(member.id);
            }
            self.start_again(place, begin)?;
            if begin.elapsed() > self.patience() {
                return Err(Trouble::Unhealthy(format!("node {place} is not admitted")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Waits until the nodes in these slots, which are starting, are voters. Returns how long it took.
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
                return Err(Trouble::Unhealthy(format!("node {place} does not become a voter: {member:?}")));
            }
            sleep(PAUSE).await;
        }
    }

    /// Checks for this long that a node which no other node reaches is no voter in any membership.
    async fn never_votes(&mut self, place: Party, time: Duration) -> Result<(), Trouble> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            if self.member_at(place).await.is_some_and(|member| member.role == MemberRole::Voter) {
                return Err(Trouble::Undetected(
                    place,
                    "it is a voter, and no other node reaches it".to_owned(),
                ));
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Restarts a joiner whose process has ended, with the same arguments: it was not admitted before its
    /// deadline.
    fn start_again(&mut self, place: Party, begin: Instant) -> Result<(), Trouble> {
        match self.node(place).ended()? {
            Some(end) if begin.elapsed() > PATIENCE => Err(Trouble::Ended(place, end)),
            Some(_) => Ok(self.start_node(place)?),
            None => Ok(()),
        }
    }
}

/// Makes a node leave by its own request, repeatedly until it is no longer a member.
async fn leave(place: Party, id: NodeId, web: Web, client: Client) -> Result<(), Trouble> {
    let begin = Instant::now();
    let mut connection = Connection::new(web);
    loop {
        let outcome = connection.ask("POST", "/leave", b"", PATIENCE).await;
        if outcome.as_ref().is_ok_and(|answer| answer.status == 200) {
            return Ok(());
        }
        // The node may have left and ended before it sent its answer.
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
            return Err(Trouble::Unhealthy(format!("node {place} cannot leave: {told}")));
        }
        sleep(PAUSE).await;
    }
}

/// Replaces one node by another, as an operator does.
async fn replace(client: &Client, old: NodeId, new: NodeId, patience: Duration) -> Result<(), Trouble> {
    let begin = Instant::now();
    loop {
        let Err(error) = client.replace(old, new).await else { return Ok(()) };
        // A request without an answer may have taken effect.
        if let Ok(inspection) = client.inspect().await
            && inspection.status.members.get(old).is_none()
        {
            return Ok(());
        }
        if begin.elapsed() > patience {
            return Err(Trouble::Unhealthy(format!("node {old} is not replaced by {new}: {error}")));
        }
        sleep(PAUSE).await;
    }
}

/// Writes during an operation. Returns its result, and the longest time without an acknowledged write.
///
/// # Errors
/// If no write is acknowledged any more: no operation here costs the cluster its majority.
pub(crate) async fn serve_while<T>(
    webs: &[Web],
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
                    let what = format!("no write is acknowledged for {SERVICE_PATIENCE:?} during a membership change");
                    return Err(Trouble::Unhealthy(what));
                }
            },
        }
    }
}
