//! The limit: what the disk itself takes for one durable write.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;
use raftify::BoxError;

const BLOCK: [u8; 4096] = [7; 4096];
const SAMPLES: usize = 300;

/// The median of overwriting 4 KiB and syncing them, in microseconds.
pub(crate) fn fdatasync_p50_us(directory: &Path) -> Result<u64, BoxError> {
    let mut file = File::create(directory.join("fdatasync"))?;
    file.write_all(&BLOCK)?;
    file.sync_all()?;
    let mut histogram = Histogram::<u64>::new(3)?;
    for _ in 0..SAMPLES {
        file.seek(SeekFrom::Start(0))?;
        let begin = Instant::now();
        file.write_all(&BLOCK)?;
        file.sync_data()?;
        histogram.record(u64::try_from(begin.elapsed().as_micros())?)?;
    }
    Ok(histogram.value_at_quantile(0.5))
}
