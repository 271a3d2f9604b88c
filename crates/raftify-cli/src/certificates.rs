//! The commands `ca init` and `ca issue`, and the options with which a program finds its certificate.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use raftify::BoxError;
use raftify::tls::Tls;

use crate::arguments::Ca;
use crate::authority::{Authority, Holder, Issued};

/// The options `--ca`, `--cert` and `--key` of a program: all three, or none.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArguments {
    /// Use mutual TLS: the certificate of the cluster's CA, a PEM file
    #[arg(long, value_name = "FILE", requires_all = ["cert", "key"])]
    ca: Option<PathBuf>,
    /// The certificate of this node or client, a PEM file
    #[arg(long, value_name = "FILE", requires_all = ["ca", "key"])]
    cert: Option<PathBuf>,
    /// The private key of the certificate, a PEM file
    #[arg(long, value_name = "FILE", requires_all = ["ca", "cert"])]
    key: Option<PathBuf>,
}

impl TlsArguments {
    /// The certificate to use; `None` without these options.
    pub fn tls(&self) -> Option<Tls> {
        let (ca, certificate, key) = (self.ca.clone()?, self.cert.clone()?, self.key.clone()?);
        Some(Tls { ca: ca.into(), certificate: certificate.into(), key: key.into() })
    }
}

pub(crate) fn run(what: Ca, output: &mut dyn Write) -> Result<(), BoxError> {
    match what {
        Ca::Init { dir, days } => {
            let authority = Authority::create(&dir, days)?;
            let certificate = authority.certificate();
            writeln!(output, "the CA is in {}: keep ca-key.pem in a safe place", dir.display())?;
            writeln!(output, "give {} to each node and each client (--ca)", certificate.display())?;
        }
        Ca::Issue { node, id, cluster, client, role, dir, days } => {
            let authority = Authority::open(&dir)?;
            let holder = match client {
                Some(name) => Holder::Client { name, roles: role },
                None => Holder::Node { hosts: node, id, cluster },
            };
            let Issued { certificate, key } = authority.issue(&holder, days)?;
            writeln!(
                output,
                "--ca {} --cert {} --key {}",
                authority.certificate().display(),
                certificate.display(),
                key.display()
            )?;
        }
    }
    Ok(())
}
