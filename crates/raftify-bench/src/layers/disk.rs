//! The limit: the time of the disk itself for one durable write.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use raftify::BoxError;

use crate::Work;
use crate::line::Line;
use crate::measure::{Recorder, repeat};

const BLOCK: [u8; 4096] = [7; 4096];
const PROBES: u32 = 200;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Disk {
    /// The duration of each of the two measurements
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

impl Disk {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(2)?;
        for way in ["overwrite", "append"] {
            work.reporter.step(format!("fdatasync of a 4 KiB {way}"))?;
            let file = File::create(work.directory.join("fdatasync"))?;
            file.write_all_at(&BLOCK, 0)?;
            file.sync_all()?;
            let mut at = 0;
            let measured = repeat(Duration::from_secs_f64(self.seconds), || {
                if way == "append" {
                    at += BLOCK.len() as u64;
                }
                file.write_all_at(&BLOCK, at)?;
                Ok(file.sync_data()?)
            })?;
            let line = Line { clients: Some(1), fsync: Some(true), ..Line::of("disk") }.measured(&measured);
            let line = Line { disk_fdatasync_p50_us: Some(measured.p50_us), ..line };
            work.reporter.result(line.with("way", way).with("block_bytes", BLOCK.len()))?;
        }
        Ok(())
    }
}

/// The median of overwriting 4 KiB and syncing them, in microseconds.
pub(crate) fn probe(directory: &Path) -> Result<f64, BoxError> {
    let file = File::create(directory.join("fdatasync"))?;
    file.write_all_at(&BLOCK, 0)?;
    file.sync_all()?;
    let mut recorder = Recorder::new();
    for _ in 0..PROBES {
        let begin = Instant::now();
        file.write_all_at(&BLOCK, 0)?;
        file.sync_data()?;
        recorder.record(begin.elapsed());
    }
    Ok(recorder.quantile_us(0.5))
}
