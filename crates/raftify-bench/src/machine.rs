//! Information of the operating system about this machine and about processes. Reads `/proc` and `/sys` of
//! Linux.

use std::fs;
use std::path::Path;

use raftify::BoxError;
use serde_json::json;

use crate::line::Line;

/// Processor time and memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: u64,
    /// The peak of resident memory.
    pub(crate) resident_bytes_peak: u64,
}

impl Usage {
    /// The usage so far of the process with this id, or of this process.
    pub(crate) fn of(process: Option<u32>) -> Result<Usage, BoxError> {
        const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, which Linux has fixed for these files.
        let directory = format!("/proc/{}", process.map_or("self".to_owned(), |number| number.to_string()));
        let stat = fs::read_to_string(format!("{directory}/stat"))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let mut times = after_name.split_whitespace().skip(11).map(str::parse::<f64>);
        let (Some(Ok(user)), Some(Ok(system))) = (times.next(), times.next()) else {
            return Err(format!("{directory}/stat has no processor time").into());
        };
        let status = fs::read_to_string(format!("{directory}/status"))?;
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kib = line.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
            kib.map(|kib| kib * 1024).ok_or_else(|| format!("{directory}/status has no {name}"))
        };
        Ok(Usage {
            cpu_seconds: (user + system) / TICKS_PER_SECOND,
            resident_bytes: bytes("VmRSS:")?,
            resident_bytes_peak: bytes("VmHWM:")?,
        })
    }
}

/// The measured machine; `directory` is where the nodes keep their data.
pub(crate) fn describe(directory: &Path) -> Line {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()));
    let kernel = read("/proc/sys/kernel/osrelease");
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    let (file_system, device) = mount_of(directory).unwrap_or_default();
    let disk = match device.trim_start_matches("/dev/") {
        name if name.starts_with("vd") => "virtio block device",
        name if name.starts_with("nvme") => "NVMe",
        name if name.starts_with("sd") => "SCSI or SATA disk",
        name if name.starts_with("dm-") || name.starts_with("mapper") => "mapped block device",
        _ => "other",
    };
    Line::of("machine")
        .with("cpu", field(&read("/proc/cpuinfo"), "model name"))
        .with("cores", std::thread::available_parallelism().map(|count| count.get()).ok())
        .with("memory_gib", memory_kib.map(|kib| kib >> 20))
        .with("kernel", kernel)
        .with("disk", disk)
        .with("file_system", file_system)
        .with("profile", json!(if cfg!(debug_assertions) { "debug" } else { "release" }))
}

/// Type and device of the file system of `directory`.
fn mount_of(directory: &Path) -> Option<(String, String)> {
    let directory = fs::canonicalize(directory).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        directory.starts_with(place).then_some((place.len(), kind, device))
    });
    let (_, kind, device) = mounts.max_by_key(|(length, ..)| *length)?;
    Some((kind.to_owned(), device.to_owned()))
}
