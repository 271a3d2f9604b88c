//! The connections that a server has accepted: bounded by the file descriptors of the process.
//!
//! When the maximum is reached and another connection arrives, the newest connection that does not belong to
//! a member is closed: so neither clients that hold connections nor clients that reconnect often keep the
//! other nodes out, and older connections are not disturbed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;
use tonic::Request;
use tracing::warn;

use crate::channels::server_counters::{OpenConnection, ServerCounters};
use crate::runtime::log_throttle::LogThrottle;
use crate::security::acceptor::Peer;
use crate::security::identity::PeerIdentity;

/// How many calls with many requests may be open on one connection. A client needs one, and for a moment two.
const STREAMS_MAX: usize = 16;

/// All accepted connections. Dropping it aborts them.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    max: usize,
    counters: Arc<ServerCounters>,
}

#[derive(Default)]
struct Shared(Mutex<Accepted>);

#[derive(Default)]
struct Accepted {
    /// The number of connections so far.
    count: u64,
    open: BTreeMap<u64, Open>,
    warning: LogThrottle,
}

struct Open {
    /// Dropping it aborts the connection.
    _uncut: watch::Sender<()>,
    is_members: bool,
}

/// One connection. Dropped together with it.
pub(crate) struct ConnectionGuard {
    id: ConnectionId,
    uncut: watch::Receiver<()>,
    _counted: OpenConnection,
}

/// Attached to each request of a connection.
#[derive(Clone)]
pub(crate) struct ConnectionId {
    shared: Arc<Shared>,
    number: u64,
    /// The other end, once a TLS handshake has found it.
    peer: Arc<OnceLock<Peer>>,
    /// The number of open calls with many requests.
    streams: Arc<AtomicUsize>,
}

/// An open call with many requests, until it is dropped.
pub(super) struct OpenStream(Arc<AtomicUsize>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Accepted> {
        self.0.lock()
    }
}

impl Connections {
    /// At most `max` connections.
    pub(crate) fn new(max: usize, counters: Arc<ServerCounters>) -> Connections {
        Connections { shared: Arc::default(), max, counters }
    }

    /// Registers a connection; if there are too many, it replaces the newest one that is not a member's.
    /// `None` if all are members'.
    pub(crate) fn accept(&self) -> Option<ConnectionGuard> {
        let mut accepted = self.shared.lock();
        if accepted.open.len() >= self.max {
            let newest = accepted.open.iter().rev().find(|(_, open)| !open.is_members);
            let newest = newest.map(|(number, _)| *number);
            if accepted.warning.is_due() {
                warn!(
                    "{} connections are open, which is the limit: for each further one, the newest is closed that is not a \
                     member's. Allow more file descriptors (ulimit -n), or see which clients hold connections",
                    accepted.open.len()
                );
            }
            accepted.open.remove(&newest?);
        }
        let number = accepted.count;
        accepted.count += 1;
        let (cut, uncut) = watch::channel(());
        accepted.open.insert(number, Open { _uncut: cut, is_members: false });
        let shared = Arc::clone(&self.shared);
        let id = ConnectionId { shared, number, peer: Arc::default(), streams: Arc::default() };
        Some(ConnectionGuard { id, uncut, _counted: self.counters.connection_opened() })
    }

    /// Aborts all connections.
    pub(crate) fn abort(&self) {
        self.shared.lock().open.clear();
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.abort();
    }
}

impl ConnectionGuard {
    /// Ends when the connection is to be aborted.
    pub(crate) fn uncut(&self) -> &watch::Receiver<()> {
        &self.uncut
    }

    pub(crate) fn id(&self) -> ConnectionId {
        self.id.clone()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.id.shared.lock().open.remove(&self.id.number);
    }
}

impl ConnectionId {
    /// The connection on which a request arrived.
    pub(crate) fn of<T>(request: &Request<T>) -> Option<ConnectionId> {
        request.extensions().get().cloned()
    }

    /// Counts one more call with many requests; `None`: there are too many.
    pub(super) fn open_stream(&self) -> Option<OpenStream> {
        let after = |open: usize| (open < STREAMS_MAX).then_some(open + 1);
        let counted = self.streams.fetch_update(Ordering::AcqRel, Ordering::Acquire, after);
        counted.is_ok().then(|| OpenStream(Arc::clone(&self.streams)))
    }

    /// The handshake has found the other end.
    pub(super) fn is_from(&self, peer: Peer) {
        // A connection has one handshake.
        let _ = self.peer.set(peer);
    }

    /// The other end; `None` on a server without TLS.
    pub(super) fn peer(&self) -> Option<&Peer> {
        self.peer.get()
    }

    /// The identity of the other end; `None` without TLS.
    pub(super) fn identity(&self) -> Option<&PeerIdentity> {
        match self.peer() {
            Some(Peer::Certificate(identity)) => Some(identity),
            Some(Peer::WithoutTls) | None => None,
        }
    }

    /// The other end of the connection is a member.
    pub(crate) fn is_members(&self) {
        if let Some(open) = self.shared.lock().open.get_mut(&self.number) {
            open.is_members = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_open(place: &ConnectionGuard) -> bool {
        place.uncut().has_changed().is_ok()
    }

    fn of_member(place: &ConnectionGuard) {
        let mut request = Request::new(());
        request.extensions_mut().insert(place.id());
        ConnectionId::of(&request).unwrap().is_members();
    }

    #[test]
    fn when_there_are_too_many_the_newest_gives_way_that_is_no_members() {
        let connections = Connections::new(3, Arc::default());
        let [client, member, newest] = [0; 3].map(|_| connections.accept().unwrap());
        of_member(&member);
        let another = connections.accept().unwrap();
        assert!(is_open(&client) && is_open(&member) && is_open(&another) && !is_open(&newest));
        drop(newest);
        of_member(&another);
        let last = connections.accept().unwrap();
        assert!(is_open(&last) && is_open(&member) && is_open(&another) && !is_open(&client));
    }

    #[test]
    fn connections_that_have_ended_make_room() {
        let connections = Connections::new(2, Arc::default());
        let first = connections.accept().unwrap();
        for _ in 0..100 {
            let next = connections.accept().unwrap();
            assert!(is_open(&next));
        }
        assert!(is_open(&first));
    }

    #[test]
    fn where_all_are_members_none_gives_way() {
        let connections = Connections::new(2, Arc::default());
        let members = [0; 2].map(|_| connections.accept().unwrap());
        members.iter().for_each(of_member);
        assert!(connections.accept().is_none());
        assert!(members.iter().all(is_open));
    }

    #[test]
    fn all_end_with_their_server() {
        let connections = Connections::new(2, Arc::default());
        let open = [0; 2].map(|_| connections.accept().unwrap());
        drop(connections);
        assert!(!open.iter().any(is_open));
    }
}
