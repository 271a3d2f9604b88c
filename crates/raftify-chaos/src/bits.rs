//! Flips single bits in the files of a node: in its log, in LMDB, in a snapshot.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rand::seq::IndexedMutRandom;
use rand::{Rng, RngExt};

/// Which bits may be flipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Any bit that was written.
    Anything,
    /// Bits whose change a node must detect when it starts.
    Noticed,
}

/// Flips one bit of one byte, and returns its location.
pub(crate) fn flip(directory: &Path, aim: Aim, random: &mut impl Rng) -> io::Result<String> {
    let found = match aim {
        Aim::Anything => any_byte(directory, random)?,
        Aim::Noticed => telling_byte(directory, random)?,
    };
    let (path, offset) =
        found.ok_or_else(|| io::Error::other("no written data whose bits could be flipped"))?;
    let bit = random.random_range(0..8);
    // Writes only that byte: the file may have holes.
    let mut file = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(&[byte[0] ^ 1 << bit])?;
    let name = path.strip_prefix(directory).unwrap_or(&path);
    Ok(format!("bit {bit} of byte {offset} of {}", name.display()))
}

/// The offset of a written byte. Log, LMDB and snapshots are chosen equally often, whatever their sizes.
fn any_byte(directory: &Path, random: &mut impl Rng) -> io::Result<Option<(PathBuf, u64)>> {
    let mut kinds = vec![
        files(&directory.join("log"), "segment"),
        vec![directory.join("data.mdb")],
        files(&directory.join("snapshots"), "snapshot"),
    ];
    loop {
        kinds.retain(|files| !files.is_empty());
        let Some(kind) = kinds.choose_mut(random) else { return Ok(None) };
        let path = kind.swap_remove(random.random_range(0..kind.len()));
        let bytes = fs::read(&path)?;
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            return Ok(Some((path, random.random_range(0..=last as u64))));
        }
    }
}

/// The offset of a byte of the newest snapshot, which every start reads and checks. Where the log begins and
/// ends is known only to the node.
fn telling_byte(directory: &Path, random: &mut impl Rng) -> io::Result<Option<(PathBuf, u64)>> {
    let Some(path) = files(&directory.join("snapshots"), "snapshot").pop() else { return Ok(None) };
    let bytes = fs::metadata(&path)?.len();
    Ok(Some((path, random.random_range(0..bytes))))
}

/// The finished files of this kind, the oldest first.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> =
        paths.filter(|path| path.extension().is_some_and(|it| it == extension)).collect();
    paths.sort_unstable();
    paths
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// The files that sixty seeds hit, one bit each, and the offsets of the bytes.
    fn hit(aim: Aim) -> BTreeSet<(&'static str, usize)> {
        let directory = tempfile::tempdir().unwrap();
        let written = |name: &str| directory.path().join(name);
        for kind in ["log", "snapshots"] {
            fs::create_dir_all(written(kind)).unwrap();
        }
        let mut segment = vec![7; 200];
        segment.extend([0; 100_000]);
        let files = [
            ("log/1.segment", segment.clone()),
            ("log/2.segment", segment),
            ("data.mdb", vec![8; 500]),
            ("snapshots/1.snapshot", vec![9; 50]),
            ("snapshots/2.snapshot", vec![9; 50]),
            ("lock.mdb", vec![1; 1000]),
        ];
        let mut hit = BTreeSet::new();
        for seed in 0..60 {
            for (name, bytes) in &files {
                fs::write(written(name), bytes).unwrap();
            }
            flip(directory.path(), aim, &mut ChaCha8Rng::seed_from_u64(seed)).unwrap();
            let mut turned = 0;
            for (name, bytes) in &files {
                let now = fs::read(written(name)).unwrap();
                assert_eq!(now.len(), bytes.len());
                for (place, (now, before)) in now.iter().zip(bytes).enumerate().filter(|(_, (a, b))| a != b) {
                    turned += (now ^ before).count_ones();
                    hit.insert((*name, place));
                }
            }
            assert_eq!(turned, 1);
        }
        hit
    }

    #[test]
    fn exactly_one_written_bit_is_flipped_in_every_kind_of_file() {
        let hit = hit(Aim::Anything);
        let names: BTreeSet<&str> = hit.iter().map(|(name, _)| *name).collect();
        let all =
            ["data.mdb", "log/1.segment", "log/2.segment", "snapshots/1.snapshot", "snapshots/2.snapshot"];
        assert_eq!(names, all.into());
        assert!(hit.iter().all(|(name, place)| !name.starts_with("log") || *place < 200), "{hit:?}");
    }

    #[test]
    fn a_bit_that_must_be_detected_is_in_the_newest_snapshot() {
        let hit = hit(Aim::Noticed);
        assert!(hit.iter().all(|(name, _)| *name == "snapshots/2.snapshot"), "{hit:?}");
    }
}
