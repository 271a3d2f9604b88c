//! Beginning a new cluster, alone or with a list of first members.
//!
//! A node with a list begins only when the other listed nodes have the same list: different lists make
//! different clusters, and each of them could have a majority. The node runs meanwhile, so that the others
//! can query it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use raftify_core::error::{JoinError, StopReason};
use raftify_core::members::MembershipRefusal;
use raftify_core::{ClusterId, Identity, Incarnation, Member, Members, NodeId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use crate::channels::events::EarlierIncarnation;
use crate::error::BeginError;
use crate::runtime::random::random;
use crate::security::dialer::Dialer;
use crate::verbs::identify::probe_all;
use crate::wire::identification::{Identification, Plan};

/// How long a node waits for all listed nodes before it begins with a majority of them: long enough for nodes
/// that start together, short enough for a cluster with one machine down.
const ALL_AGREE_PATIENCE: Duration = Duration::from_secs(3);

/// How long lists may differ before the node gives up: time to correct the other list and restart that node.
const CONFLICT_PATIENCE: Duration = Duration::from_secs(10);

/// The pause between two rounds of requests doubles from the first up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How often a node that waits for others logs it.
pub(crate) const SAID_EVERY: Duration = Duration::from_secs(10);

/// How long one listed node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The first members with which a node begins its cluster.
#[derive(Clone, Debug)]
pub(crate) enum FirstStart {
    /// This node alone, in a cluster with a unique id.
    Alone,
    /// These members, in the cluster whose id follows from their list.
    Listed(Members),
    /// These members, which have found each other: the expected number.
    Expected(Members),
}

impl FirstStart {
    /// The identity of this node, and the first members.
    pub(crate) fn cluster(
        self,
        id: NodeId,
        address: &str,
        incarnation: Incarnation,
    ) -> Result<(Identity, Members), MembershipRefusal> {
        let (cluster_id, members) = match self {
            FirstStart::Listed(members) | FirstStart::Expected(members) => {
                (members.derive_cluster_id(), members)
            }
            FirstStart::Alone => {
                let this = Member { incarnation: Some(incarnation), ..Member::voter(id, address) };
                (ClusterId(random()), Members::initial([this])?)
            }
        };
        Ok((Identity { cluster_id, node_id: id, incarnation }, members))
    }
}

/// The handle's request to begin, and its outcome.
#[derive(Clone)]
pub(crate) struct FirstStartRequest(Arc<Inner>);

struct Inner {
    first: Mutex<Option<FirstStart>>,
    outcome: watch::Sender<Option<Result<(), BeginError>>>,
}

impl FirstStartRequest {
    pub(crate) fn new() -> FirstStartRequest {
        FirstStartRequest(Arc::new(Inner { first: Mutex::new(None), outcome: watch::Sender::new(None) }))
    }

    /// Records the first members if `first` returns them. `run` cannot take them meanwhile.
    pub(crate) fn lay_down<E>(
        &self,
        first: impl FnOnce() -> Result<Option<FirstStart>, E>,
    ) -> Result<bool, E> {
        let mut place = self.0.first.lock();
        let first = first()?;
        let is_laid_down = first.is_some();
        *place = first.or_else(|| place.take());
        Ok(is_laid_down)
    }

    /// The recorded first members, for the node that runs now.
    pub(crate) fn take(&self) -> Option<FirstStart> {
        self.0.first.lock().take()
    }

    /// The cluster has begun here, durably, or cannot begin. The first outcome stays.
    pub(crate) fn end(&self, outcome: Result<(), BeginError>) {
        self.0.outcome.send_if_modified(|known| {
            let is_first = known.is_none();
            if is_first {
                *known = Some(outcome);
            }
            is_first
        });
    }

    /// Why the cluster could not begin.
    pub(crate) fn failure(&self) -> Option<BeginError> {
        self.0.outcome.borrow().clone()?.err()
    }

    /// Resolves once the cluster has begun here, durably, or cannot.
    pub(crate) async fn ended(&self) -> Result<(), BeginError> {
        let mut outcome = self.0.outcome.subscribe();
        let outcome = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        // An error would mean that the sender is gone, but `self` holds it.
        outcome.ok().flatten().unwrap_or(Err(BeginError::Start(JoinError::Stopped(StopReason::Stopped))))
    }
}

/// The meaning of one listed node's answer.
enum Verdict {
    Agrees,
    /// The node does not answer, or does not know yet, for this reason.
    Silent(String),
    /// The node has another list, or belongs to another cluster.
    Differs(String),
    /// This node can never begin.
    Never(BeginError),
}

/// Other nodes have other lists.
struct Conflict {
    since: Instant,
    said: Option<(Instant, BeginError)>,
}

impl Conflict {
    fn new() -> Conflict {
        Conflict { since: Instant::now(), said: None }
    }

    /// Whether to log the error now: when it has changed, and at intervals.
    fn is_news(&mut self, error: &BeginError) -> bool {
        let is_news = self.said.as_ref().is_none_or(|(at, said)| said != error || at.elapsed() >= SAID_EVERY);
        if is_news {
            self.said = Some((Instant::now(), error.clone()));
        }
        is_news
    }
}

/// Queries all other nodes of a list until they agree with it, or enough of them do.
pub(crate) struct Confirmation {
    pub(crate) own: Identity,
    pub(crate) address: Arc<str>,
    pub(crate) dialer: Dialer,
    /// With an expected number, all of its members must have pledged themselves to the cluster.
    pub(crate) plan: Plan,
    pub(crate) earlier_incarnation: watch::Receiver<Option<EarlierIncarnation>>,
}

impl Confirmation {
    /// Resolves when the cluster may begin, or this node can never begin it.
    pub(crate) async fn confirmed(&self) -> Result<(), BeginError> {
        let Identity { node_id: id, cluster_id, incarnation } = self.own;
        let mut earlier_incarnation = self.earlier_incarnation.clone();
        let is_other = |known: &EarlierIncarnation| known.incarnation != incarnation;
        tokio::select! {
            biased;
            Ok(known) = earlier_incarnation.wait_for(|known| known.as_ref().is_some_and(is_other)) => {
                let address = known.as_ref().map(|known| known.teller.clone()).unwrap_or_default();
                Err(BeginError::Wiped { id, cluster_id, address })
            }
            confirmed = self.agreed() => confirmed,
        }
    }

    async fn agreed(&self) -> Result<(), BeginError> {
        let members = &self.plan.members;
        let others: Vec<&Member> = members.iter().filter(|member| member.id != self.own.node_id).collect();
        let began = Instant::now();
        let mut pause = PAUSE_MIN;
        let mut conflict: Option<Conflict> = None;
        // A node that differs and then becomes unreachable still differs: it may have given up, and restart
        // unchanged.
        let mut differing: BTreeMap<&str, String> = BTreeMap::new();
        let mut said: Option<Instant> = None;
        loop {
            let asked = others.iter().map(|member| member.address.as_str());
            let answers = probe_all(&self.dialer, asked, ANSWER_TIMEOUT).await;
            let (mut agreeing, mut silent) = (1, Vec::new());
            for (member, (address, answer)) in others.iter().zip(answers) {
                match answer.map_or_else(Verdict::Silent, |answer| self.judge(member, &answer)) {
                    Verdict::Agrees => {
                        agreeing += 1;
                        differing.remove(address);
                    }
                    Verdict::Silent(reason) => silent.push(reason),
                    Verdict::Differs(differences) => drop(differing.insert(address, differences)),
                    Verdict::Never(error) => return Err(error),
                }
            }
            let waited = began.elapsed();
            if let Some((address, differences)) = differing.first_key_value() {
                let (address, differences) = ((*address).to_owned(), differences.clone());
                let error = BeginError::ConflictingMembers { address, differences };
                let conflict = conflict.get_or_insert_with(Conflict::new);
                if conflict.is_news(&error) {
                    error!(node = %self.own.node_id, "{error}");
                }
                if conflict.since.elapsed() >= CONFLICT_PATIENCE {
                    return Err(error);
                }
            } else {
                conflict = None;
                let is_majority = agreeing > members.len() / 2;
                let is_enough = is_majority && waited >= ALL_AGREE_PATIENCE && !self.must_pledge();
                if agreeing == members.len() || is_enough {
                    return Ok(());
                }
                if waited >= ALL_AGREE_PATIENCE && said.is_none_or(|at| at.elapsed() >= SAID_EVERY) {
                    said = Some(Instant::now());
                    let needed = if self.must_pledge() { "all" } else { "a majority" };
                    info!(
                        node = %self.own.node_id,
                        "waiting to begin the cluster: {agreeing} of {} listed nodes agree, {needed} must: {}",
                        members.len(), silent.join("; ")
                    );
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn must_pledge(&self) -> bool {
        self.plan.expect > 0
    }

    fn judge(&self, listed: &Member, answer: &Identification) -> Verdict {
        let own = &self.own;
        let is_this = answer.plan.as_ref().is_some_and(|plan| plan.nonce == self.plan.nonce)
            || answer.identity.is_some_and(|identity| identity == *own);
        if is_this {
            let (first, second) = (self.address.to_string(), listed.address.clone());
            return Verdict::Never(BeginError::SameAddress { first, second, id: own.node_id });
        }
        let theirs = match (&answer.identity, &answer.plan) {
            (Some(identity), plan) if identity.cluster_id != own.cluster_id => {
                plan.as_ref().map_or(&answer.members, |plan| &plan.members)
            }
            (Some(_), _) => return self.judge_member(listed, answer),
            (None, Some(_)) if self.must_pledge() => {
                return Verdict::Silent(format!("the node at {} has not pledged itself yet", listed.address));
            }
            (None, Some(plan)) if plan.members.derive_cluster_id() != own.cluster_id => &plan.members,
            (None, Some(_)) => return self.judge_place(listed, answer),
            (None, None) => {
                return Verdict::Silent(format!(
                    "the node at {} was given no list of members",
                    listed.address
                ));
            }
        };
        let differences = match self.plan.members.differences(theirs) {
            same if same.is_empty() => "its members are the same, its cluster is another one".to_owned(),
            differences => differences,
        };
        Verdict::Differs(differences)
    }

    /// The cluster of this list has begun already.
    fn judge_member(&self, listed: &Member, answer: &Identification) -> Verdict {
        let Identity { node_id: id, cluster_id, incarnation } = self.own;
        let address = listed.address.clone();
        let known = answer.members.get(id);
        let is_other = |member: &Member| member.incarnation.is_some_and(|known| known != incarnation);
        if known.is_some_and(is_other) || answer.members.is_removed(id) {
            return Verdict::Never(BeginError::Wiped { id, cluster_id, address });
        }
        self.judge_place(listed, answer)
    }

    /// The list is the same; the answering node must be the one that the list has at this address.
    fn judge_place(&self, listed: &Member, answer: &Identification) -> Verdict {
        if answer.node_id == listed.id {
            return Verdict::Agrees;
        }
        let (first, second, id) = (answer.address.clone(), listed.address.clone(), answer.node_id);
        if first == second || answer.node_id == self.own.node_id {
            return Verdict::Differs(format!("node {id} answers there, not node {}", listed.id));
        }
        Verdict::Never(BeginError::SameAddress { first, second, id })
    }
}
