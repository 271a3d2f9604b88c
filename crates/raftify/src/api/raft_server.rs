//! The handle of a node's gRPC server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::channels::server_counters::{RequestCounts, ServerCounters};
use crate::runtime::descriptors::server_connections_max;

/// The gRPC server of a node: the second of the two parts that [`Raft`](crate::Raft) starts; the first is
/// [`RaftNode`](crate::RaftNode).
///
/// Other members and remote clients send their requests to it. It runs as long as the node does, and needs no
/// maintenance; this handle reports its address and the requests that it has received. Cheap to clone; all
/// clones are the same server.
///
/// # Examples
/// ```
/// use raftify::{BoxError, Config, Raft, Snapshot, StateMachine, WalStorage};
/// # use raftify::LogPosition;
/// # struct Sum(u64);
/// # impl StateMachine for Sum {
/// #     type LogEntry = u64;
/// #     type Reply = u64;
/// #     fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> {
/// #         self.0 += add;
/// #         Ok(self.0)
/// #     }
/// #     fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
/// #         Ok(Snapshot::from_value(self.0))
/// #     }
/// #     fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
/// #         self.0 = Snapshot::read_value(reader)?;
/// #         Ok(())
/// #     }
/// # }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), BoxError> {
/// # let directory = tempfile::tempdir()?;
/// let storage = WalStorage::open(directory.path())?;
/// let raft = Raft::begin("127.0.0.1:60092", storage, Sum(0), Config::default()).await?;
///
/// let server = raft.raft_server();
/// assert_eq!(server.address(), "127.0.0.1:60092");
/// assert_eq!(server.requests().proposals, 0); // this node's own proposals do not pass through its server
/// # raft.quit().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct RaftServer {
    address: Arc<str>,
    listen_address: SocketAddr,
    counters: Arc<ServerCounters>,
}

impl RaftServer {
    pub(crate) fn new(
        address: Arc<str>,
        listen_address: SocketAddr,
        counters: Arc<ServerCounters>,
    ) -> RaftServer {
        RaftServer { address, listen_address, counters }
    }

    /// The address at which the other nodes reach this one, `host:port`, as given at the start of the node.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The address on which the server listens, as the operating system reports it.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen_address
    }

    /// How many connections are open, at most [`connections_max`](Self::connections_max). Zero before the
    /// node runs and after it has ended.
    pub fn open_connections(&self) -> usize {
        self.counters.open_connections.load(Ordering::Relaxed)
    }

    /// How many requests the server has received since the node was set up, by kind. The counters are read
    /// one after the other, while the server counts.
    pub fn requests(&self) -> RequestCounts {
        self.counters.requests()
    }

    /// With TLS: how many connections were refused during the handshake, for lack of a valid certificate of
    /// the cluster's CA. A log message has the reason, at most once a minute.
    pub fn refused_handshakes(&self) -> u64 {
        self.counters.refused_handshakes.load(Ordering::Relaxed)
    }

    /// With TLS: how many requests were refused because the client does not use TLS, its certificate has not
    /// the role, or it is that of another node. A log message has the reason, at most once a minute; the
    /// client learns it as well.
    pub fn refused_requests(&self) -> u64 {
        self.counters.refused_requests.load(Ordering::Relaxed)
    }

    /// The maximum number of open connections for a server of this process, so that file descriptors remain
    /// for the log: half of the limit of the process (`ulimit -n`) minus its own needs, from 8 to 4096.
    ///
    /// A node's own server observes this limit. Apply it to the other servers of the program, a web API for
    /// instance. The first call raises the soft limit of the process to its hard limit; a node does that
    /// when it is set up.
    ///
    /// # Examples
    /// ```
    /// assert!((8..=4096).contains(&raftify::RaftServer::connections_max()));
    /// ```
    pub fn connections_max() -> usize {
        server_connections_max()
    }
}
