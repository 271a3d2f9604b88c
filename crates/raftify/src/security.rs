//! Mutual TLS: certificates, their roles, and both ends of a connection.
//!
//! A [`Dialer`](dialer::Dialer) makes the outgoing connections, with or without TLS;
//! [`Secured`](acceptor::Secured) is an accepted one. Certificates are loaded and checked in `material.rs`,
//! and read again in `credentials.rs`. Which role a request needs is decided by the server.

pub(crate) mod acceptor;
pub(crate) mod config;
pub(crate) mod connector;
pub(crate) mod credentials;
pub(crate) mod dialer;
pub(crate) mod identity;
mod material;
mod reason;
#[cfg(test)]
pub(crate) mod tests;
