//! Certificates that are renewed while the clients write.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Trouble};
use crate::faults::Fault;
use crate::joins::serve_while;
use crate::links::Party;
use crate::nemesis::{Nemesis, REFUSAL_PATIENCE};

/// The polling interval.
const PAUSE: Duration = Duration::from_millis(50);

impl Nemesis<'_> {
    /// Replaces the files of all certificates and keys. Each node must present the new ones, at both of its
    /// addresses, without a restart and without a gap in the service. Then one node restarts: it meets nodes
    /// whose connections are older than their certificates.
    pub(crate) async fn renew_certificates(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let fault = Fault::RenewedCertificates;
        let begin = Instant::now();
        if let Some(certificates) = &self.cluster.certificates {
            certificates.renew()?;
        }
        let webs = self.cluster.webs();
        let ((), longest) = serve_while(&webs, self.cluster.until_renewed()).await?;
        self.figures.of(fault).after_fault.push(longest);
        let renewed = begin.elapsed();
        self.cluster.node(place).kill()?;
        let told = self.measure_service(fault).await;
        let what = format!(
            "{what}: all served after {} ms, {} ms without a write",
            renewed.as_millis(),
            longest.as_millis()
        );
        self.heal_and_measure(fault, &what, &format!("one killed: {told}")).await
    }
}

impl Cluster {
    /// Waits until every member presents the certificate that is in its file, to its peers and at its web API.
    async fn until_renewed(&self) -> Result<(), Trouble> {
        let Some(certificates) = &self.certificates else { return Ok(()) };
        let begin = Instant::now();
        for place in self.places() {
            let addresses = &self.nodes[place - 1].addresses;
            for (address, is_web) in [(&addresses.raft, false), (&addresses.web, true)] {
                while !certificates.are_served(place, address, is_web).await {
                    if begin.elapsed() > REFUSAL_PATIENCE {
                        return Err(Trouble::Undetected(
                            place,
                            format!("its certificate was renewed, and it presents another one at {address}"),
                        ));
                    }
                    sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }
}
