//! Finds the other members when their addresses in the membership are outdated, such as after a restart of
//! all nodes at new addresses.
//!
//! While this node knows no leader, it queries the configured addresses for the nodes there. It then contacts
//! members of its cluster at the addresses where they were found; once contacted, each announces its own
//! address, and the leader records it. Host names are resolved again for each round, on threads for which a
//! stop does not wait.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use raftify_core::members::MEMBERS_MAX;
use raftify_core::{CheckedConfig, NodeId, Status};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::network::outbox::Outbox;
use crate::runtime::log_throttle::LogThrottle;
use crate::runtime::transport;
use crate::security::dialer::Dialer;
use crate::verbs::identify::probe_all;
use crate::wire::identification::Identification;

/// Other nodes are queried after this many election timeouts without a leader: elections come first.
const TIMEOUTS_WITHOUT_LEADER: u32 = 2;

/// See the module.
pub(crate) struct Discovery {
    places: Vec<Place>,
    dialer: Dialer,
    status: watch::Receiver<Status>,
    outbox: Outbox,
    config: CheckedConfig,
    /// The last log message for each address.
    told: BTreeMap<String, String>,
}

/// A configured address, `host:port`: the address of a node, or a name that resolves to several.
struct Place {
    address: String,
    /// A lookup under way; a second one does not start before it has ended.
    lookup: Option<oneshot::Receiver<io::Result<Vec<SocketAddr>>>>,
    warning: LogThrottle,
}

impl Discovery {
    /// `peers` are addresses of nodes, or host names that resolve to several, that may know the cluster of
    /// this node.
    pub(crate) fn new(
        peers: Vec<String>,
        dialer: Dialer,
        status: watch::Receiver<Status>,
        outbox: Outbox,
        config: CheckedConfig,
    ) -> Discovery {
        let place = |address| Place { address, lookup: None, warning: LogThrottle::default() };
        let places = peers.into_iter().map(place).collect();
        Discovery { places, dialer, status, outbox, config, told: BTreeMap::new() }
    }

    /// Runs until the node has ended. Dropping the future ends it at any point.
    pub(crate) async fn run(mut self) {
        if self.places.is_empty() {
            return;
        }
        let patience = self.config.election_timeout * TIMEOUTS_WITHOUT_LEADER;
        // An error means that the node has ended.
        while self.status.wait_for(is_lost).await.is_ok() {
            let has_leader = self.status.wait_for(|status| !is_lost(status));
            if timeout(patience, has_leader).await.is_ok() {
                continue;
            }
            while is_lost(&self.status.borrow()) {
                self.ask_all().await;
                sleep(self.config.election_timeout).await;
            }
        }
    }

    async fn ask_all(&mut self) {
        let deadline = self.config.connect_timeout;
        let resolved = join_all(self.places.iter_mut().map(|place| place.resolve(deadline))).await;
        let addresses: BTreeSet<SocketAddr> = resolved.into_iter().flatten().take(MEMBERS_MAX).collect();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut found = BTreeMap::new();
        for (address, answer) in probe_all(&self.dialer, addresses.iter().map(String::as_str), deadline).await
        {
            match answer {
                Ok(answer) => self.hear(address, &answer, &mut found),
                Err(reason) => debug!("no node answers: {reason}"),
            }
        }
        for (id, address) in found {
            self.outbox.found_at(id, &address);
        }
    }

    /// Records the addresses of members: the answer of a node itself takes precedence over the report of
    /// another one.
    fn hear(&mut self, address: &str, answer: &Identification, found: &mut BTreeMap<NodeId, String>) {
        let status = self.status.borrow().clone();
        let (Some(own), Some(identity)) = (status.identity, answer.identity) else {
            return;
        };
        if identity == own {
            return;
        }
        let (id, cluster_id) = (answer.node_id, identity.cluster_id);
        if cluster_id != own.cluster_id {
            let other = format!("node {id} of cluster {cluster_id}, and not of cluster {}", own.cluster_id);
            return self.tell(address, other);
        }
        let is_that_one = |id, incarnation| {
            let member = status.members.get(id);
            member.is_some_and(|member| member.incarnation.is_none_or(|known| known == incarnation))
        };
        if is_that_one(id, identity.incarnation) {
            found.insert(id, address.to_string());
        } else {
            let text = format!(
                "node {id} of this cluster with incarnation {}, which is no member",
                identity.incarnation
            );
            self.tell(address, text);
        }
        if answer.members.as_of() > status.members.as_of() {
            for member in answer.members.iter().filter(|member| member.id != own.node_id) {
                if member.incarnation.is_some_and(|incarnation| is_that_one(member.id, incarnation)) {
                    found.entry(member.id).or_insert_with(|| member.address.clone());
                }
            }
        }
    }

    fn tell(&mut self, address: &str, text: String) {
        if self.told.get(address) != Some(&text) {
            info!(address, "a node that cannot help to find the members answers: {text}");
            if self.told.len() >= MEMBERS_MAX {
                self.told.clear();
            }
            self.told.insert(address.to_owned(), text);
        }
    }
}

/// Whether this node is a member, as far as it knows, and knows no leader.
fn is_lost(status: &Status) -> bool {
    status.identity.is_some() && !status.members.is_empty() && status.leader_id.is_none()
}

impl Place {
    async fn resolve(&mut self, deadline: Duration) -> Vec<SocketAddr> {
        let lookup = self.lookup.get_or_insert_with(|| transport::resolve(&self.address));
        let outcome = match timeout(deadline, lookup).await {
            Ok(outcome) => {
                self.lookup = None;
                outcome.unwrap_or_else(|_| Err(io::Error::other("the lookup panicked")))
            }
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {deadline:?}"))),
        };
        outcome.unwrap_or_else(|error| {
            if self.warning.is_due() {
                warn!(address = self.address, %error, "the address cannot be resolved, it is tried again");
            }
            Vec::new()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lookup_that_hangs_is_waited_for_no_longer_than_its_deadline_and_not_begun_again() {
        let (hangs, lookup) = oneshot::channel();
        let address = "name:1".to_owned();
        let mut place = Place { address, lookup: Some(lookup), warning: LogThrottle::default() };
        let deadline = Duration::from_secs(2);
        assert_eq!(place.resolve(deadline).await, []);
        let found = SocketAddr::from(([127, 0, 0, 1], 7));
        hangs.send(Ok(vec![found])).unwrap();
        assert_eq!(place.resolve(deadline).await, [found], "what it says in the end is used");
        place.address = found.to_string();
        assert_eq!(place.resolve(deadline).await, [found]);
    }
}
