//! Mutual TLS over real connections: who is let in, who is refused, and that a refusal is never an unknown
//! outcome.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod certificates;
mod health;
mod nodes;
mod refusals;
mod reload;
mod starts;
