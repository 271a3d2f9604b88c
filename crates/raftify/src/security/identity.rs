//! The identity in a certificate: its hosts, its roles, and the ids of its node and cluster.

use parking_lot::Mutex;
use raftify_core::{ClusterId, NodeId};
use rustls::pki_types::{CertificateDer, ServerName};
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use webpki::EndEntityCert;

/// The prefixes of the subject alternative names (URIs) that carry a role, a node id, a cluster id, a
/// client's name.
const ROLE: &str = "raftify://role/";
const NODE: &str = "raftify://node/";
const CLUSTER: &str = "raftify://cluster/";
const CLIENT: &str = "raftify://client/";

/// How many hosts of a certificate are remembered as checked: those of the addresses of one node.
const CHECKED_HOSTS_MAX: usize = 8;

/// What the holder of a certificate may do: a subject alternative name of the certificate, a URI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CertificateRole {
    /// `raftify://role/node`: a member, or a node that joins. Messages, snapshots, requests that it forwards,
    /// and its own admission.
    Node,
    /// `raftify://role/client`: propose and read.
    Client,
    /// `raftify://role/admin`: as `Client`, and change the membership, transfer leadership, snapshot, backup.
    Admin,
}

impl CertificateRole {
    const ALL: [CertificateRole; 3] =
        [CertificateRole::Node, CertificateRole::Client, CertificateRole::Admin];

    /// The subject alternative name that gives this role.
    ///
    /// # Examples
    /// ```
    /// assert_eq!(raftify::tls::CertificateRole::Admin.uri(), "raftify://role/admin");
    /// ```
    pub fn uri(self) -> String {
        format!("{ROLE}{self}")
    }

    /// The roles in a certificate (DER), for other servers of the program, such as a web API. It is not
    /// verified: the server must have done that, with the CA of the cluster. Bytes that are no
    /// certificate have no roles.
    pub fn in_certificate(der: &[u8]) -> Vec<CertificateRole> {
        let identity = PeerIdentity::new(&CertificateDer::from(der));
        identity.map_or_else(|_| Vec::new(), |identity| identity.roles.into_iter().collect())
    }
}

impl fmt::Display for CertificateRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CertificateRole::Node => "node",
            CertificateRole::Client => "client",
            CertificateRole::Admin => "admin",
        })
    }
}

impl FromStr for CertificateRole {
    type Err = String;

    fn from_str(text: &str) -> Result<CertificateRole, String> {
        CertificateRole::ALL
            .into_iter()
            .find(|role| role.to_string() == text)
            .ok_or_else(|| format!("{text} is no role: give node, client or admin"))
    }
}

/// The subject alternative name that binds a certificate to this node id.
pub fn node_uri(id: NodeId) -> String {
    format!("{NODE}{id}")
}

/// The subject alternative name that binds a certificate to this cluster.
pub fn cluster_uri(id: ClusterId) -> String {
    format!("{CLUSTER}{id}")
}

/// The subject alternative name that names a client in logs and refusals. It has no other effect.
pub fn client_uri(name: &str) -> String {
    format!("{CLIENT}{name}")
}

/// The identity in the certificate of the other end, or of this one.
pub(crate) struct PeerIdentity {
    certificate: CertificateDer<'static>,
    roles: BTreeSet<CertificateRole>,
    nodes: Vec<String>,
    clusters: Vec<String>,
    names: String,
    /// Hosts that the certificate is known to cover: each message batch needs the same ones.
    checked: Mutex<Vec<String>>,
}

impl PeerIdentity {
    /// # Errors
    /// If it is not a certificate.
    pub(crate) fn new(certificate: &CertificateDer<'_>) -> Result<PeerIdentity, webpki::Error> {
        let certificate = certificate.clone().into_owned();
        let parsed = EndEntityCert::try_from(&certificate)?;
        let uris: Vec<&str> = parsed.valid_uri_names().collect();
        let with = |prefix: &str| -> Vec<String> {
            uris.iter().filter_map(|uri| uri.strip_prefix(prefix)).map(str::to_owned).collect()
        };
        let roles = with(ROLE).iter().filter_map(|role| role.parse().ok()).collect();
        let (nodes, clusters) = (with(NODE), with(CLUSTER));
        let mut names = hosts(&parsed);
        names.extend(with(CLIENT));
        names.extend(nodes.iter().map(|id| format!("node {id}")));
        names.extend(clusters.iter().map(|id| format!("cluster {id}")));
        let names = if names.is_empty() { "no name".to_owned() } else { names.join(", ") };
        Ok(PeerIdentity { roles, nodes, clusters, names, checked: Mutex::default(), certificate })
    }

    /// Whether the host of an address (`host:port`) is one of the certificate's subject alternative names.
    pub(crate) fn covers(&self, address: &str) -> bool {
        let host = host_of(address);
        let mut checked = self.checked.lock();
        if checked.iter().any(|known| known == host) {
            return true;
        }
        let (Ok(name), Ok(parsed)) = (ServerName::try_from(host), EndEntityCert::try_from(&self.certificate))
        else {
            return false;
        };
        let covers = parsed.verify_is_valid_for_subject_name(&name).is_ok();
        if covers {
            checked.truncate(CHECKED_HOSTS_MAX - 1);
            checked.push(host.to_owned());
        }
        covers
    }

    pub(crate) fn has_any(&self, roles: &[CertificateRole]) -> bool {
        roles.iter().any(|role| self.roles.contains(role))
    }

    /// The roles as text.
    pub(crate) fn roles(&self) -> String {
        list(self.roles.iter().copied())
    }

    /// A certificate without an id fits every node; the same holds for the cluster.
    ///
    /// # Errors
    /// Which node or cluster it is for instead.
    pub(crate) fn check_ids(&self, node: Option<NodeId>, cluster: Option<ClusterId>) -> Result<(), String> {
        if let Some(node) = node
            && !self.nodes.is_empty()
            && !self.nodes.contains(&node.to_string())
        {
            return Err(format!("it is for node {}, and not for node {node}", self.nodes.join(", ")));
        }
        if let Some(cluster) = cluster
            && !self.clusters.is_empty()
            && !self.clusters.contains(&cluster.to_string())
        {
            return Err(format!("it is for cluster {}, and not for {cluster}", self.clusters.join(", ")));
        }
        Ok(())
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names)
    }
}

impl fmt::Debug for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerIdentity({}; {})", self.names, self.roles())
    }
}

/// Roles as text.
pub(crate) fn list(roles: impl IntoIterator<Item = CertificateRole>) -> String {
    let roles: Vec<String> = roles.into_iter().map(|role| role.to_string()).collect();
    if roles.is_empty() { "none".to_owned() } else { roles.join(", ") }
}

/// The host of `host:port`, as certificates have it: without the brackets of an IPv6 address and without the
/// last dot of a name.
pub(crate) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(host) => host,
        None => host.strip_suffix('.').unwrap_or(host),
    }
}

/// All DNS names and IP addresses of a certificate.
fn hosts(certificate: &EndEntityCert<'_>) -> Vec<String> {
    // The library lists IP addresses only in the error for a name that does not fit.
    let Ok(none) = ServerName::try_from("none.invalid") else { return Vec::new() };
    let Err(webpki::Error::CertNotValidForName(names)) = certificate.verify_is_valid_for_subject_name(&none)
    else {
        return Vec::new();
    };
    names.presented.iter().filter_map(|name| host_in(name)).collect()
}

/// The host in one name as the library prints it: `DnsName("a")`, `IpAddress(1.2.3.4)`.
pub(super) fn host_in(name: &str) -> Option<String> {
    let host = name.strip_prefix("DnsName(").or_else(|| name.strip_prefix("IpAddress("))?;
    let host = host.trim_end_matches(')').trim_matches('"');
    // The library prints `::1` as `0::1`.
    Some(host.parse::<IpAddr>().map_or_else(|_| host.to_owned(), |address| address.to_string()))
}
