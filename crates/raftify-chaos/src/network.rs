//! Where the nodes run and how they reach each other: in network namespaces joined by our switch, or on loopback
//! addresses behind our proxy. Owns the namespaces, and takes them away at the end, and before the beginning what a run
//! that crashed has left.

use std::process::Command;
use std::sync::{Arc, Mutex};

use raftify::BoxError;
use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::links::{Links, Party, SPARES};
use crate::proxy::{Processes, Proxy};
#[cfg(target_os = "linux")]
use crate::switch::{self, Switch};

/// All namespaces of this program begin with this; so do its devices, whose names may not be long.
const PREFIX: &str = "raftify-chaos-";
#[cfg(target_os = "linux")]
const DEVICE_PREFIX: &str = "rchaos";

#[cfg(target_os = "linux")]
const TUN: &str = "/dev/net/tun";

/// In a namespace every node has its own address, so that all have the same ports.
#[cfg(target_os = "linux")]
const RAFT_PORT: u16 = 6000;
#[cfg(target_os = "linux")]
const SECOND_RAFT_PORT: u16 = 6001;
#[cfg(target_os = "linux")]
const PORT_ELSEWHERE: u16 = 6002;
#[cfg(target_os = "linux")]
const WEB_PORT: u16 = 8000;

/// Where ports of the loopback interface are looked for: below those that the system gives to outgoing connections,
/// which could take the port of a node that is down.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// How nodes reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Each node in a network namespace of its own; packets are lost and delayed one by one. Needs root, and Linux
    Netns,
    /// On loopback addresses, through a proxy
    Proxy,
}

/// Where a node is found.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    /// By the others.
    pub raft: String,
    /// By the others, too: it may come back at this address.
    pub second_raft: String,
    /// Where it listens for them, if that is elsewhere.
    pub listen: Option<String>,
    /// Where it may listen in vain: nothing leads there.
    pub elsewhere: String,
    /// Its web API.
    pub web: String,
}

/// The network between the nodes and the spare ones; its links are open at first.
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

/// Whether the nodes can reach each other in this way here.
///
/// # Errors
/// In one line what is missing.
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
    format!("no TUN device can be had from {TUN} ({error}): load the module tun, or choose --network proxy")
        .into()
}

impl Network {
    /// # Errors
    /// In one line what is missing.
    pub(crate) fn start(kind: Kind, nodes: usize) -> Result<Network, BoxError> {
        let links = watch::Sender::new(Links::open(nodes));
        let processes: Processes = Arc::new(Mutex::new(vec![None; nodes + SPARES + 1]));
        let (addresses, carrier) = match kind {
            Kind::Netns => namespaces(nodes + SPARES, &links)?,
            Kind::Proxy => proxy(nodes + SPARES, &links, &processes)?,
        };
        Ok(Network { links, addresses, processes, carrier })
    }

    /// Of a node.
    pub(crate) fn addresses(&self, node: Party) -> &Addresses {
        &self.addresses[node - 1]
    }

    /// A command that starts a program where this node lives.
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

    /// Tells which process a node is now.
    pub(crate) fn set_process(&self, node: Party, pid: Option<u32>) {
        self.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[node] = pid;
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
            // What cannot be taken away now is before the next run.
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
    let mut port = || ports.next().ok_or("too few ports of the loopback interface are free");
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

/// Ports that were free when they were looked at.
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
        format!("`ip` cannot be started ({error}): install iproute2, or choose --network proxy")
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`ip {}` failed: {}", arguments.join(" "), reason.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Ends everything in the namespaces of this program, and takes them away.
pub(crate) fn remove_namespaces() -> Result<usize, BoxError> {
    let list = ip(&["netns", "list"])?;
    let names: Vec<&str> = names(&list).collect();
    for name in &names {
        for pid in ip(&["netns", "pids", name])?.split_whitespace() {
            if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        ip(&["netns", "delete", name])?;
    }
    Ok(names.len())
}

/// Ours among what `ip netns list` shows: a name and perhaps a number on each line.
fn names(list: &str) -> impl Iterator<Item = &str> {
    list.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_this_program_are_taken_away() {
        let list = "raftify-chaos-2 (id: 1)\nvpn\nraftify-chaos-1\nraftify\n";
        assert_eq!(names(list).collect::<Vec<_>>(), ["raftify-chaos-2", "raftify-chaos-1"]);
    }
}
