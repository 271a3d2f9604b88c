//! Whole nodes in a simulation (feature `simulation`): on a host of [`turmoil`](https://docs.rs/turmoil), a node uses the
//! network, the clock and the one thread of that host, and draws no randomness but from a seed. Outside of a simulation,
//! the feature changes nothing.
//!
//! What blocks a thread in a real node does not block here: a storage or a state machine that wants to be slow says so
//! with [`block_for`]. Names of hosts are not resolved: nodes listen at `IP address:port`.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::sleep;
use tonic::transport::Uri;
use turmoil::net::{TcpListener, TcpStream};

struct Chance {
    random: StdRng,
    late_max: Duration,
}

thread_local! {
    static CHANCE: RefCell<Chance> = RefCell::new(Chance {
        random: StdRng::seed_from_u64(0),
        late_max: Duration::ZERO,
    });
    static BLOCKED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// From now on, on this thread, all that nodes draw follows from `seed`; what they have done on other threads begins
/// late by up to `late_max`.
pub fn begin(seed: u64, late_max: Duration) {
    CHANCE.set(Chance { random: StdRng::seed_from_u64(seed), late_max });
    BLOCKED.set(Duration::ZERO);
}

/// Called by a storage or a state machine instead of blocking its thread: what it does now is done, and its caller hears
/// of it so much later.
pub fn block_for(duration: Duration) {
    BLOCKED.set(BLOCKED.get() + duration);
}

/// Of the work that is under way: for how long its caller will have waited for what is done by now.
pub fn blocked_so_far() -> Duration {
    BLOCKED.get()
}

pub(crate) fn is_on() -> bool {
    turmoil::in_simulation()
}

pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    CHANCE.with_borrow_mut(|chance| chance.random.random())
}

/// Does what another thread would do, and what may block it.
pub(crate) async fn on_a_thread<T>(work: impl FnOnce() -> T) -> T {
    let late = CHANCE.with_borrow_mut(|Chance { random, late_max }| match late_max.is_zero() {
        true => Duration::ZERO,
        false => random.random_range(Duration::ZERO..=*late_max),
    });
    if !late.is_zero() {
        sleep(late).await;
    }
    BLOCKED.set(Duration::ZERO);
    let outcome = work();
    let blocked = BLOCKED.take();
    if !blocked.is_zero() {
        sleep(blocked).await;
    }
    outcome
}

pub(crate) fn listen(raft_addr: &str) -> io::Result<TcpListener> {
    let address: SocketAddr =
        raft_addr.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    // A host has one address, and listening needs no time.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).now_or_never();
    listener.unwrap_or_else(|| Err(io::Error::other("the simulated network was not ready")))
}

pub(crate) fn connector() -> impl tower::Service<
    Uri,
    Response = TokioIo<TcpStream>,
    Error = io::Error,
    Future = BoxFuture<'static, io::Result<TokioIo<TcpStream>>>,
> + Send
+ 'static {
    tower::service_fn(|uri: Uri| {
        let connect = async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            TcpStream::connect(address).await.map(TokioIo::new)
        };
        connect.boxed()
    })
}
