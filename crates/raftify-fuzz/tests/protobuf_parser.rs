//! No byte from the network or the disk reaches the parser of protobuf 2: this is why `deny.toml` accepts
//! RUSTSEC-2024-0437.
//!
//! The argument has three steps, one test each. Only `raft` and its generated types depend on `protobuf`, and
//! `raft` does not export the trait with the parsing functions: code of this repository cannot call them.
//! `raft` 0.7.0 itself calls them in two places, both for a membership change in a `MsgPropose`
//! (`step_leader` in its `raft.rs`). Such a message is made in one place here, from entries of this node; a
//! membership change is proposed by `propose_conf_change`, which encodes it in the same call.

use std::fs;
use std::path::{Path, PathBuf};

/// The versions whose sources were reviewed. Review another version before you write it here.
const READ: [(&str, &str, &str); 2] = [
    ("raft", "0.7.0", "f12688b23a649902762d4c11d854d73c49c9b93138f2de16403ef9f571ad5bae"),
    ("raft-proto", "0.7.0", "fb6884896294f553e8d5cfbdb55080b9f5f2f43394afff59c9f077e0f4b46d6b"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn lock_file() -> String {
    fs::read_to_string(root().join("Cargo.lock")).expect("the workspace has a lock file")
}

/// The packages in `lock` that depend on `dependency`.
fn dependents<'a>(lock: &'a str, dependency: &str) -> Vec<&'a str> {
    let quoted = format!(" \"{dependency}\",");
    let with_version = format!(" \"{dependency} ");
    lock.split("[[package]]")
        .filter(|package| package.lines().any(|line| line == quoted || line.starts_with(&with_version)))
        .map(|package| package.split('"').nth(1).expect("a package has a name"))
        .collect()
}

/// All Rust files of the repository except tests in their own files, with their texts.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("crates"), root().join("examples"), root().join("fuzz/fuzz_targets")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() && !path.ends_with("tests") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("the file can be read");
                found.push((path, text));
            }
        }
    }
    assert!(found.len() > 100, "only {} files were found", found.len());
    found
}

#[test]
fn only_raft_depends_on_protobuf_and_only_the_core_on_raft() {
    let lock = lock_file();
    assert_eq!(dependents(&lock, "raft"), ["raftify-core"]);
    assert_eq!(dependents(&lock, "raft-proto"), ["raft"]);
    // The first two generate code while `raft-proto` is built.
    assert_eq!(dependents(&lock, "protobuf"), ["protobuf-build", "protobuf-codegen", "raft", "raft-proto"]);
    assert_eq!(dependents(&lock, "protobuf-build"), ["raft-proto"]);
    let other = "[[package]]\nname = \"a\"\ndependencies = [\n \"protobuf 2.28.0\",\n]\n";
    assert_eq!(dependents(other, "protobuf"), ["a"]);
}

#[test]
fn the_sources_of_raft_are_the_reviewed_ones() {
    let lock = lock_file();
    for (name, version, checksum) in READ {
        let package = format!("name = \"{name}\"\nversion = \"{version}\"\n");
        let found = lock.split("[[package]]").find(|found| found.contains(&package));
        let found = found.unwrap_or_else(|| {
            panic!("{name} {version} is not in Cargo.lock: review its calls of the parser")
        });
        assert!(found.contains(checksum), "{name} {version} has another checksum");
    }
}

#[test]
fn proposals_of_raft_are_made_in_one_place_and_its_parser_is_not_named() {
    let sources = sources();
    let containing = |word: &str| {
        let files = sources.iter().filter(|(_, text)| text.contains(word));
        files.flat_map(|(path, text)| text.matches(word).map(move |_| path)).collect::<Vec<_>>()
    };
    assert_eq!(containing("MsgPropose").len(), 1, "{:?}", containing("MsgPropose"));
    for word in ["merge_from", "parse_from_", "parse_length_delimited", "CodedInputStream", "protobuf::"] {
        assert_eq!(containing(word), Vec::<&PathBuf>::new(), "{word}");
    }
}
