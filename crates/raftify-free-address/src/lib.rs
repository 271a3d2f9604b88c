//! Listen addresses for the nodes of tests and benches, which stay free while a node restarts.
//!
//! The system chooses free ports from the same range as the ports of outgoing connections: while a node is
//! down, an outgoing connection may take its port, even one of a peer that tries to reach that node.

use std::net::TcpListener;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ephemeral ports of the usual systems: Linux from 32768, others from 49152.
const FIRST_PORT: u16 = 12_000;
const PORTS: u16 = 20_000;

/// A free loopback address, which this process returns once in [`PORTS`] calls.
///
/// # Panics
/// If all ports are taken.
#[must_use]
pub fn free_address() -> String {
    static GIVEN_OUT: AtomicU16 = AtomicU16::new(0);
    // Concurrent processes, with similar ids, begin at distant ports.
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
