//! Whole nodes in a simulation (feature `simulation`): on a host of [`turmoil`](https://docs.rs/turmoil), a node uses
//! the network, the clock and the one thread of that host, and draws all randomness from a seed. Outside of a
//! simulation, the feature changes nothing.
//!
//! Operations that block a thread in a real node do not block here: a storage or a state machine simulates
//! slowness with [`block_for`]. Host names are not resolved: nodes listen at `IP address:port`.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rand::distr::{Distribution, StandardUniform};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};
use tonic::transport::Uri;
use turmoil::net::{TcpListener, TcpStream};

use crate::runtime::stall_guard::StallGuard;

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
    static BYTES_PER_SECOND: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The capacity of a connection on a slow link before the sender has to wait.
const LINK_PIECE_BYTES: usize = 16 << 10;

/// From now on, on this thread, all random values of nodes follow from `seed`; work that nodes do on other
/// threads begins late by up to `late_max`.
pub fn begin(seed: u64, late_max: Duration) {
    CHANCE.set(Chance { random: StdRng::seed_from_u64(seed), late_max });
    BLOCKED.set(Duration::ZERO);
    BYTES_PER_SECOND.set(None);
}

/// From now on, on this thread, each new connection accepts at most this many bytes per second from the node
/// or client that has made it.
pub fn slow_links(bytes_per_second: u64) {
    BYTES_PER_SECOND.set(Some(bytes_per_second.max(1)));
}

/// Called by a storage or a state machine instead of blocking its thread: the current work is done, and its
/// caller gets the result after this delay.
pub fn block_for(duration: Duration) {
    BLOCKED.set(BLOCKED.get() + duration);
}

/// For the work under way: how long its caller will have waited for the part that is already done.
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

/// Does work that another thread would do, and that may block that thread.
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
    // A host has one address, and listening takes no time.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).now_or_never();
    listener.unwrap_or_else(|| Err(io::Error::other("the simulated network was not ready")))
}

pub(crate) fn connector() -> impl tower::Service<
    Uri,
    Response = TokioIo<StallGuard<Link>>,
    Error = io::Error,
    Future = BoxFuture<'static, io::Result<TokioIo<StallGuard<Link>>>>,
> + Send
+ 'static {
    tower::service_fn(|uri: Uri| {
        let connect = async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            let stream = TcpStream::connect(address).await?;
            let room = Box::pin(sleep(Duration::ZERO));
            Ok(TokioIo::new(StallGuard::new(Link { stream, bytes_per_second: BYTES_PER_SECOND.get(), room })))
        };
        connect.boxed()
    })
}

/// An established connection, over a link that may be slow.
pub(crate) struct Link {
    stream: TcpStream,
    bytes_per_second: Option<u64>,
    /// When there is room again for outgoing bytes.
    room: Pin<Box<Sleep>>,
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(bytes_per_second) = self.bytes_per_second else {
            return Pin::new(&mut self.stream).poll_write(context, data);
        };
        ready!(self.room.as_mut().poll(context));
        let piece = &data[..data.len().min(LINK_PIECE_BYTES)];
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, piece))?;
        let worth = Duration::from_secs_f64(written as f64 / bytes_per_second as f64);
        self.room.as_mut().reset(Instant::now() + worth);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
