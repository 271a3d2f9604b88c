//! Who belongs to the cluster: the one place that encodes, decodes, checks and applies a membership change.
//!
//! [`Members`] is a value: the state of the membership as of one place in the log. It changes only by applying a
//! committed [`MembershipChange`] or [`MemberRecord`], in log order, on every node alike. It is stored together with
//! the index it is as of, in one transaction, so that a replay after a restart never applies a change twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv6Addr;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::types::{ClusterId, Identity, Incarnation, LogIndex, NodeId};

const MEMBERS_VERSION: u8 = 1;
const CHANGE_VERSION: u8 = 1;
const RECORD_VERSION: u8 = 1;

/// Most members a cluster may have. A quorum of more would only be slower; the limit keeps every table small.
pub const MEMBERS_MAX: usize = 64;

/// Longest address of a member, in bytes: a host name has at most 253, a port 5.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// Votes and counts towards the quorum.
    Voter,
    /// Receives the log, but neither votes nor counts (thesis, section 4.2.1).
    Learner,
    /// A voter of the outgoing half of a joint configuration only: gone as soon as the joint configuration is left.
    Leaving,
}

impl fmt::Display for MemberRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
            MemberRole::Leaving => "leaving",
        })
    }
}

/// A replicated fact: this node belongs to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Member {
    /// Which node.
    pub id: NodeId,
    /// Where its raft server listens: `host:port`, the host a name or an IP address.
    pub address: String,
    /// What it may do.
    pub role: MemberRole,
    /// The life of its data directory; `None` until the node has first been heard of.
    pub incarnation: Option<Incarnation>,
}

impl Member {
    /// A voter at `address`.
    pub fn voter(id: NodeId, address: impl Into<String>) -> Member {
        Member { id, address: address.into(), role: MemberRole::Voter, incarnation: None }
    }

    /// A learner at `address`.
    pub fn learner(id: NodeId, address: impl Into<String>) -> Member {
        Member { id, address: address.into(), role: MemberRole::Learner, incarnation: None }
    }
}

/// What to do with the joint configuration that a change of several members goes through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaveJoint {
    /// The leader leaves it as soon as it is committed; whoever leads then.
    #[default]
    Automatically,
    /// It stays until somebody calls `leave_joint`.
    OnRequest,
}

/// One step of a [`MembershipChange`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberChange {
    /// Adds the member; for a node that is one already, changes its role or its address.
    Add(Member),
    /// Removes the node. Its id is never given out again.
    Remove(NodeId),
}

/// A change of voters or learners, as it stands in the log.
///
/// One step changes the configuration at once; several go through a joint configuration, in which both the old and
/// the new majority must agree (thesis, section 4.3).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MembershipChange {
    /// Carries out all `steps` together.
    Steps {
        /// At least one, each for another node.
        steps: Vec<MemberChange>,
        /// Matters for more than one step only.
        leave: LeaveJoint,
    },
    /// Leaves the joint configuration.
    LeaveJoint,
}

impl MembershipChange {
    /// A change of a single member.
    pub fn one(step: MemberChange) -> MembershipChange {
        MembershipChange::Steps { steps: vec![step], leave: LeaveJoint::Automatically }
    }

    /// Whether this change goes through a joint configuration.
    pub(crate) fn enters_joint(&self) -> bool {
        matches!(self, MembershipChange::Steps { steps, .. } if steps.len() > 1)
            && !mutated!(SeveralVotersAtOnce)
    }

    /// The payload of its log entry.
    pub fn encode(&self) -> Bytes {
        encode_versioned(CHANGE_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<MembershipChange, MembersDecodeError> {
        decode_versioned("membership change", CHANGE_VERSION, bytes)
    }
}

impl fmt::Display for MembershipChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MembershipChange::Steps { steps, .. } = self else {
            return f.write_str("leave the joint configuration");
        };
        for (number, step) in steps.iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            match step {
                MemberChange::Add(Member { id, address, role, .. }) => {
                    write!(f, "{separator}add {role} {id} at {address}")?;
                }
                MemberChange::Remove(id) => write!(f, "{separator}remove node {id}")?,
            }
        }
        Ok(())
    }
}

/// A replicated fact about members that changes no quorum, as it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MemberRecord {
    /// Gives out the next node id. Which one is decided when the entry is applied, so that no two callers get one.
    ReserveNodeId,
    /// From now on, node `id` is believed only with this incarnation.
    Incarnation {
        /// The node.
        id: NodeId,
        /// As first heard of.
        incarnation: Incarnation,
    },
}

impl MemberRecord {
    /// The payload of its log entry.
    pub fn encode(&self) -> Bytes {
        encode_versioned(RECORD_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<MemberRecord, MembersDecodeError> {
        decode_versioned("member record", RECORD_VERSION, bytes)
    }
}

/// The membership as of one place in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    as_of: LogIndex,
    members: BTreeMap<NodeId, Member>,
    /// The voters of the outgoing configuration; empty unless joint.
    outgoing: BTreeSet<NodeId>,
    leave: LeaveJoint,
    next_node_id: NodeId,
    /// Ids that were members once. They are never given out again, so that a late message of the old holder is
    /// never taken for one of a new holder.
    removed: BTreeSet<NodeId>,
}

/// The voters and learners of a [`Members`], in the terms of consensus: what raft-rs calls a `ConfState`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Voters of the incoming configuration.
    pub voters: BTreeSet<NodeId>,
    /// Voters of the outgoing configuration; empty unless joint.
    pub voters_outgoing: BTreeSet<NodeId>,
    /// Learners.
    pub learners: BTreeSet<NodeId>,
    /// Voters of the outgoing configuration that become learners when the joint configuration is left.
    pub learners_next: BTreeSet<NodeId>,
}

impl Members {
    /// Nobody yet: the state of a node that waits to be let into a cluster.
    pub fn none() -> Members {
        Members {
            as_of: LogIndex::ZERO,
            members: BTreeMap::new(),
            outgoing: BTreeSet::new(),
            leave: LeaveJoint::Automatically,
            next_node_id: NodeId::FIRST,
            removed: BTreeSet::new(),
        }
    }

    /// The first members of a new cluster, as of index 1, where its log begins.
    ///
    /// # Errors
    /// The reason why these cannot be the members of a cluster.
    pub fn initial(members: impl IntoIterator<Item = Member>) -> Result<Members, MembershipRefusal> {
        let mut result = Members::none();
        for member in members {
            if result.members.contains_key(&member.id) {
                return Err(MembershipRefusal::NamedTwice { id: member.id });
            }
            result.set(member)?;
        }
        result.check_whole()?;
        result.as_of = LogIndex(1);
        Ok(result)
    }

    /// The place in the log up to which changes are included.
    pub fn as_of(&self) -> LogIndex {
        self.as_of
    }

    /// Whether there is nobody: the node has not been let into a cluster.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// How many members there are, learners included.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// The member with this id.
    pub fn get(&self, id: NodeId) -> Option<&Member> {
        self.members.get(&id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// Whether a joint configuration is in force.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether a joint configuration is in force that the leader must leave by itself.
    pub(crate) fn must_leave_joint(&self) -> bool {
        self.is_joint() && self.leave == LeaveJoint::Automatically && !mutated!(JointIsNeverLeft)
    }

    /// Whether `id` votes in the configuration in force, in either half of a joint one.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.outgoing.contains(&id) || self.get(id).is_some_and(|member| member.role == MemberRole::Voter)
    }

    /// The next id that will be reserved.
    pub fn next_node_id(&self) -> NodeId {
        self.next_node_id
    }

    /// In the terms of consensus.
    pub fn configuration(&self) -> Configuration {
        let mut configuration =
            Configuration { voters_outgoing: self.outgoing.clone(), ..Default::default() };
        for member in self.members.values() {
            let set = match member.role {
                MemberRole::Voter => &mut configuration.voters,
                MemberRole::Learner if self.outgoing.contains(&member.id) => &mut configuration.learners_next,
                MemberRole::Learner => &mut configuration.learners,
                MemberRole::Leaving => continue,
            };
            set.insert(member.id);
        }
        configuration
    }

    /// The membership after `change`, which stands at `index`.
    ///
    /// # Errors
    /// Why the change cannot be made. The same on every node, so that a refused change is skipped by all.
    pub fn changed(&self, index: LogIndex, change: &MembershipChange) -> Result<Members, MembershipRefusal> {
        let mut result = self.clone();
        result.as_of = index;
        match change {
            MembershipChange::Steps { steps, leave } => result.take_steps(steps, *leave)?,
            MembershipChange::LeaveJoint => result.leave_joint()?,
        }
        result.check_whole()?;
        Ok(result)
    }

    /// The membership after `record`, which stands at `index`.
    pub fn recorded(&self, index: LogIndex, record: &MemberRecord) -> Members {
        let mut result = self.clone();
        result.as_of = index;
        match record {
            MemberRecord::ReserveNodeId if mutated!(ReservationsRepeat) => {}
            MemberRecord::ReserveNodeId => {
                result.next_node_id = self.next_node_id.next().unwrap_or(self.next_node_id);
            }
            MemberRecord::Incarnation { id, incarnation } => {
                // The first record wins: a later one could only come from a directory that replaced the first.
                if let Some(member) = result.members.get_mut(id) {
                    member.incarnation.get_or_insert(*incarnation);
                }
            }
        }
        result
    }

    fn take_steps(&mut self, steps: &[MemberChange], leave: LeaveJoint) -> Result<(), MembershipRefusal> {
        if self.is_joint() {
            return Err(MembershipRefusal::AlreadyJoint);
        }
        if steps.is_empty() {
            return Err(MembershipRefusal::NoSteps);
        }
        let mut named = BTreeSet::new();
        let before = self.configuration().voters;
        for step in steps {
            let id = match step {
                MemberChange::Add(member) => member.id,
                MemberChange::Remove(id) => *id,
            };
            if !named.insert(id) {
                return Err(MembershipRefusal::NamedTwice { id });
            }
        }
        if steps.len() > 1 && !mutated!(SeveralVotersAtOnce) {
            self.outgoing = before;
            self.leave = leave;
        }
        for step in steps {
            match step {
                MemberChange::Add(member) => self.set(member.clone())?,
                MemberChange::Remove(id) => self.remove(*id)?,
            }
        }
        Ok(())
    }

    fn set(&mut self, mut member: Member) -> Result<(), MembershipRefusal> {
        let id = member.id;
        check_address(&member.address).map_err(|problem| MembershipRefusal::BadAddress { id, problem })?;
        if member.role == MemberRole::Leaving {
            return Err(MembershipRefusal::CannotAddLeaving { id });
        }
        if self.removed.contains(&id) && !mutated!(RemovedIdsComeBack) {
            return Err(MembershipRefusal::IdWasRemoved { id });
        }
        if let Some(holder) = self.members.values().find(|m| m.address == member.address && m.id != id) {
            return Err(MembershipRefusal::AddressTaken { id, address: member.address, holder: holder.id });
        }
        if let Some(known) = self.members.get(&id) {
            match (known.incarnation, member.incarnation) {
                (Some(known), Some(new)) if known != new => {
                    return Err(MembershipRefusal::OtherIncarnation { id, known, new });
                }
                (known, new) => member.incarnation = new.or(known),
            }
        }
        let after = id.next().ok_or(MembershipRefusal::IdsExhausted)?;
        self.next_node_id = self.next_node_id.max(after);
        self.members.insert(id, member);
        Ok(())
    }

    fn remove(&mut self, id: NodeId) -> Result<(), MembershipRefusal> {
        let member = self.members.get_mut(&id).ok_or(MembershipRefusal::UnknownMember { id })?;
        if self.outgoing.contains(&id) {
            member.role = MemberRole::Leaving;
        } else {
            self.members.remove(&id);
            self.removed.insert(id);
        }
        Ok(())
    }

    fn leave_joint(&mut self) -> Result<(), MembershipRefusal> {
        if !self.is_joint() {
            return Err(MembershipRefusal::NotJoint);
        }
        self.outgoing.clear();
        self.leave = LeaveJoint::Automatically;
        let leaving: Vec<NodeId> =
            self.members.values().filter(|m| m.role == MemberRole::Leaving).map(|m| m.id).collect();
        for id in leaving {
            self.members.remove(&id);
            self.removed.insert(id);
        }
        Ok(())
    }

    /// What must hold of every membership, however it came about.
    fn check_whole(&self) -> Result<(), MembershipRefusal> {
        if !self.members.values().any(|member| member.role == MemberRole::Voter) {
            return Err(MembershipRefusal::LastVoter);
        }
        if self.members.len() > MEMBERS_MAX {
            return Err(MembershipRefusal::TooManyMembers { count: self.members.len() });
        }
        Ok(())
    }

    /// May a message of `sender` be believed by the node that is `own`, which the sender takes for `receiver`, as far as
    /// it knows? Asked for every message before it reaches consensus.
    ///
    /// # Errors
    /// Why not. All of the reasons are final. [`SenderRefusal::OtherReceiver`] speaks against the receiver, not the sender.
    pub fn check_sender(
        &self,
        sender: &Sender,
        receiver: Option<Incarnation>,
        own: &Identity,
    ) -> Result<(), SenderRefusal> {
        if sender.id == own.node_id {
            return Err(SenderRefusal::SameId { id: own.node_id });
        }
        if mutated!(IncarnationIsNotChecked) && self.get(sender.id).is_some() {
            return Ok(());
        }
        match self.get(sender.id) {
            Some(member) => match member.incarnation {
                Some(known) if known != sender.incarnation => {
                    return Err(SenderRefusal::Fenced {
                        id: sender.id,
                        known,
                        presented: sender.incarnation,
                    });
                }
                _ => {}
            },
            // The sender may have been added by a change that has not reached this node: it may even be the leader
            // that will bring it. Only who claims no newer membership than ours is judged by ours.
            None if !self.is_empty() && sender.members_as_of <= self.as_of => {
                return Err(SenderRefusal::NotAMember { id: sender.id, as_of: self.as_of });
            }
            None => {}
        }
        match receiver {
            Some(expected) if expected != own.incarnation => {
                Err(SenderRefusal::OtherReceiver { id: own.node_id, expected, actual: own.incarnation })
            }
            _ => Ok(()),
        }
    }

    /// For storage and snapshots: a version, then the value.
    pub fn encode(&self) -> Bytes {
        encode_versioned(MEMBERS_VERSION, self)
    }

    /// The inverse of [`encode`](Self::encode).
    ///
    /// # Errors
    /// If the version is not known, or the bytes do not describe a possible membership.
    pub fn decode(bytes: &[u8]) -> Result<Members, MembersDecodeError> {
        let members: Members = decode_versioned("membership", MEMBERS_VERSION, bytes)?;
        let consistent = members.members.iter().all(|(id, member)| *id == member.id)
            && members.outgoing.iter().all(|id| members.members.contains_key(id))
            && members
                .members
                .values()
                .all(|m| m.role != MemberRole::Leaving || members.outgoing.contains(&m.id));
        if !consistent {
            return Err(MembersDecodeError::Inconsistent);
        }
        if !members.is_empty() {
            members.check_whole().map_err(|_| MembersDecodeError::Inconsistent)?;
        }
        Ok(members)
    }

    /// A cluster id that every node derives alike from the same first members.
    pub fn derive_cluster_id(&self) -> ClusterId {
        // FNV-1a: any stable hash will do, since the id only has to differ between differently configured clusters.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for member in self.members.values() {
            let id = member.id.get().to_le_bytes();
            for byte in id.iter().chain(member.address.as_bytes()).chain(&[0]) {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        ClusterId(hash)
    }
}

/// Who sent a message, as it introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its id.
    pub id: NodeId,
    /// The life of its data directory.
    pub incarnation: Incarnation,
    /// The place in the log up to which the sender knows the membership, in which it believes to be a member.
    pub members_as_of: LogIndex,
}

/// Why a message was refused before it reached consensus. All of these are final: sending again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum SenderRefusal {
    /// The sender has this node's own id.
    #[error(
        "two nodes have id {id}: the sender and the receiver. Stop the one that was started by mistake; let it join \
         with a ticket of its own"
    )]
    SameId {
        /// The id of both.
        id: NodeId,
    },
    /// The sender lost or replaced its data directory.
    #[error(
        "node {id} is known with incarnation {known}, the sender has {presented}: its data directory was wiped or \
         replaced, and what it once acknowledged is gone. Remove node {id} from the cluster and let it join again \
         with a new ticket and an empty directory"
    )]
    Fenced {
        /// The sender.
        id: NodeId,
        /// As the cluster knows it.
        known: Incarnation,
        /// As it introduced itself.
        presented: Incarnation,
    },
    /// The sender was removed, or never was a member.
    #[error(
        "node {id} is not a member of the cluster as of index {as_of}: it was removed, or never joined. To take part \
         again it must join with a new ticket and an empty directory"
    )]
    NotAMember {
        /// The sender.
        id: NodeId,
        /// The membership that was asked.
        as_of: LogIndex,
    },
    /// The sender believes the receiver to be another life of this node.
    #[error(
        "this message is for incarnation {expected} of node {id}, and this is incarnation {actual}: the data directory \
         was wiped or replaced. Remove node {id} from the cluster and let it join again with a new ticket"
    )]
    OtherReceiver {
        /// The receiver.
        id: NodeId,
        /// As the sender knows it.
        expected: Incarnation,
        /// As it is.
        actual: Incarnation,
    },
}

/// Why a membership change is refused. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MembershipRefusal {
    /// A cluster needs a voter.
    #[error("no voter would be left: add another voter first, or stop the node if the cluster is to end")]
    LastVoter,
    /// The node is no member.
    #[error("node {id} is not a member")]
    UnknownMember {
        /// The node.
        id: NodeId,
    },
    /// One node occurs in two steps.
    #[error("node {id} is named twice")]
    NamedTwice {
        /// The node.
        id: NodeId,
    },
    /// The change is empty.
    #[error("the change names no member")]
    NoSteps,
    /// Another member has this address.
    #[error(
        "node {id} cannot have address {address}: it belongs to node {holder}. Remove that node first if it is gone"
    )]
    AddressTaken {
        /// The node to be added.
        id: NodeId,
        /// Its address.
        address: String,
        /// Who has it.
        holder: NodeId,
    },
    /// The address is no address.
    #[error("node {id}: {problem}")]
    BadAddress {
        /// The node to be added.
        id: NodeId,
        /// What is wrong with it.
        problem: AddressProblem,
    },
    /// The id was used before.
    #[error("node {id} was removed before, and ids are never used again: ask for a new ticket")]
    IdWasRemoved {
        /// The node to be added.
        id: NodeId,
    },
    /// The member is known with another data directory.
    #[error(
        "node {id} is a member with incarnation {known}, not {new}: its data directory was replaced. Remove it first"
    )]
    OtherIncarnation {
        /// The node.
        id: NodeId,
        /// As the cluster knows it.
        known: Incarnation,
        /// As it asks to be added.
        new: Incarnation,
    },
    /// `Leaving` is a state, not a role to be added with.
    #[error("node {id} cannot be added as leaving: remove it instead")]
    CannotAddLeaving {
        /// The node.
        id: NodeId,
    },
    /// A joint configuration must be left first.
    #[error("a joint configuration is in force: leave it first")]
    AlreadyJoint,
    /// There is no joint configuration to leave.
    #[error("no joint configuration is in force")]
    NotJoint,
    /// More than [`MEMBERS_MAX`].
    #[error("{count} members are more than the {MEMBERS_MAX} that a cluster may have")]
    TooManyMembers {
        /// As asked for.
        count: usize,
    },
    /// All 2⁶⁴ − 1 ids are used.
    #[error("no node id is left")]
    IdsExhausted,
}

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("address {address:?} is not of the form host:port, {reason}")]
pub struct AddressProblem {
    address: String,
    reason: String,
}

/// Checks the form of an address, `host:port`, without resolving it.
///
/// # Errors
/// What is wrong with it.
pub fn check_address(address: &str) -> Result<(), AddressProblem> {
    let problem = |reason: &str| {
        let shown: String = address.chars().take(ADDRESS_BYTES_MAX).collect();
        Err(AddressProblem { address: shown, reason: reason.to_owned() })
    };
    if address.len() > ADDRESS_BYTES_MAX {
        return problem("it is too long");
    }
    if address.contains("://") {
        return problem("what ends in :// must be left out");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return problem("the port is missing");
    };
    if host.is_empty() {
        return problem("the host is missing");
    }
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if host.contains(':') && in_brackets.is_none() {
        return problem("an IPv6 address needs brackets, as in [::1]:60061");
    }
    if in_brackets.is_some_and(|host| host.parse::<Ipv6Addr>().is_err()) {
        return problem("what is in the brackets is no IPv6 address, which must be one without a zone");
    }
    // Others mean something else, or nothing, in the URL that is connected to.
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if in_brackets.is_none() && !host.chars().all(is_of_a_name) {
        return problem("the host holds something else than letters a to z, digits, `-`, `.` and `_`");
    }
    match port.parse::<u16>() {
        Ok(0) => problem("port 0 cannot be reached by others"),
        // With a plus sign, it would be a number all the same.
        Ok(_) if !port.starts_with('+') => Ok(()),
        _ => problem("the port is no number from 1 to 65535"),
    }
}

/// Bytes that are no membership, change or record of this version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembersDecodeError {
    /// Nothing at all.
    #[error("the {what} is empty")]
    Empty {
        /// What was to be decoded.
        what: &'static str,
    },
    /// Written by another version.
    #[error(
        "the {what} has format version {found}, this program knows {known}: it was written by a newer version"
    )]
    Version {
        /// What was to be decoded.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version known.
        known: u8,
    },
    /// Damaged.
    #[error("the {what} cannot be decoded: {reason}")]
    Malformed {
        /// What was to be decoded.
        what: &'static str,
        /// As the decoder says.
        reason: String,
    },
    /// Decoded, but impossible.
    #[error("the membership contradicts itself")]
    Inconsistent,
}

fn encode_versioned<T: Serialize>(version: u8, value: &T) -> Bytes {
    let bytes = postcard::to_extend(value, vec![version]);
    bytes.expect("plain data with known lengths, written to memory, always encodes").into()
}

fn decode_versioned<T: for<'a> Deserialize<'a>>(
    what: &'static str,
    known: u8,
    bytes: &[u8],
) -> Result<T, MembersDecodeError> {
    let (found, rest) = bytes.split_first().ok_or(MembersDecodeError::Empty { what })?;
    if *found != known {
        return Err(MembersDecodeError::Version { what, found: *found, known });
    }
    let (value, rest) = postcard::take_from_bytes(rest)
        .map_err(|error| MembersDecodeError::Malformed { what, reason: error.to_string() })?;
    if !rest.is_empty() {
        let reason = format!("{} bytes follow it", rest.len());
        return Err(MembersDecodeError::Malformed { what, reason });
    }
    Ok(value)
}
