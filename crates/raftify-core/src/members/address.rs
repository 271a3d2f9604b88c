//! The form of the address at which a node is reached, or listens.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Longest address of a member, in bytes: a host name has at most 253, a port 5.
pub const ADDRESS_BYTES_MAX: usize = 260;

/// Why an address is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("address {address:?} {reason}")]
pub struct AddressProblem {
    address: String,
    reason: String,
}

/// Checks the advertised address of a node: `host:port`, without resolving the host.
///
/// # Errors
/// Why it is invalid. Addresses that no other node can connect to are refused: unspecified ones (`0.0.0.0`,
/// `[::]`), which are valid for a listener only, multicast and broadcast addresses, and port 0.
pub fn check_address(address: &str) -> Result<(), AddressProblem> {
    let problem = |reason: &str| AddressProblem { address: shown(address), reason: reason.to_owned() };
    match parse(address)? {
        Host::Name => Ok(()),
        Host::V4(host) if host.is_unspecified() => Err(problem(UNSPECIFIED)),
        Host::V6(host)
            if host.is_unspecified() || host.to_ipv4_mapped().is_some_and(|v4| v4.is_unspecified()) =>
        {
            Err(problem(UNSPECIFIED))
        }
        Host::V4(host) if host.is_multicast() || host.is_broadcast() => Err(problem(NO_SINGLE_HOST)),
        Host::V6(host) if host.is_multicast() => Err(problem(NO_SINGLE_HOST)),
        Host::V4(_) | Host::V6(_) => Ok(()),
    }
}

/// Checks an address to listen on: as [`check_address`], but all interfaces (`0.0.0.0`, `[::]`) are allowed.
///
/// # Errors
/// Why it is invalid.
pub fn check_listen_address(address: &str) -> Result<(), AddressProblem> {
    parse(address).map(drop)
}

const UNSPECIFIED: &str = "means all interfaces, and no other node can connect to that: give the address at which the \
                           others reach this node, and listen on all interfaces with the separate listen address \
                           (listen_addr, --listen-addr)";

const NO_SINGLE_HOST: &str =
    "is a multicast or broadcast address: a node is reached at an address of one host";

enum Host {
    Name,
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

fn shown(address: &str) -> String {
    address.chars().take(ADDRESS_BYTES_MAX).collect()
}

fn parse(address: &str) -> Result<Host, AddressProblem> {
    let problem = |reason: &str| {
        let reason = format!("is not of the form host:port, {reason}");
        Err(AddressProblem { address: shown(address), reason })
    };
    if address.len() > ADDRESS_BYTES_MAX {
        return problem("it is too long");
    }
    if address.contains("://") {
        return problem("what ends in :// must be left out");
    }
    let Some((host, port)) = address.rsplit_once(':') else {
        return problem("the port is missing");
    };
    if host.is_empty() {
        return problem("the host is missing");
    }
    match port.parse::<u16>() {
        Ok(0) => return problem("port 0 cannot be reached by others"),
        // The integer parser also accepts a plus sign.
        Ok(_) if !port.starts_with('+') => {}
        _ => return problem("the port is no number from 1 to 65535"),
    }
    if let Some(host) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match host.parse() {
            Ok(host) => Ok(Host::V6(host)),
            Err(_) => problem("what is in the brackets is no IPv6 address, which must be one without a zone"),
        };
    }
    if host.contains(':') {
        return problem("an IPv6 address needs brackets, as in [::1]:7061");
    }
    // Other characters have another meaning, or are invalid, in the URL of the connection.
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !host.chars().all(is_of_a_name) {
        return problem("the host holds something else than letters a to z, digits, `-`, `.` and `_`");
    }
    if let Ok(host) = host.parse() {
        return Ok(Host::V4(host));
    }
    // Resolvers read such a host as a shortened, octal or hexadecimal IPv4 address (`0` as `0.0.0.0`).
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    let digits = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
    if last.chars().all(|c| c.is_ascii_digit())
        || digits.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_hexdigit()))
    {
        return problem("a host that ends in a number must be an IPv4 address of four decimal numbers");
    }
    Ok(Host::Name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_no_other_node_can_connect_to_is_refused_and_the_listen_address_is_named() {
        for address in ["0.0.0.0:1", "[::]:1", "[0:0:0:0:0:0:0:0]:1", "[::ffff:0.0.0.0]:1"] {
            let text = check_address(address).unwrap_err().to_string();
            assert!(text.contains("listen_addr"), "{text}");
            assert_eq!(check_listen_address(address), Ok(()));
        }
        for address in [
            "224.0.0.1:1",
            "255.255.255.255:1",
            "[ff02::1]:1",
            "127.0.0.1:0",
            ":1",
            "0:1",
            "0x0:1",
            "0.0:1",
            "1.2.3.08:1",
        ] {
            assert!(check_address(address).is_err(), "{address}");
        }
        for address in ["127.0.0.1:1", "node-1:1", "10.example.:1", "[::1]:1", "a.b1:1"] {
            assert_eq!(check_address(address), Ok(()));
        }
    }
}
