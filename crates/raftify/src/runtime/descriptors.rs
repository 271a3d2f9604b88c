//! The limit on open files and connections of this process, and the share of each server.
//!
//! A log that cannot create a file stops its node; so clients must never use up the descriptors for files.
//! The limit of the process is raised as far as the system permits, and each server takes at most a share of
//! it. The storage also keeps a few in reserve.

#[cfg(unix)]
use std::sync::OnceLock;

/// Descriptors for other uses than a server's connections: the files of the storage and its reserve, the
/// runtime, and the connections of this node to the others.
const OTHERS: u64 = 48;

/// A program with a node usually has two servers: the node's own, and one for its users.
const SERVERS: u64 = 2;

/// Even with very few descriptors, the other nodes must be able to connect.
const CONNECTIONS_MIN: u64 = 8;

/// More cost memory without benefit: a client of several nodes needs one connection to each.
const CONNECTIONS_MAX: u64 = 4096;

/// The maximum number of open connections for a server of this process, so that file descriptors remain for
/// the log: half of the limit of the process (`ulimit -n`) minus its own needs, from 8 to 4096.
///
/// A node's own server observes this limit. Apply it to the other servers of the program, a web API for
/// instance. The first call raises the soft limit of the process to its hard limit; a node does that when it
/// is set up. Public as [`RaftServer::connections_max`](crate::RaftServer::connections_max).
pub(crate) fn server_connections_max() -> usize {
    for_limit(limit())
}

fn for_limit(limit: Option<u64>) -> usize {
    let each = limit.map_or(CONNECTIONS_MAX, |limit| limit.saturating_sub(OTHERS) / SERVERS);
    usize::try_from(each.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX)).unwrap_or(usize::MAX)
}

/// How many descriptors this process may have, after raising its limit as far as the system permits; `None`
/// if there is no limit.
#[cfg(unix)]
fn limit() -> Option<u64> {
    static LIMIT: OnceLock<Option<u64>> = OnceLock::new();
    *LIMIT.get_or_init(raise)
}

#[cfg(not(unix))]
fn limit() -> Option<u64> {
    None
}

#[cfg(unix)]
fn raise() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    /// The maximum that macOS accepts, whatever limit it reports (`OPEN_MAX`).
    const MACOS_MAX: u64 = 10_240;
    let Rlimit { current: soft, maximum: hard } = getrlimit(Resource::Nofile);
    let wanted = [hard, Some(hard.map_or(MACOS_MAX, |hard| hard.min(MACOS_MAX)))];
    let is_more = |wanted: &Option<u64>| match (wanted, soft) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(soft)) => *wanted > soft,
    };
    let raised = wanted
        .into_iter()
        .filter(is_more)
        .find(|wanted| setrlimit(Resource::Nofile, Rlimit { current: *wanted, maximum: hard }).is_ok());
    raised.unwrap_or(soft)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_leave_descriptors_for_the_log_whatever_the_limit_is() {
        let expected = [
            (Some(0), 8),
            (Some(64), 8),
            (Some(128), 40),
            (Some(256), 104),
            (Some(1024), 488),
            (Some(u64::MAX), 4096),
            (None, 4096),
        ];
        for (limit, connections) in expected {
            assert_eq!(for_limit(limit), connections, "{limit:?}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn the_soft_limit_is_raised() {
        use rustix::process::{Resource, getrlimit};
        let before = getrlimit(Resource::Nofile);
        server_connections_max();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.maximum, before.maximum);
        let number = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        assert!(number(after.current) >= number(after.maximum).min(10_240).max(number(before.current)));
    }
}
