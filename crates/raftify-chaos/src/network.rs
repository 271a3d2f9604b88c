//! The network of the nodes: namespaces joined by our switch, or loopback addresses behind our proxy. Owns
//! the namespaces, and removes them at the end, as well as the remains of a crashed run at the beginning.

use std::process::Command;
use std::sync::Arc;

use parking_lot::Mutex;
use raftify::BoxError;
use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::links::{Links, Party, SPARES};
use crate::proxy::{Processes, Proxy};
#[cfg(target_os = "linux")]
use crate::switch::{self, Switch};

/// The prefix of all namespaces and devices of this program; names of devices are limited in length.
const PREFIX: &str = "raftify-chaos-";
#[cfg(target_os = "linux")]
const DEVICE_PREFIX: &str = "rchaos";

#[cfg(target_os = "linux")]
const TUN: &str = "/dev/net/tun";

/// Every node has its own address in a namespace, so that all have the same ports.
#[cfg(target_os = "linux")]
const RAFT_PORT: u16 = 6000;
#[cfg(target_os = "linux")]
const SECOND_RAFT_PORT: u16 = 6001;
#[cfg(target_os = "linux")]
const PORT_ELSEWHERE: u16 = 6002;
#[cfg(target_os = "linux")]
const WEB_PORT: u16 = 8000;

/// The range of loopback ports: below the ephemeral ports, because an outgoing connection could take the port
/// of a node that is down.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Each node in a network namespace; packets are lost and delayed one by one. Needs root and Linux
    Netns,
    /// On loopback addresses, through a proxy
    Proxy,
}

/// The addresses of a node.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// For its peers.
    pub raft: String,
    /// The second address for its peers: it may restart there.
    pub second_raft: String,
    /// Its listen address for its peers, if that differs.
    pub listen: Option<String>,
    /// A listen address that is unreachable for its peers.
    pub elsewhere: String,
    /// Its web API.
    pub web: String,
}

/// The network between all nodes, including the spare ones; its links are open at first.
pub(crate) struct Network {
    links: watch::Sender<Links>,
    addresses: Vec<Addresses>,
    processes: Processes,
    carrier: Carrier,
}

enum Carrier {
    #[cfg(target_os = "linux")]
    Namespaces {
        _switch: Switch,
    },
    Proxy {
        _proxy: Proxy,
    },
}

/// Whether this kind of network is possible here.
///
/// # Errors
/// The missing condition, in one line.
pub(crate) fn check(kind: Kind) -> Result<(), BoxError> {
    match kind {
        Kind::Netns => check_namespaces(),
        Kind::Proxy => Ok(()),
    }
}

#[cfg(target_os = "linux")]
fn check_namespaces() -> Result<(), BoxError> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root: run this as root, or choose --network proxy".into());
    }
    ip(&["-V"])?;
    std::fs::File::options().read(true).write(true).open(TUN).map(drop).map_err(|error| no_tun(&error))
}

#[cfg(not(target_os = "linux"))]
fn check_namespaces() -> Result<(), BoxError> {
    Err("network namespaces exist on Linux only: choose --network proxy".into())
}

#[cfg(target_os = "linux")]
fn no_tun(error: &std::io::Error) -> BoxError {
    format!("cannot open a TUN device from {TUN} ({error}): load the module tun, or choose --network proxy")
        .into()
}

impl Network {
    /// # Errors
    /// The missing condition, in one line.
    pub(crate) fn start(kind: Kind, nodes: usize) -> Result<Network, BoxError> {
        let links = watch::Sender::new(Links::open(nodes));
        let processes: Processes = Arc::new(Mutex::new(vec![None; nodes + SPARES + 1]));
        let (addresses, carrier) = match kind {
            Kind::Netns => namespaces(nodes + SPARES, &links)?,
            Kind::Proxy => proxy(nodes + SPARES, &links, &processes)?,
        };
        Ok(Network { links, addresses, processes, carrier })
    }

    /// The addresses of a node.
    pub(crate) fn addresses(&self, node: Party) -> &Addresses {
        &self.addresses[node - 1]
    }

    /// A command that starts a program in the network of this node.
    pub(crate) fn command(&self, node: Party, program: &std::path::Path) -> Command {
        match &self.carrier {
            #[cfg(target_os = "linux")]
            Carrier::Namespaces { .. } => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", &namespace(node)]).arg(program);
                command
            }
            Carrier::Proxy { .. } => Command::new(program),
        }
    }

    /// Sets the current process of a node.
    pub(crate) fn set_process(&self, node: Party, pid: Option<u32>) {
        self.processes.lock()[node] = pid;
    }

    pub(crate) fn set(&self, links: Links) {
        self.links.send_replace(links);
    }

    pub(crate) fn links(&self) -> Links {
        self.links.borrow().clone()
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if matches!(self.carrier, Carrier::Namespaces { .. }) {
            // The next run removes what cannot be removed now.
            let _ = remove_namespaces();
        }
    }
}

#[cfg(target_os = "linux")]
fn namespaces(nodes: usize, links: &watch::Sender<Links>) -> Result<(Vec<Addresses>, Carrier), BoxError> {
    remove_namespaces()?;
    let mut devices = Vec::new();
    for party in 0..=nodes {
        let device = format!("{DEVICE_PREFIX}{party}");
        let mtu = switch::PACKET_BYTES_MAX.to_string();
        let address = format!("{}/24", switch::address(party));
        let built = tun_rs::DeviceBuilder::new().name(&device).inherit_enable_state().build_async();
        devices.push(built.map_err(|error| no_tun(&error))?);
        if party == crate::links::CLIENTS {
            ip(&["address", "add", &address, "dev", &device])?;
            ip(&["link", "set", &device, "mtu", &mtu, "up"])?;
            continue;
        }
        let namespace = namespace(party);
        ip(&["netns", "add", &namespace])?;
        ip(&["link", "set", &device, "netns", &namespace])?;
        ip(&["-n", &namespace, "address", "add", &address, "dev", &device])?;
        ip(&["-n", &namespace, "link", "set", &device, "mtu", &mtu, "up"])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    }
    let addresses = (1..=nodes).map(|node| {
        let at = |port| format!("{}:{port}", switch::address(node));
        Addresses {
            raft: at(RAFT_PORT),
            second_raft: at(SECOND_RAFT_PORT),
            listen: None,
            elsewhere: at(PORT_ELSEWHERE),
            web: at(WEB_PORT),
        }
    });
    let carrier = Carrier::Namespaces { _switch: Switch::start(devices, &links.subscribe()) };
    Ok((addresses.collect(), carrier))
}

#[cfg(not(target_os = "linux"))]
fn namespaces(_nodes: usize, _links: &watch::Sender<Links>) -> Result<(Vec<Addresses>, Carrier), BoxError> {
    Err("network namespaces exist on Linux only: choose --network proxy".into())
}

fn proxy(
    nodes: usize,
    links: &watch::Sender<Links>,
    processes: &Processes,
) -> Result<(Vec<Addresses>, Carrier), BoxError> {
    let mut ports = free_ports()?;
    let mut port = || ports.next().ok_or("too few free ports on the loopback interface");
    let mut ways = Vec::new();
    let mut addresses = Vec::new();
    for node in 1..=nodes {
        let mut address = || Ok::<_, BoxError>(format!("127.0.0.1:{}", port()?));
        let (listen, elsewhere, web) = (address()?, address()?, address()?);
        let mut reached = || {
            let reached = std::net::TcpListener::bind(address()?)?;
            reached.set_nonblocking(true)?;
            let address = reached.local_addr()?.to_string();
            ways.push((node, tokio::net::TcpListener::from_std(reached)?, listen.clone()));
            Ok::<_, BoxError>(address)
        };
        let (raft, second_raft) = (reached()?, reached()?);
        addresses.push(Addresses { raft, second_raft, listen: Some(listen), elsewhere, web });
    }
    let carrier = Carrier::Proxy { _proxy: Proxy::start(ways, &links.subscribe(), processes) };
    Ok((addresses, carrier))
}

/// Ports that were free when they were checked.
fn free_ports() -> Result<impl Iterator<Item = u16>, BoxError> {
    let first = rand::rng().random_range(PORTS.start..PORTS.end - 1000);
    Ok((first..PORTS.end).filter(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()))
}

#[cfg(target_os = "linux")]
fn namespace(node: Party) -> String {
    format!("{PREFIX}{node}")
}

fn ip(arguments: &[&str]) -> Result<String, BoxError> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.map_err(|error| {
        format!("cannot start `ip` ({error}): install iproute2, or choose --network proxy")
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`ip {}` failed: {}", arguments.join(" "), reason.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends all processes in the namespaces of this program, and removes the namespaces.
pub(crate) fn remove_namespaces() -> Result<usize, BoxError> {
    let list = ip(&["netns", "list"])?;
    let names: Vec<&str> = names(&list).collect();
    for name in &names {
        for pid in ip(&["netns", "pids", name])?.split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                // The process may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        ip(&["netns", "delete", name])?;
    }
    Ok(names.len())
}

/// The namespaces of this program in the output of `ip netns list`: a name and perhaps a number on each line.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_this_program_are_removed() {
        let list = "raftify-chaos-2 (id: 1)\nvpn\nraftify-chaos-1\nraftify\n";
        assert_eq!(names(list).collect::<Vec<_>>(), ["raftify-chaos-2", "raftify-chaos-1"]);
    }
}
