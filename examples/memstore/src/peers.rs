//! The members of a static cluster, read from a file and checked. No other module reads that file.
//!
//! ```toml
//! [[peers]]
//! id = 1
//! address = "127.0.0.1:7061" # or "node-1.example:7061"
//! role = "voter"              # or "learner"; a voter if it is left out
//! ```

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use raftify::membership::{MemberRole, check_address};
use raftify::{Member, NodeId};
use serde::Deserialize;
use toml::Spanned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Peer {
    id: Spanned<u64>,
    address: Spanned<String>,
    #[serde(default)]
    role: PeerRole,
}

#[derive(Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PeerRole {
    #[default]
    Voter,
    Learner,
}

/// Reads the members of a static cluster from the TOML file at `path`. Every node must have the same list.
///
/// # Errors
/// The file, and the line and the field that are wrong: if it cannot be read, is not TOML, has no peers, has
/// an unknown field, has two peers with one id or one address, or no voter.
pub fn load_peers(path: impl AsRef<Path>) -> Result<Vec<Member>, LoadPeersError> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadPeersError::Unreadable { path: path.to_owned(), source })?;
    parse_peers(&text).map_err(|(span, problem)| LoadPeersError::Wrong {
        path: path.to_owned(),
        place: span.map(|span| Place::of(&text, span)),
        problem,
    })
}

type Problem = (Option<Range<usize>>, String);

fn parse_peers(text: &str) -> Result<Vec<Member>, Problem> {
    let file: File =
        toml::from_str(text).map_err(|error| (error.span(), error.message().replace('\n', ", ")))?;
    if file.peers.is_empty() {
        return Err((
            None,
            "no peers: add a [[peers]] table for each node, with id, address and role".to_owned(),
        ));
    }
    let mut members: Vec<Member> = Vec::with_capacity(file.peers.len());
    for peer in file.peers {
        let (id_place, address_place) = (Some(peer.id.span()), Some(peer.address.span()));
        let address = peer.address.into_inner();
        let id =
            NodeId::try_from(peer.id.into_inner()).map_err(|zero| (id_place.clone(), zero.to_string()))?;
        check_address(&address).map_err(|problem| (address_place.clone(), problem.to_string()))?;
        if members.iter().any(|other| other.id == id) {
            return Err((id_place, format!("another peer already has id {id}")));
        }
        if let Some(other) = members.iter().find(|other| other.address == address) {
            return Err((address_place, format!("peer {} already has address {address}", other.id)));
        }
        members.push(match peer.role {
            PeerRole::Voter => Member::voter(id, address),
            PeerRole::Learner => Member::learner(id, address),
        });
    }
    if !members.iter().any(|member| member.role == MemberRole::Voter) {
        return Err((None, "all peers have role learner, and a cluster needs a voter".to_owned()));
    }
    Ok(members)
}

/// A location in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    line: usize,
    text: String,
}

impl Place {
    fn of(text: &str, span: Range<usize>) -> Place {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count();
        let text = text.lines().nth(line).unwrap_or_default().trim().to_owned();
        Place { line: line + 1, text }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} (`{}`)", self.line, self.text)
    }
}

/// Why the members of a static cluster could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadPeersError {
    /// The file is missing, or may not be read.
    #[error("cannot read the list of peers {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Its content is not a valid list of peers.
    #[error("{}{}: {problem}", path.display(), place.as_ref().map(|place| format!(", {place}")).unwrap_or_default())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// The location of the problem, if it has one.
        place: Option<Place>,
        /// The problem.
        problem: String,
    },
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// The error for a file with this text, without the name of its directory.
    fn check(text: &str, expect: Expect) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster_config.toml");
        std::fs::write(&path, text).unwrap();
        let said = match load_peers(&path) {
            Ok(members) => members
                .iter()
                .map(|m| format!("{} {} {}", m.id, m.address, m.role))
                .collect::<Vec<_>>()
                .join("\n"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(path.to_str().unwrap()), "{text} does not name the file");
                text.replace(&format!("{}/", directory.path().display()), "")
            }
        };
        expect.assert_eq(&said);
    }

    #[test]
    fn a_list_with_ip_addresses_and_host_names_of_voters_and_learners_is_read() {
        check(
            r#"
                [[peers]]
                id = 1
                address = "127.0.0.1:7061"

                [[peers]]
                id = 2
                address = "node-2.example:7061"
                role = "voter"

                [[peers]]
                id = 30
                address = "[::1]:7063"
                role = "learner"
            "#,
            expect![[r#"
                1 127.0.0.1:7061 voter
                2 node-2.example:7061 voter
                30 [::1]:7063 learner"#]],
        );
    }

    #[test]
    fn the_error_for_a_missing_file_names_it() {
        let error = load_peers("no/such/cluster_config.toml").unwrap_err();
        expect!["cannot read the list of peers no/such/cluster_config.toml: No such file or directory (os error 2)"].assert_eq(&error.to_string());
    }

    #[test]
    fn the_error_for_an_empty_file_shows_the_form() {
        check(
            "",
            expect![[
                r#"cluster_config.toml: no peers: add a [[peers]] table for each node, with id, address and role"#
            ]],
        );
        check(
            "# no peers\n",
            expect![[
                r#"cluster_config.toml: no peers: add a [[peers]] table for each node, with id, address and role"#
            ]],
        );
    }

    #[test]
    fn the_error_for_a_malformed_file_names_line_and_field() {
        check(
            "[[peers]]\nid = 1\naddress = ",
            expect![
                "cluster_config.toml, line 3 (`address =`): string values must be quoted, expected literal string"
            ],
        );
        check(
            "[[peers]\n",
            expect!["cluster_config.toml, line 1 (`[[peers]`): unclosed array table, expected `]`"],
        );
        check(
            "[[peers]]\nid = 1\n",
            expect!["cluster_config.toml, line 1 (`[[peers]]`): missing field `address`"],
        );
        check(
            "[[peers]]\nid = \"one\"\naddress = \"a:1\"\n",
            expect![[
                r#"cluster_config.toml, line 2 (`id = "one"`): invalid type: string "one", expected u64"#
            ]],
        );
        check(
            "[[peers]]\nid = -1\naddress = \"a:1\"\n",
            expect!["cluster_config.toml, line 2 (`id = -1`): invalid value: integer `-1`, expected u64"],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"a:1\"\nrole = \"leader\"\n",
            expect![[
                r#"cluster_config.toml, line 4 (`role = "leader"`): unknown variant `leader`, expected `voter` or `learner`"#
            ]],
        );
        check(
            "[[peers]]\nid = 1\nadress = \"a:1\"\n",
            expect![[
                r#"cluster_config.toml, line 3 (`adress = "a:1"`): unknown field `adress`, expected one of `id`, `address`, `role`"#
            ]],
        );
        check(
            "[[peer]]\nid = 1\naddress = \"a:1\"\n",
            expect!["cluster_config.toml, line 1 (`[[peer]]`): unknown field `peer`, expected `peers`"],
        );
    }

    #[test]
    fn invalid_values_are_rejected_with_line_and_field() {
        check(
            "[[peers]]\nid = 0\naddress = \"a:1\"\n",
            expect!["cluster_config.toml, line 2 (`id = 0`): 0 is not a node id: ids start at 1"],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"localhost\"\n",
            expect![[
                r#"cluster_config.toml, line 3 (`address = "localhost"`): address "localhost" is not of the form host:port, the port is missing"#
            ]],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"localhost:99999\"\n",
            expect![[
                r#"cluster_config.toml, line 3 (`address = "localhost:99999"`): address "localhost:99999" is not of the form host:port, the port is no number from 1 to 65535"#
            ]],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"http://localhost:1\"\n",
            expect![[
                r#"cluster_config.toml, line 3 (`address = "http://localhost:1"`): address "http://localhost:1" is not of the form host:port, what ends in :// must be left out"#
            ]],
        );
    }

    #[test]
    fn contradicting_peers_are_rejected() {
        check(
            "[[peers]]\nid = 1\naddress = \"a:1\"\n\n[[peers]]\nid = 1\naddress = \"b:1\"\n",
            expect!["cluster_config.toml, line 6 (`id = 1`): another peer already has id 1"],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"a:1\"\n\n[[peers]]\nid = 2\naddress = \"a:1\"\n",
            expect![[r#"cluster_config.toml, line 7 (`address = "a:1"`): peer 1 already has address a:1"#]],
        );
        check(
            "[[peers]]\nid = 1\naddress = \"a:1\"\nrole = \"learner\"\n",
            expect!["cluster_config.toml: all peers have role learner, and a cluster needs a voter"],
        );
    }
}
