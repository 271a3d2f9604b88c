//! What a disk holds after the power went: a journal of operations, cut anywhere, and what was not synced
//! lost in part.
//!
//! Believed of a disk is what POSIX promises and no more: the content of a file is durable once the file was
//! synced, a name once its directory was. Of what was not, any choice of sectors may be there, and a part of
//! one; names are there or not, but a rename is never half done, and nothing is there without what was done
//! to the same name before.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;

pub(crate) type FileId = usize;
pub(crate) type DirectoryId = usize;

/// The directory of which all is recorded.
pub(crate) const ROOT: DirectoryId = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    File(FileId),
    Directory(DirectoryId),
}

/// A name in a directory.
pub(crate) type Place = (DirectoryId, OsString);

#[derive(Clone)]
pub(crate) enum Operation {
    /// The one name goes, the other comes, both at once.
    Names {
        gone: Option<Place>,
        come: Option<(Place, Node)>,
    },
    /// `synced`: it is durable at once, and nothing else of the file.
    Write {
        file: FileId,
        offset: u64,
        data: Vec<u8>,
        synced: bool,
    },
    SetLength {
        file: FileId,
        length: u64,
    },
    SyncFile(FileId),
    SyncDirectory(DirectoryId),
}

impl Operation {
    /// The same for who was killed before it was durable: it is in the system's cache.
    pub(crate) fn unsynced(&self) -> Option<Operation> {
        match self {
            Operation::Write { file, offset, data, .. } => {
                Some(Operation::Write { file: *file, offset: *offset, data: data.clone(), synced: false })
            }
            Operation::SyncFile(_) | Operation::SyncDirectory(_) => None,
            other => Some(other.clone()),
        }
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Names { gone: None, come: Some((place, node)) } => {
                write!(f, "new {node:?} at {place:?}")
            }
            Operation::Names { gone: Some(gone), come: Some((come, _)) } => {
                write!(f, "{gone:?} becomes {come:?}")
            }
            Operation::Names { gone, .. } => write!(f, "{gone:?} goes"),
            Operation::Write { file, offset, data, synced } => {
                let synced = if *synced { ", synced" } else { "" };
                write!(f, "{} bytes at {offset} of file {file}{synced}", data.len())
            }
            Operation::SetLength { file, length } => write!(f, "file {file} gets {length} bytes"),
            Operation::SyncFile(file) => write!(f, "file {file} is synced"),
            Operation::SyncDirectory(directory) => write!(f, "directory {directory} is synced"),
        }
    }
}

/// How much is there of what was not synced, in the order in which it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Nothing,
    All,
    /// So much of it: bytes, or names.
    First(usize),
    /// Any part of it, as this seed says.
    Some(u64),
}

/// What remains of that which was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) content: Kept,
    pub(crate) names: Kept,
}

/// Files and directories at one time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) files: Vec<Vec<u8>>,
    pub(crate) directories: usize,
    pub(crate) names: BTreeMap<Place, Node>,
}

/// What is durable for certain after some operations, and what may be.
#[derive(Clone)]
pub(crate) struct Cut {
    durable: Image,
    contents: Vec<Operation>,
    names: Vec<Operation>,
}

impl Image {
    /// An empty directory.
    pub(crate) fn new() -> Image {
        Image { directories: 1, ..Image::default() }
    }

    pub(crate) fn carry_out(&mut self, operation: &Operation) {
        match operation {
            Operation::Names { gone, come } => {
                if let Some(place) = gone {
                    self.names.remove(place);
                }
                if let Some((place, node)) = come {
                    self.know(*node);
                    self.names.insert(place.clone(), *node);
                }
            }
            Operation::Write { file, offset, data, .. } => self.write(*file, *offset as usize, data),
            Operation::SetLength { file, length } => {
                self.know(Node::File(*file));
                self.files[*file].resize(*length as usize, 0);
            }
            Operation::SyncFile(_) | Operation::SyncDirectory(_) => {}
        }
    }

    fn write(&mut self, file: FileId, offset: usize, data: &[u8]) {
        self.know(Node::File(file));
        let content = &mut self.files[file];
        let end = offset + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[offset..end].copy_from_slice(data);
    }

    fn know(&mut self, node: Node) {
        match node {
            Node::File(file) => self.files.resize(self.files.len().max(file + 1), Vec::new()),
            Node::Directory(directory) => self.directories = self.directories.max(directory + 1),
        }
    }

    /// All that can be found from the root, by path; directories without content.
    pub(crate) fn tree(&self) -> BTreeMap<PathBuf, Option<&[u8]>> {
        let mut found = BTreeMap::new();
        let mut open = vec![(ROOT, PathBuf::new())];
        while let Some((directory, path)) = open.pop() {
            let from = (directory, OsString::new());
            for ((_, name), node) in self.names.range(from..).take_while(|((of, _), _)| *of == directory) {
                let path = path.join(name);
                match node {
                    Node::File(file) => found.insert(path, Some(self.files[*file].as_slice())),
                    Node::Directory(inner) => {
                        open.push((*inner, path.clone()));
                        found.insert(path, None)
                    }
                };
            }
        }
        found
    }

    /// Makes a real directory of it, in the place of what is there.
    pub(crate) fn write_to(&self, directory: &Path) -> io::Result<()> {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(directory)?,
        }
        for (path, content) in self.tree() {
            match content {
                Some(content) => fs::write(directory.join(path), content)?,
                None => fs::create_dir(directory.join(path))?,
            }
        }
        Ok(())
    }
}

impl Cut {
    /// After all of `journal`, which began with `begin`.
    pub(crate) fn new(begin: &Image, journal: &[Operation]) -> Cut {
        let mut cut = Cut { durable: begin.clone(), contents: Vec::new(), names: Vec::new() };
        for operation in journal {
            cut.then(operation);
        }
        cut
    }

    /// The same with one more operation.
    pub(crate) fn then(&mut self, operation: &Operation) {
        match operation {
            Operation::Names { .. } => self.names.push(operation.clone()),
            Operation::Write { file, synced: true, .. } => {
                // What was written there before must not come over it later.
                self.sync_file(*file);
                self.durable.carry_out(operation);
            }
            Operation::Write { .. } | Operation::SetLength { .. } => self.contents.push(operation.clone()),
            Operation::SyncFile(file) => self.sync_file(*file),
            Operation::SyncDirectory(directory) => {
                let names = std::mem::take(&mut self.names);
                let synced = names.iter().map(|name| places(name).any(|(of, _)| of == directory)).collect();
                for (name, synced) in names.iter().zip(with_those_before(&names, synced)) {
                    if synced { self.durable.carry_out(name) } else { self.names.push(name.clone()) }
                }
            }
        }
    }

    fn sync_file(&mut self, synced: FileId) {
        let of_it = |operation: &mut Operation| matches!(operation, Operation::Write { file, .. } | Operation::SetLength { file, .. } if *file == synced);
        for operation in self.contents.extract_if(.., of_it) {
            self.durable.carry_out(&operation);
        }
    }

    /// The ways in which something can be lost, `chosen` of them by chance.
    pub(crate) fn remains(&self, chosen: u64) -> Vec<Remains> {
        let bytes: usize = self.contents.iter().map(data_bytes).sum();
        let contents = match self.contents.len() {
            0 => vec![Kept::All],
            _ => [Kept::Nothing, Kept::All]
                .into_iter()
                .chain([1, bytes / 3, bytes / 2, bytes.saturating_sub(1)].map(Kept::First))
                .chain((0..chosen).map(Kept::Some))
                .collect(),
        };
        let names = match self.names.len() {
            0 => vec![Kept::All],
            1 => vec![Kept::Nothing, Kept::All],
            count => [Kept::Nothing, Kept::All, Kept::First(1), Kept::First(count - 1)]
                .into_iter()
                .chain((0..chosen).map(Kept::Some))
                .collect(),
        };
        // Everything and nothing of the one with all ways of the other; then both by chance.
        let mut remains = Vec::new();
        for (at, content) in contents.iter().enumerate() {
            for (other, names) in names.iter().enumerate() {
                if at < 2 || other < 2 || at == other {
                    remains.push(Remains { content: *content, names: *names });
                }
            }
        }
        remains
    }

    /// What is on the disk if so much remains.
    pub(crate) fn image(&self, remains: Remains) -> Image {
        let mut image = self.durable.clone();
        let keep = |kept: Kept, at: usize| match kept {
            Kept::Nothing => false,
            Kept::All => true,
            Kept::First(count) => at < count,
            Kept::Some(seed) => chance(seed, at).is_multiple_of(2),
        };
        let names = (0..self.names.len()).map(|at| keep(remains.names, at)).collect();
        for (name, kept) in self.names.iter().zip(with_those_before(&self.names, names)) {
            if kept {
                image.carry_out(name);
            }
        }
        let (mut sector, mut bytes) = (0, 0);
        for operation in &self.contents {
            let Operation::Write { file, offset, data, .. } = operation else {
                sector += 1;
                let kept = match remains.content {
                    Kept::First(count) => bytes < count,
                    kept => keep(kept, sector),
                };
                if kept {
                    image.carry_out(operation);
                }
                continue;
            };
            let (mut offset, mut data) = (*offset as usize, data.as_slice());
            while !data.is_empty() {
                let length = data.len().min(SECTOR_BYTES - offset % SECTOR_BYTES);
                sector += 1;
                let kept = match remains.content {
                    Kept::First(count) => count.saturating_sub(bytes).min(length),
                    // Seldom the power goes in the middle of a sector.
                    Kept::Some(seed) if chance(seed, sector) % 64 == 1 => {
                        chance(seed, sector) as usize % length
                    }
                    kept => {
                        if keep(kept, sector) {
                            length
                        } else {
                            0
                        }
                    }
                };
                if kept > 0 {
                    image.write(*file, offset, &data[..kept]);
                }
                (offset, bytes, data) = (offset + length, bytes + length, &data[length..]);
            }
        }
        image
    }
}

fn places(operation: &Operation) -> impl Iterator<Item = &Place> {
    let both = match operation {
        Operation::Names { gone, come } => [gone.as_ref(), come.as_ref().map(|(place, _)| place)],
        _ => [None, None],
    };
    both.into_iter().flatten()
}

/// The chosen ones, and what was done before them to the same names.
fn with_those_before(names: &[Operation], mut chosen: Vec<bool>) -> Vec<bool> {
    let mut touched = BTreeSet::new();
    for (name, chosen) in names.iter().zip(&mut chosen).rev() {
        *chosen |= places(name).any(|place| touched.contains(place));
        if *chosen {
            touched.extend(places(name));
        }
    }
    chosen
}

fn data_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len(),
        _ => 0,
    }
}

/// A number for each seed and place (splitmix64).
pub(crate) fn chance(seed: u64, at: usize) -> u64 {
    let mut mixed = (seed << 32).wrapping_add(at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
