//! The network where namespaces are not available: peers reach every node through a port of this program,
//! which blocks, delays and limits the traffic as the links say. It works on TCP byte streams: a blocked link
//! is a connection without traffic, and a lost packet is a pause.
//!
//! The proxy identifies the connecting process by its socket: the kernel reports the process of a socket.
//! Without `/proc`, every connection counts as one of a client, whose links are always open.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::links::{CLIENTS, Link, Party, Watched};

/// How long a lost packet delays a stream: the shortest retransmission timeout of Linux.
const REPETITION: Duration = Duration::from_millis(200);
const CHUNK_BYTES: usize = 16 << 10;
const CHUNKS_UNDER_WAY: usize = 64;

/// The process of each party that runs.
pub(crate) type Processes = Arc<Mutex<Vec<Option<u32>>>>;

/// Forwards connections until it is dropped.
pub(crate) struct Proxy {
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// For each node, the address for its peers and its listen address.
    pub(crate) fn start(
        ways: Vec<(Party, TcpListener, String)>,
        links: &Watched,
        processes: &Processes,
    ) -> Proxy {
        let mut tasks = JoinSet::new();
        for (to, listener, upstream) in ways {
            let (links, processes) = (links.clone(), Arc::clone(processes));
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    tokio::select! {
                        Ok((stream, peer)) = listener.accept() => {
                            let from = party_of(peer.port(), &processes);
                            let ends = Ends { from, to };
                            connections.spawn(connection(stream, upstream.clone(), ends, links.clone()));
                        }
                        Some(_) = connections.join_next() => {}
                    }
                }
            });
        }
        Proxy { _tasks: tasks }
    }
}

#[derive(Clone, Copy)]
struct Ends {
    from: Party,
    to: Party,
}

/// Ends when either side does, or when the other end is unreachable.
async fn connection(stream: TcpStream, upstream: String, ends: Ends, mut links: Watched) {
    let there = ends;
    let back = Ends { from: ends.to, to: ends.from };
    // A connection is made when both directions are open, because its handshake takes a packet each way.
    pass(&mut links, there).await;
    pass(&mut links, back).await;
    let Ok(other) = TcpStream::connect(upstream).await else { return };
    if stream.set_nodelay(true).is_err() || other.set_nodelay(true).is_err() {
        return;
    }
    let (read_here, write_here) = stream.into_split();
    let (read_there, write_there) = other.into_split();
    tokio::select! {
        () = pump(read_here, write_there, there, links.clone()) => {}
        () = pump(read_there, write_here, back, links) => {}
    }
}

/// Waits until the link is not blocked.
async fn pass(links: &mut Watched, ends: Ends) -> Link {
    // Only fails when the program ends.
    let _ = links.wait_for(|links| !links.get(ends.from, ends.to).blocked).await;
    links.borrow().get(ends.from, ends.to)
}

async fn pump(
    mut read: tokio::net::tcp::OwnedReadHalf,
    mut write: tokio::net::tcp::OwnedWriteHalf,
    ends: Ends,
    mut links: Watched,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_UNDER_WAY);
    let receive = async {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            match read.read_buf(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send((Instant::now(), chunk)).await.is_err() => return,
                Ok(_) => {}
            }
        }
    };
    let send = async {
        while let Some((came, chunk)) = chunks.recv().await {
            let link = pass(&mut links, ends).await;
            sleep_until(came + pause(&link)).await;
            if let Some(rate) = link.bytes_per_second {
                sleep(Duration::from_secs_f64(chunk.len() as f64 / rate as f64)).await;
            }
            if write.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = receive => {}
        () = send => {}
    }
}

fn pause(link: &Link) -> Duration {
    let mut random = rand::rng();
    let lost = random.random_range(0..100) < link.loss_percent;
    let repetition = if lost { REPETITION } else { Duration::ZERO };
    link.delay + link.jitter.mul_f64(random.random()) + repetition
}

/// The party whose socket has this port on the loopback interface.
fn party_of(port: u16, processes: &Processes) -> Party {
    let processes = processes.lock().clone();
    let Ok(sockets) = std::fs::read_to_string("/proc/net/tcp") else { return CLIENTS };
    let Some(inode) = inode_of(port, &sockets) else { return CLIENTS };
    let holds = |pid: u32| holds_socket(&Path::new("/proc").join(pid.to_string()).join("fd"), &inode);
    let holder = processes.iter().position(|pid| pid.is_some_and(|pid| holds(pid).unwrap_or(false)));
    holder.unwrap_or(CLIENTS)
}

/// Finds the socket in the text of `/proc/net/tcp`: the local address is the second word, the inode the
/// tenth.
fn inode_of(port: u16, sockets: &str) -> Option<String> {
    let address = format!("0100007F:{port:04X}");
    sockets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.nth(1)? == address).then(|| words.nth(7).map(str::to_owned)).flatten()
    })
}

fn holds_socket(descriptors: &Path, inode: &str) -> io::Result<bool> {
    let wanted = format!("socket:[{inode}]");
    for descriptor in std::fs::read_dir(descriptors)? {
        if std::fs::read_link(descriptor?.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::links::Links;

    #[test]
    fn a_socket_is_found_by_its_port() {
        let sockets = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                       0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 31337 1\n   \
                       1: 0100007F:C350 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 31338 1\n";
        assert_eq!(inode_of(50000, sockets).as_deref(), Some("31338"));
        assert_eq!(inode_of(8080, sockets).as_deref(), Some("31337"));
        assert_eq!(inode_of(1, sockets), None);
    }

    #[tokio::test]
    async fn bytes_sent_over_a_blocked_link_arrive_when_it_opens() {
        let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let links = watch::Sender::new(Links::open(2));
        // This process acts as node 2, which talks to node 1.
        let processes: Processes = Arc::new(Mutex::new(vec![None, None, Some(std::process::id())]));
        let way = (1, listener, upstream.local_addr().unwrap().to_string());
        let _proxy = Proxy::start(vec![way], &links.subscribe(), &processes);

        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"a").await.unwrap();
        let (mut received, _) = upstream.accept().await.unwrap();
        assert_eq!(received.read_u8().await.unwrap(), b'a');

        links.send_modify(|links| links.between_nodes(|from, _, link| link.blocked = from == 2));
        stream.write_all(b"b").await.unwrap();
        // The other direction is open: once this has arrived, the proxy has forwarded both.
        received.write_all(b"c").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'c');
        let mut byte = [0];
        assert!(
            matches!(received.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        );

        links.send_modify(|links| links.between_nodes(|_, _, link| link.blocked = false));
        assert_eq!(received.read_u8().await.unwrap(), b'b');
    }
}
