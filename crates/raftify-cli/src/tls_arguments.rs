//! The options with which a program finds its certificate.

use std::path::PathBuf;

use clap::Args;
use raftify::tls::Tls;

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
