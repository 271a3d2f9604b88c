//! The commands `ca init` and `ca issue`.

use std::io::Write;

use raftify::BoxError;

use crate::arguments::Ca;
use crate::authority::{Authority, Holder, Issued};

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
