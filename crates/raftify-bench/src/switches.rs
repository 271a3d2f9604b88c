//! Parts of the nodes that a layer runs without, with, or both in turn, to show their cost.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use raftify::BoxError;
use raftify::metrics::{SECONDS_BUCKETS, SIZE_BUCKETS};
use raftify::tls::{CertificateRole, Tls};
use raftify_cli::authority::{Authority, Holder};

use crate::compare::Variant;
use crate::node::NodeOptions;

/// All nodes listen here.
const HOST: &str = "127.0.0.1";
const CLIENT: &str = "client";
const DAYS: u32 = 1;

/// How often the recorder merges its samples, as the examples do.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Whether a part is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Switch {
    /// Without it
    Off,
    /// With it
    On,
    /// Without and with it in turn, with the ratios of the medians
    Both,
}

/// What the nodes of a layer use.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Switches {
    /// Mutual TLS of the nodes and their clients; `both` runs without and with it in turn, --rounds times each,
    /// and shows the ratios of the medians
    #[arg(long, value_enum, default_value = "off", hide_possible_values = true, value_name = "off|on|both")]
    tls: Switch,
    /// A recorder of metrics, as a program has it that is scraped by Prometheus; `both` as with --tls
    #[arg(long, value_enum, default_value = "off", hide_possible_values = true, value_name = "off|on|both")]
    metrics: Switch,
    /// How often each side of a comparison runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,
}

impl Switches {
    /// The two sides of a comparison, if one is asked for: the arguments that replace those of the switch.
    ///
    /// # Errors
    /// If both switches are `both`: their costs could not be told apart.
    pub(crate) fn compared(&self, program: &Path) -> Result<Option<[Variant; 2]>, BoxError> {
        let option = match (self.tls, self.metrics) {
            (Switch::Both, Switch::Both) => {
                return Err("compare one of --tls and --metrics: give the other one off or on".into());
            }
            (Switch::Both, _) => "tls",
            (_, Switch::Both) => "metrics",
            _ => return Ok(None),
        };
        Ok(Some(["off", "on"].map(|value| Variant {
            name: format!("{option} {value}"),
            program: program.to_owned(),
            arguments: vec![format!("--{option}"), value.to_owned()],
            replaced: Some(format!("--{option}")),
        })))
    }

    /// These options, with what is switched on. The certificates are made in `directory`.
    pub(crate) fn applied(&self, options: NodeOptions, directory: &Path) -> Result<NodeOptions, BoxError> {
        let certificates = match self.tls {
            Switch::On => Some(issue(&directory.join("certificates"))?),
            _ => None,
        };
        Ok(NodeOptions { certificates, metrics: self.metrics == Switch::On, ..options })
    }
}

/// A CA, a certificate for all nodes, and one for the clients.
fn issue(directory: &Path) -> Result<PathBuf, BoxError> {
    let authority = Authority::create(directory, DAYS)?;
    authority.issue(&Holder::Node { hosts: vec![HOST.to_owned()], id: None, cluster: None }, DAYS)?;
    let roles = vec![CertificateRole::Client, CertificateRole::Admin];
    authority.issue(&Holder::Client { name: CLIENT.to_owned(), roles }, DAYS)?;
    // The nodes may be processes that are started elsewhere.
    Ok(directory.canonicalize()?)
}

/// The certificate of the nodes in this directory.
pub(crate) fn node_tls(certificates: &Path) -> Tls {
    tls(certificates, HOST)
}

/// The certificate of the clients in this directory.
pub(crate) fn client_tls(certificates: &Path) -> Tls {
    tls(certificates, CLIENT)
}

fn tls(certificates: &Path, name: &str) -> Tls {
    let file = |name: String| certificates.join(name).into();
    Tls {
        ca: file("ca.pem".to_owned()),
        certificate: file(format!("{name}.pem")),
        key: file(format!("{name}-key.pem")),
    }
}

/// Records the metrics of all nodes of this process that are started from now on.
pub(crate) fn record_metrics() -> Result<(), BoxError> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        let mut builder = PrometheusBuilder::new();
        for (suffix, buckets) in
            [("_seconds", SECONDS_BUCKETS), ("_entries", SIZE_BUCKETS), ("_messages", SIZE_BUCKETS)]
        {
            let matcher = Matcher::Suffix(suffix.to_owned());
            builder = builder.set_buckets_for_metric(matcher, buckets).map_err(|error| error.to_string())?;
        }
        let recorder = builder.install_recorder().map_err(|error| error.to_string())?;
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(UPKEEP_INTERVAL);
                recorder.run_upkeep();
            }
        });
        Ok(())
    };
    STARTED.get_or_init(start).clone().map_err(BoxError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn switches(tls: Switch, metrics: Switch) -> Switches {
        Switches { tls, metrics, rounds: 1 }
    }

    #[test]
    fn a_comparison_varies_one_switch_and_keeps_the_other() {
        let program = Path::new("bench");
        for (tls, metrics, names) in [
            (Switch::Both, Switch::On, Some(["tls off", "tls on"])),
            (Switch::Off, Switch::Both, Some(["metrics off", "metrics on"])),
            (Switch::On, Switch::Off, None),
        ] {
            let compared = switches(tls, metrics).compared(program).unwrap();
            let found = compared.as_ref().map(|sides| sides.each_ref().map(|side| side.name.as_str()));
            assert_eq!(found, names);
        }
        assert!(switches(Switch::Both, Switch::Both).compared(program).is_err());
    }
}
