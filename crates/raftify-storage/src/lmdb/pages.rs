//! Reads the pages of an LMDB file without LMDB, and checks its whole structure.
//!
//! LMDB trusts the pages that it maps: a damaged page can end the process. This module trusts no byte, maps
//! nothing, and writes nothing, not even to the table of readers. It is for files that no process writes to
//! meanwhile. The format is that of LMDB's data version 1 (`mdb.c`), with the numbers of this machine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use raftify_core::StorageError;

use crate::files::io_error;

const MAGIC: u32 = 0xBEEF_C0DE;
const DATA_VERSION: u32 = 1;

const BRANCH: u16 = 0x01;
const LEAF: u16 = 0x02;
const OVERFLOW: u16 = 0x04;
const META: u16 = 0x08;
/// The flags that distinguish the kinds of pages. The other ones are for pages in memory.
const KINDS: u16 = 0x6f;

const BIG_DATA: u16 = 0x01;
const SUB_DATABASE: u16 = 0x02;

const PAGE_HEADER_BYTES: usize = 16;
const NODE_HEADER_BYTES: usize = 8;
const META_BYTES: usize = 24 + 2 * TREE_BYTES + 16;
const TREE_BYTES: usize = 48;
const NO_PAGE: u64 = u64::MAX;

/// LMDB's own limit for the depth of a tree.
const DEPTH_MAX: u16 = 32;

const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=32768;

/// How many problems are kept. One damaged page can cause many.
const PROBLEMS_MAX: usize = 32;

/// A tree of pages, as its parent describes it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree {
    depth: u16,
    entries: u64,
    root: u64,
    /// Integer keys, as in the tree of free pages: their order is not that of their bytes.
    integer_keys: bool,
}

/// An LMDB file that is being checked.
pub(crate) struct PageFile {
    file: File,
    page_bytes: usize,
    last_page: u64,
    free: Tree,
    main: Tree,
    /// One bit for each page that a tree contains, or that is free.
    seen: Vec<u64>,
    problems: Vec<String>,
    read_bytes: u64,
}

/// Why a file cannot be walked at all.
pub(crate) enum Unusable {
    Io(StorageError),
    Damaged(String),
}

/// Numbers of this machine, at any offset. A number beyond the end is zero, which no check accepts as a page.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().unwrap_or([0; N])
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.array(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(self.array(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(self.array(at))
    }

    fn tree(&self, at: usize, integer_keys: bool) -> Tree {
        Tree { depth: self.u16(at + 6), entries: self.u64(at + 32), root: self.u64(at + 40), integer_keys }
    }
}

/// A node of a page: its flags, its key, and what follows the key.
struct Node<'a> {
    low: u32,
    flags: u16,
    key: &'a [u8],
    rest: &'a [u8],
}

/// The place of a page in its tree.
#[derive(Clone, Copy)]
struct Place {
    page: u64,
    /// How many levels there are from this page on.
    levels: u16,
}

/// Takes a key, its flags, and its value.
type Visit<'v> = dyn FnMut(&[u8], u16, &[u8]) + 'v;

/// What the walk over one tree has found so far.
struct Walk<'v> {
    name: &'v str,
    integer_keys: bool,
    entries: u64,
    last_key: Option<Vec<u8>>,
    visit: &'v mut Visit<'v>,
}

impl PageFile {
    /// Opens the file, and reads its two meta pages.
    pub(crate) fn open(path: &Path) -> Result<PageFile, Unusable> {
        let mut file = File::open(path).map_err(|error| Unusable::Io(io_error("open", path)(error)))?;
        let unreadable = |error| Unusable::Io(io_error("read", path)(error));
        let file_bytes = file.metadata().map_err(unreadable)?.len();
        if !cfg!(target_pointer_width = "64") {
            let reason = "the pages of the database can only be checked on a 64-bit machine".to_owned();
            return Err(Unusable::Io(StorageError::Database {
                action: "check",
                path: path.to_owned(),
                reason,
            }));
        }
        let damaged = |reason: String| Err(Unusable::Damaged(reason));
        let mut first = vec![0; PAGE_HEADER_BYTES + META_BYTES];
        if file_bytes < first.len() as u64 {
            return damaged(format!("it has only {file_bytes} bytes"));
        }
        file.read_exact(&mut first).map_err(unreadable)?;
        // As LMDB does: the size of a page is that in the first meta page.
        let page_bytes = Bytes(&first).u32(PAGE_HEADER_BYTES + 24) as usize;
        if Bytes(&first).u32(PAGE_HEADER_BYTES) != MAGIC {
            return damaged("it is not an LMDB file".to_owned());
        }
        if !PAGE_BYTES.contains(&page_bytes) || !page_bytes.is_power_of_two() {
            return damaged(format!("its pages have {page_bytes} bytes"));
        }
        if file_bytes < 2 * page_bytes as u64 {
            return damaged(format!("it has only {file_bytes} bytes"));
        }
        let mut newest: Option<(u64, u64, Tree, Tree)> = None;
        let mut problems = Vec::new();
        let mut page = vec![0; page_bytes];
        for number in 0..2 {
            file.seek(SeekFrom::Start(number * page_bytes as u64)).map_err(unreadable)?;
            file.read_exact(&mut page).map_err(unreadable)?;
            let (page, at) = (Bytes(&page), PAGE_HEADER_BYTES);
            let is_meta = page.u16(10) & KINDS == META && page.u32(at) == MAGIC;
            if !is_meta || page.u64(0) != number {
                return damaged(format!("page {number} is not its meta page"));
            }
            if page.u32(at + 4) != DATA_VERSION {
                return damaged(format!("its LMDB version is {}", page.u32(at + 4)));
            }
            if page.u32(at + 24) as usize != page_bytes {
                problems.push(format!("meta page {number} names pages of {} bytes", page.u32(at + 24)));
            }
            let (free, main) = (page.tree(at + 24, true), page.tree(at + 24 + TREE_BYTES, false));
            let after = at + 24 + 2 * TREE_BYTES;
            let (last_page, transaction) = (page.u64(after), page.u64(after + 8));
            // Each transaction writes one of the two, in turns.
            if transaction != 0 && transaction % 2 != number {
                problems.push(format!("meta page {number} is of transaction {transaction}"));
            }
            if let Some((other, ..)) = newest
                && transaction.abs_diff(other) > 1
            {
                problems.push(format!("its meta pages are of transactions {other} and {transaction}"));
            }
            if newest.is_none_or(|(newest, ..)| transaction > newest) {
                newest = Some((transaction, last_page, free, main));
            }
        }
        let Some((_, last_page, free, main)) = newest else {
            return damaged("it has no meta page".to_owned());
        };
        let pages = file_bytes / page_bytes as u64;
        if last_page >= pages {
            return damaged(format!(
                "it has {pages} pages, but its own record says that page {last_page} exists"
            ));
        }
        let seen = vec![0; usize::try_from(last_page / 64 + 1).unwrap_or(0)];
        let read_bytes = 2 * page_bytes as u64;
        let mut file = PageFile { file, page_bytes, last_page, free, main, seen, problems, read_bytes };
        file.mark(0);
        file.mark(1);
        Ok(file)
    }

    /// The named databases. Reads the tree of their names.
    pub(crate) fn tables(&mut self) -> io::Result<BTreeMap<Vec<u8>, Tree>> {
        let mut tables = BTreeMap::new();
        let mut others = 0;
        self.walk("names", self.main, &mut |key, flags, value| {
            if flags & SUB_DATABASE != 0 && value.len() == TREE_BYTES {
                tables.insert(key.to_vec(), Bytes(value).tree(0, false));
            } else {
                others += 1;
            }
        })?;
        if others > 0 {
            self.problem(format!("{others} of its names are no databases"));
        }
        Ok(tables)
    }

    /// Checks that no free page is in use. After all tables were walked.
    pub(crate) fn check_free_pages(&mut self) -> io::Result<()> {
        let mut lists = Vec::new();
        self.walk("free pages", self.free, &mut |_, _, value| lists.push(value.to_vec()))?;
        for list in lists {
            let list = Bytes(&list);
            let count = list.u64(0);
            if count
                .checked_add(1)
                .and_then(|words| words.checked_mul(8))
                .is_none_or(|end| end > list.0.len() as u64)
            {
                self.problem(format!("a list of free pages has {} bytes for {count} pages", list.0.len()));
                continue;
            }
            for at in 1..=count as usize {
                let page = list.u64(8 * at);
                if !self.mark(page) {
                    self.problem(format!(
                        "page {page} is listed as free, and it is in use, free twice or missing"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What was found wrong so far.
    pub(crate) fn take_problems(&mut self) -> Vec<String> {
        std::mem::take(&mut self.problems)
    }

    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text);
        }
    }

    /// Notes that `page` is taken; `false` if it is already, or does not exist.
    fn mark(&mut self, page: u64) -> bool {
        if page > self.last_page {
            return false;
        }
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        let is_new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_new
    }

    fn read(&mut self, page: u64, into: &mut [u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(page * self.page_bytes as u64))?;
        self.read_bytes += into.len() as u64;
        self.file.read_exact(into)
    }

    /// Visits each key of a tree with its flags and its value, in order. Damage is noted, and what is below
    /// it left out.
    pub(crate) fn walk<'v>(&mut self, name: &'v str, tree: Tree, visit: &'v mut Visit<'v>) -> io::Result<()> {
        let mut walk = Walk { name, integer_keys: tree.integer_keys, entries: 0, last_key: None, visit };
        if tree.root == NO_PAGE {
            if tree.entries != 0 || tree.depth != 0 {
                self.problem(format!("{name}: it has {} entries and no page", tree.entries));
            }
            return Ok(());
        }
        if tree.depth == 0 || tree.depth > DEPTH_MAX {
            self.problem(format!("{name}: its depth is {}", tree.depth));
            return Ok(());
        }
        self.page(Place { page: tree.root, levels: tree.depth }, &mut walk)?;
        if walk.entries != tree.entries {
            self.problem(format!("{name}: it has {} entries, recorded are {}", walk.entries, tree.entries));
        }
        Ok(())
    }

    fn page(&mut self, place: Place, walk: &mut Walk<'_>) -> io::Result<()> {
        let Place { page: number, levels } = place;
        let name = walk.name;
        if !self.mark(number) {
            self.problem(format!("{name}: page {number} is used twice, or does not exist"));
            return Ok(());
        }
        let mut content = vec![0; self.page_bytes];
        self.read(number, &mut content)?;
        let page = Bytes(&content);
        let expected = if levels == 1 { LEAF } else { BRANCH };
        let (flags, lower, upper) = (page.u16(10) & KINDS, page.u16(12), page.u16(14));
        let (lower, upper) = (usize::from(lower), usize::from(upper));
        if page.u64(0) != number || flags != expected {
            self.problem(format!("{name}: page {number} is another page, or of another kind"));
            return Ok(());
        }
        let is_sound =
            lower >= PAGE_HEADER_BYTES && lower.is_multiple_of(2) && lower <= upper && upper <= content.len();
        if !is_sound {
            self.problem(format!("{name}: the bounds of page {number} are {lower} and {upper}"));
            return Ok(());
        }
        for at in (PAGE_HEADER_BYTES..lower).step_by(2) {
            let offset = usize::from(page.u16(at));
            let Some(node) = (offset >= upper).then(|| node_at(&content, offset)).flatten() else {
                self.problem(format!("{name}: a node of page {number} is outside of it"));
                continue;
            };
            if levels == 1 {
                self.leaf(number, &node, walk)?;
            } else {
                let below = u64::from(node.low) | u64::from(node.flags) << 32;
                self.page(Place { page: below, levels: levels - 1 }, walk)?;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, page: u64, node: &Node<'_>, walk: &mut Walk<'_>) -> io::Result<()> {
        let name = walk.name;
        walk.entries += 1;
        if !walk.integer_keys {
            if walk.last_key.as_deref().is_some_and(|last| last >= node.key) {
                self.problem(format!("{name}: the keys of page {page} are not in order"));
            }
            walk.last_key = Some(node.key.to_vec());
        }
        let length = node.low as usize;
        if node.flags & BIG_DATA == 0 {
            match node.rest.get(..length) {
                Some(value) => (walk.visit)(node.key, node.flags, value),
                None => self.problem(format!("{name}: a value of page {page} is outside of it")),
            }
            return Ok(());
        }
        let Some(first) = node.rest.first_chunk().copied().map(u64::from_ne_bytes) else {
            self.problem(format!("{name}: a value of page {page} is outside of it"));
            return Ok(());
        };
        if first > self.last_page {
            self.problem(format!("{name}: a value of page {page} is on page {first}, which does not exist"));
            return Ok(());
        }
        let mut header = [0; PAGE_HEADER_BYTES];
        self.read(first, &mut header)?;
        let (found, flags, pages) =
            (Bytes(&header).u64(0), Bytes(&header).u16(10) & KINDS, u64::from(Bytes(&header).u32(12)));
        let is_sound = pages <= self.last_page + 1 - first
            && (PAGE_HEADER_BYTES + length) as u64 <= pages * self.page_bytes as u64;
        if found != first || flags != OVERFLOW || !is_sound {
            self.problem(format!("{name}: page {first}, with a value of {length} bytes, is another page"));
            return Ok(());
        }
        for used in first..first + pages {
            if !self.mark(used) {
                self.problem(format!("{name}: page {used} is used twice"));
                return Ok(());
            }
        }
        let mut content = vec![0; PAGE_HEADER_BYTES + length];
        self.read(first, &mut content)?;
        (walk.visit)(node.key, node.flags, &content[PAGE_HEADER_BYTES..]);
        Ok(())
    }
}

/// The node at `offset`, if its key is within the page.
fn node_at(page: &[u8], offset: usize) -> Option<Node<'_>> {
    let bytes = page.get(offset..)?;
    let (header, rest) = bytes.split_at_checked(NODE_HEADER_BYTES)?;
    let header = Bytes(header);
    let (first, second) = (u32::from(header.u16(0)), u32::from(header.u16(2)));
    let low = if cfg!(target_endian = "little") { first | second << 16 } else { second | first << 16 };
    let (key, rest) = rest.split_at_checked(usize::from(header.u16(6)))?;
    Some(Node { low, flags: header.u16(4), key, rest })
}
