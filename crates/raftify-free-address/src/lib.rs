//! Addresses on which the nodes of tests and benches listen, now and after they were started again.
//!
//! A port that the system chooses is from the range of which it also chooses those of outgoing connections: while a node
//! is down, one of them may take its port, and be it that of a peer which tries to reach that very node.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below what the usual systems choose from: Linux from 32768, others from 49152.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// A loopback address that nobody listens on, and that this process gives out once in [`PORTS`] times.
///
/// # Panics
/// If all ports are taken.
#[must_use]
pub fn free_address() -> String {
    static GIVEN_OUT: AtomicU16 = AtomicU16::new(0);
    // Processes that run beside this one, with ids close to its own, begin far from it.
    let begin = std::process::id() % u32::from(PORTS) * 617 % u32::from(PORTS);
    (0..PORTS)
        .map(|_| {
            let next = u32::from(GIVEN_OUT.fetch_add(1, Ordering::Relaxed));
            format!("127.0.0.1:{}", u32::from(FIRST_PORT) + (begin + next) % u32::from(PORTS))
        })
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a port is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_differ_and_can_be_listened_on() {
        let addresses = [(); 3].map(|()| free_address());
        let listeners = addresses.each_ref().map(|address| TcpListener::bind(address).unwrap());
        let ports = listeners.map(|listener| listener.local_addr().unwrap().port());
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2], "{ports:?}");
        assert!(ports.iter().all(|port| (FIRST_PORT..FIRST_PORT + PORTS).contains(port)), "{ports:?}");
    }
}
