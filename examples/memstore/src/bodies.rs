//! Reads the bodies of requests, with limits on time and memory: a client may send a body slowly, or never
//! completely, and there may be many such clients.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use actix_web::error::PayloadError;
use actix_web::web::{Bytes, Payload};
use futures_util::StreamExt;
use tokio::time::timeout;

/// The limits of the bodies of requests.
#[derive(Clone, Debug)]
pub struct BodyLimits {
    /// How long a body may take. Default 10 s.
    pub timeout: Duration,
    /// The number of bodies that are read at once. Default 4096.
    pub count_max: u64,
    /// Their total memory, in bytes. Default 64 MiB.
    pub held_bytes_max: u64,
}

impl Default for BodyLimits {
    fn default() -> BodyLimits {
        BodyLimits { timeout: Duration::from_secs(10), count_max: 4096, held_bytes_max: 64 << 20 }
    }
}

/// Why a body was not read completely.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It exceeds the limit; the rest is not read.
    #[error("the body has more than {0} bytes")]
    TooLarge(usize),
    /// The client was too slow.
    #[error("the body was not complete within {} ms", .0.as_millis())]
    Late(Duration),
    /// The number of bodies being read, or their memory, is at its limit.
    #[error("too many bodies are being read; try again later")]
    Busy,
    /// The connection broke, or the data is not HTTP.
    #[error("the body could not be read: {0}")]
    Broken(PayloadError),
}

/// All bodies that are being read.
#[derive(Debug, Default)]
pub struct Bodies {
    limits: BodyLimits,
    count: AtomicU64,
    held_bytes: AtomicU64,
}

impl Bodies {
    /// With these limits.
    pub fn new(limits: BodyLimits) -> Bodies {
        Bodies { limits, ..Bodies::default() }
    }

    /// The number of bodies that are being read, and their memory, in bytes.
    pub fn held(&self) -> (u64, u64) {
        (self.count.load(Ordering::Acquire), self.held_bytes.load(Ordering::Acquire))
    }

    /// Reads a body of at most this many bytes.
    ///
    /// # Errors
    /// See [`BodyError`]. The memory is released in each case, also if the future is dropped.
    pub async fn read(&self, body: Payload, bytes_max: usize) -> Result<Vec<u8>, BodyError> {
        let mut counted = Counted { in_all: &self.count, own: 0 };
        counted.add(1, self.limits.count_max)?;
        let mut reading = Reading {
            bytes: Vec::new(),
            bytes_max,
            counted: Counted { in_all: &self.held_bytes, own: 0 },
            held_bytes_max: self.limits.held_bytes_max,
        };
        let limit = self.limits.timeout;
        timeout(limit, reading.take_in(body)).await.map_err(|_| BodyError::Late(limit))??;
        Ok(reading.bytes)
    }
}

struct Reading<'a> {
    bytes: Vec<u8>,
    bytes_max: usize,
    counted: Counted<'a>,
    held_bytes_max: u64,
}

impl Reading<'_> {
    async fn take_in(&mut self, mut body: Payload) -> Result<(), BodyError> {
        while let Some(part) = body.next().await {
            self.push(&part.map_err(BodyError::Broken)?)?;
        }
        Ok(())
    }

    fn push(&mut self, part: &Bytes) -> Result<(), BodyError> {
        let (length, capacity) = (self.bytes.len() + part.len(), self.bytes.capacity());
        if length > self.bytes_max {
            return Err(BodyError::TooLarge(self.bytes_max));
        }
        if length > capacity {
            // Doubled, so that it is rarely moved; counted before it is allocated.
            let larger = length.max((2 * capacity).min(self.bytes_max));
            self.counted.add((larger - capacity) as u64, self.held_bytes_max)?;
            self.bytes.reserve_exact(larger - self.bytes.len());
        }
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

/// A share of a counter, released when it is dropped.
struct Counted<'a> {
    in_all: &'a AtomicU64,
    own: u64,
}

impl Counted<'_> {
    fn add(&mut self, more: u64, sum_max: u64) -> Result<(), BodyError> {
        let after = |sum: u64| sum.checked_add(more).filter(|sum| *sum <= sum_max);
        self.in_all.fetch_update(Ordering::AcqRel, Ordering::Acquire, after).map_err(|_| BodyError::Busy)?;
        self.own += more;
        Ok(())
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.in_all.fetch_sub(self.own, Ordering::AcqRel);
    }
}
