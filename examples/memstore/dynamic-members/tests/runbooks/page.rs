//! The commands of a page, one after the other.

use std::collections::VecDeque;
use std::fs;

use crate::cluster::Cluster;
use crate::{eventually, root};

pub(crate) struct Page {
    name: &'static str,
    commands: VecDeque<String>,
}

impl Page {
    pub(crate) fn open(name: &'static str) -> Page {
        let text = fs::read_to_string(root().join("docs/operations").join(name)).unwrap();
        let commands = text.lines().filter_map(|line| line.trim().strip_prefix("$ ")).map(str::to_owned);
        Page { name, commands: commands.collect() }
    }

    /// The next command, which must begin with these words.
    pub(crate) fn next(&mut self, begin: &str) -> String {
        let command = self.commands.pop_front();
        let command = command.unwrap_or_else(|| panic!("{} has no command {begin} left", self.name));
        assert!(command.starts_with(begin), "{}: the next command is not {begin}: {command}", self.name);
        command
    }

    /// Executes the next command of `raftify-cli` until it ends with this exit code.
    pub(crate) fn cli(&mut self, cluster: &Cluster, begin: &str, exit: i32) -> String {
        let command = self.next(&format!("raftify-cli {begin}"));
        eventually(&command, || {
            let said = cluster.cli(&command);
            (said.exit == Some(exit)).then_some(said.text)
        })
    }

    /// Starts the node of the next command.
    pub(crate) fn start(&mut self, cluster: &mut Cluster) {
        let command = self.next("memstore-dynamic-members ");
        cluster.start_with(&command);
    }

    /// All commands were executed.
    pub(crate) fn finish(self) {
        assert!(self.commands.is_empty(), "{}: not executed: {:?}", self.name, self.commands);
    }
}
