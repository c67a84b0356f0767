//! A disk in memory that loses power: volatile and durable bytes apart, torn and reordered sectors, a sync
//! that fails once, a full disk. Deterministic by its seed.
//!
//! Model: written bytes survive a crash for certain only after their file was synced; until then each
//! 512-byte sector of each write survives or not, on its own. A direct write is durable when it returns; the
//! one in flight at the crash is torn by sector. Creations, renames and removals survive in order up to some
//! point after the last `sync_dir` of their directory. Directories themselves are durable at once.

mod file;

use super::{Open, Vfs, VfsFile};
use file::SimFile;
use parking_lot::{Mutex, MutexGuard};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const EIO: i32 = 5;
const EMFILE: i32 = 24;

/// What survives or is lost as one.
const SECTOR_BYTES: usize = 512;

/// Trouble to come. Counted from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power goes during the n-th operation that changes anything (1 is the next one).
    PowerAfter(u64),
    /// The n-th sync or direct write fails with EIO, later ones succeed; of what it should have made durable some
    /// sectors may be.
    SyncErrorOnce(u64),
    /// No more than this many bytes may be allocated in all.
    Space(u64),
    /// Whether descriptors have run out: nothing can be opened.
    Descriptors(bool),
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Space taken, where that is more than the file's length.
    reserved: usize,
    /// Writes and changes of length since the last sync.
    pending: Vec<Pending>,
}

impl Inode {
    fn taken(&self) -> usize {
        self.live.len().max(self.reserved)
    }
}

#[derive(Debug)]
enum Pending {
    Write { pos: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Debug, Clone)]
enum Change {
    Link { path: PathBuf, inode: u64 },
    Unlink { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
}

#[derive(Debug, Default)]
struct Disk {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    changes: Vec<Change>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    next_inode: u64,
    random: u64,
    /// Raised at each reboot: handles from before it are dead.
    boot: u64,
    off: bool,
    operations: u64,
    syncs: u64,
    power_at: Option<u64>,
    sync_error_at: Option<u64>,
    space: Option<u64>,
    descriptors_gone: bool,
}

/// The simulated file system. Clones share the disk.
#[derive(Debug, Clone)]
pub struct SimFs {
    disk: Arc<Mutex<Disk>>,
    /// The boot after which nothing is done through it any more; `None`: whoever has it outlives them all.
    process: Option<u64>,
}

struct Lock {
    disk: Arc<Mutex<Disk>>,
    path: PathBuf,
    boot: u64,
}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.boot == self.boot {
            disk.locks.remove(&self.path);
        }
    }
}

fn power_is_off() -> io::Error {
    io::Error::other("the simulated machine has lost power")
}

impl SimFs {
    pub fn new(seed: u64) -> Self {
        let disk = Disk {
            random: seed.wrapping_mul(2).wrapping_add(1),
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
            process: None,
        }
    }

    /// The file system as a process sees it: a reboot ends it. Threads that did not notice change nothing
    /// on the disk that the next process finds.
    #[must_use]
    pub fn process(&self) -> Self {
        Self {
            process: Some(self.disk.lock().boot),
            disk: self.disk.clone(),
        }
    }

    fn of_process(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.disk.lock();
        match self.process.is_none_or(|boot| boot == disk.boot) {
            true => Ok(disk),
            false => Err(power_is_off()),
        }
    }

    pub fn inject(&self, fault: Fault) {
        let mut disk = self.disk.lock();
        match fault {
            Fault::PowerAfter(n) => disk.power_at = Some(disk.operations + n),
            Fault::SyncErrorOnce(n) => disk.sync_error_at = Some(disk.syncs + n),
            Fault::Space(bytes) => disk.space = Some(bytes),
            Fault::Descriptors(gone) => disk.descriptors_gone = gone,
        }
    }

    /// Operations so far that changed anything: the points at which power can go.
    pub fn operations(&self) -> u64 {
        self.disk.lock().operations
    }

    /// Whether the power of [`Fault::PowerAfter`] is still there.
    pub fn has_power(&self) -> bool {
        !self.disk.lock().off
    }

    /// Whether the error of [`Fault::SyncErrorOnce`] has struck.
    pub fn has_failed_a_sync(&self) -> bool {
        let disk = self.disk.lock();
        disk.sync_error_at.is_some_and(|at| disk.syncs >= at)
    }

    /// Takes the power away now, if it is not away yet, and starts again on what survived.
    pub fn reboot(&self) {
        self.disk.lock().reboot();
    }

    /// Flips one bit of what is on the disk.
    pub fn flip_bit(&self, path: &Path, byte: u64, bit: u8) {
        let mut disk = self.disk.lock();
        let Some(inode) = disk.names.get(path).copied() else {
            return;
        };
        let Some(inode) = disk.inodes.get_mut(&inode) else {
            return;
        };
        for image in [&mut inode.live, &mut inode.durable] {
            if let Some(b) = image.get_mut(byte as usize) {
                *b ^= 1 << (bit % 8);
            }
        }
    }

    /// Every file there is, in order.
    pub fn files(&self) -> Vec<PathBuf> {
        self.disk.lock().names.keys().cloned().collect()
    }

    /// A file's bytes as they are now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        disk.inodes
            .get(disk.names.get(path)?)
            .map(|i| i.live.clone())
    }
}

impl Disk {
    /// xorshift64*: enough to pick sectors, and the same everywhere.
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn coin(&mut self) -> bool {
        self.random() & (1 << 40) != 0
    }

    /// Counts an operation that changes something. `Ok(true)`: the power goes during it.
    fn operation(&mut self) -> io::Result<bool> {
        if self.off {
            return Err(power_is_off());
        }
        self.operations += 1;
        let cut = self.power_at.is_some_and(|at| self.operations >= at);
        self.off |= cut;
        Ok(cut)
    }

    /// Whether anything can be opened now.
    fn descriptor(&self) -> io::Result<()> {
        match (self.off, self.descriptors_gone) {
            (true, _) => Err(power_is_off()),
            (false, true) => Err(io::Error::from_raw_os_error(EMFILE)),
            (false, false) => Ok(()),
        }
    }

    fn alive(&self, boot: u64) -> io::Result<()> {
        if self.off || boot != self.boot {
            Err(power_is_off())
        } else {
            Ok(())
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .filter_map(|i| self.inodes.get(i))
            .map(|i| i.taken() as u64)
            .sum()
    }

    fn room_for(&self, inode: u64, end: usize) -> io::Result<()> {
        let grows = end.saturating_sub(self.inodes.get(&inode).map_or(0, Inode::taken)) as u64;
        match self.space {
            Some(space) if grows > 0 && self.used() + grows > space => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, inode: u64, pos: usize, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.room_for(inode, pos + bytes.len())?;
        let cut = self.operation()?;
        self.syncs += u64::from(durable);
        let fails = durable && !cut && self.sync_error_at == Some(self.syncs);
        let keep: Vec<bool> = sectors(pos, bytes.len())
            .map(|_| (cut || fails) && self.coin())
            .collect();
        let Some(file) = self.inodes.get_mut(&inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        put(&mut file.live, pos, bytes);
        match (cut || fails, durable) {
            (false, true) => put(&mut file.durable, pos, bytes),
            (false, false) => file.pending.push(Pending::Write {
                pos,
                bytes: bytes.to_vec(),
            }),
            (true, _) => {
                let torn = sectors(pos, bytes.len())
                    .zip(keep)
                    .filter(|(_, keep)| *keep);
                torn.for_each(|(s, _)| put(&mut file.durable, pos + s.start, &bytes[s]));
            }
        }
        match (cut, fails) {
            (true, _) => Err(power_is_off()),
            (_, true) => Err(io::Error::from_raw_os_error(EIO)),
            _ => Ok(()),
        }
    }

    fn sync(&mut self, inode: u64) -> io::Result<()> {
        let cut = self.operation()?;
        self.syncs += 1;
        let fails = self.sync_error_at == Some(self.syncs);
        let Some(file) = self.inodes.get_mut(&inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if cut {
            return Err(power_is_off());
        }
        if fails {
            // The kernel marks the pages clean: what failed to be written is never tried again.
            file.pending.clear();
            return Err(io::Error::from_raw_os_error(EIO));
        }
        for change in std::mem::take(&mut file.pending) {
            match change {
                Pending::Write { pos, bytes } => put(&mut file.durable, pos, &bytes),
                Pending::Len(len) => file.durable.resize(len, 0),
            }
        }
        Ok(())
    }

    fn set_len(&mut self, inode: u64, len: usize, shrink: bool) -> io::Result<()> {
        self.room_for(inode, len)?;
        let cut = self.operation()?;
        let Some(file) = self.inodes.get_mut(&inode) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if shrink {
            file.reserved = 0;
        }
        if len > file.live.len() || shrink {
            file.live.resize(len, 0);
            file.pending.push(Pending::Len(len));
        }
        if cut { Err(power_is_off()) } else { Ok(()) }
    }

    fn reserve(&mut self, inode: u64, len: usize) -> io::Result<()> {
        self.room_for(inode, len)?;
        let cut = self.operation()?;
        if let Some(file) = self.inodes.get_mut(&inode) {
            file.reserved = file.reserved.max(len);
        }
        if cut { Err(power_is_off()) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        let cut = self.operation()?;
        apply(&mut self.names, &change);
        self.changes.push(change);
        if cut { Err(power_is_off()) } else { Ok(()) }
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        if !self.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.operation()? {
            return Err(power_is_off());
        }
        let inside = |p: &Path| p.parent() == Some(dir);
        // What a folder was renamed from or to is settled before what is inside a new one of that name.
        let above = |p: &Path| dir.starts_with(p);
        let (synced, rest): (Vec<Change>, Vec<Change>) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|c| match c {
                Change::Link { path, .. } | Change::Unlink { path } => inside(path),
                Change::Rename { from, to } => {
                    inside(from) || inside(to) || above(from) || above(to)
                }
            });
        synced
            .iter()
            .for_each(|c| apply(&mut self.durable_names, c));
        self.changes = rest;
        Ok(())
    }

    fn reboot(&mut self) {
        let changes = std::mem::take(&mut self.changes);
        let survive = if changes.is_empty() {
            0
        } else {
            self.random() as usize % (changes.len() + 1)
        };
        changes[..survive]
            .iter()
            .for_each(|c| apply(&mut self.durable_names, c));
        self.names = self.durable_names.clone();
        let ids: Vec<u64> = self.inodes.keys().copied().collect();
        for id in ids {
            let Some(mut file) = self.inodes.remove(&id) else {
                continue;
            };
            for change in std::mem::take(&mut file.pending) {
                self.survive(&mut file.durable, change);
            }
            file.live.clone_from(&file.durable);
            self.inodes.insert(id, file);
        }
        self.locks.clear();
        (self.power_at, self.sync_error_at, self.off) = (None, None, false);
        self.descriptors_gone = false;
        self.boot += 1;
    }

    fn survive(&mut self, durable: &mut Vec<u8>, change: Pending) {
        match change {
            Pending::Len(len) => {
                if self.coin() {
                    durable.resize(len, 0);
                }
            }
            Pending::Write { pos, bytes } => {
                for s in sectors(pos, bytes.len()) {
                    if self.coin() {
                        put(durable, pos + s.start, &bytes[s]);
                    }
                }
            }
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, u64>, change: &Change) {
    match change {
        Change::Link { path, inode } => {
            names.insert(path.clone(), *inode);
        }
        Change::Unlink { path } => {
            names.remove(path);
        }
        Change::Rename { from, to } => {
            // A directory takes everything below it along.
            let moved: Vec<(PathBuf, u64)> = names
                .iter()
                .filter(|(p, _)| p.starts_with(from))
                .map(|(p, i)| (p.clone(), *i))
                .collect();
            for (path, inode) in moved {
                names.remove(&path);
                let rest = path.strip_prefix(from).unwrap_or(&path);
                names.insert(
                    if rest.as_os_str().is_empty() {
                        to.clone()
                    } else {
                        to.join(rest)
                    },
                    inode,
                );
            }
        }
    }
}

fn put(image: &mut Vec<u8>, pos: usize, bytes: &[u8]) {
    if image.len() < pos + bytes.len() {
        image.resize(pos + bytes.len(), 0);
    }
    image[pos..pos + bytes.len()].copy_from_slice(bytes);
}

/// The pieces of a write that lie in different sectors of the disk.
fn sectors(pos: usize, len: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == len {
            return None;
        }
        let end = ((pos + start) / SECTOR_BYTES + 1) * SECTOR_BYTES - pos;
        let piece = start..end.min(len);
        start = piece.end;
        Some(piece)
    })
}

impl Vfs for SimFs {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn VfsFile>> {
        let mut disk = self.of_process()?;
        disk.descriptor()?;
        let inode = match disk.names.get(path).copied() {
            Some(_) if how.create_new => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(inode) => inode,
            None if how.create || how.create_new => {
                if !path.parent().is_some_and(|p| disk.dirs.contains(p)) {
                    return Err(io::ErrorKind::NotFound.into());
                }
                disk.next_inode += 1;
                let inode = disk.next_inode;
                disk.inodes.insert(inode, Inode::default());
                disk.change(Change::Link {
                    path: path.to_owned(),
                    inode,
                })?;
                inode
            }
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        if how.truncate {
            disk.set_len(inode, 0, true)?;
        }
        Ok(Arc::new(SimFile {
            disk: self.disk.clone(),
            inode,
            boot: disk.boot,
            direct: how.direct,
        }))
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.of_process()?;
        if disk.off {
            return Err(power_is_off());
        }
        disk.dirs.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.of_process()?;
        disk.descriptor()?;
        if !disk.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.of_process()?;
        let is_dir = disk.dirs.contains(from);
        if !is_dir && !disk.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if is_dir {
            let moved: Vec<PathBuf> = disk
                .dirs
                .iter()
                .filter(|d| d.starts_with(from))
                .cloned()
                .collect();
            for dir in moved {
                disk.dirs.remove(&dir);
                let rest = dir
                    .strip_prefix(from)
                    .map(Path::to_owned)
                    .unwrap_or_default();
                disk.dirs.insert(if rest.as_os_str().is_empty() {
                    to.to_owned()
                } else {
                    to.join(rest)
                });
            }
        }
        disk.change(Change::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.of_process()?;
        if !disk.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.change(Change::Unlink {
            path: path.to_owned(),
        })
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.of_process()?;
        let inside: Vec<PathBuf> = disk
            .names
            .keys()
            .filter(|p| p.starts_with(path))
            .cloned()
            .collect();
        for path in inside {
            disk.change(Change::Unlink { path })?;
        }
        disk.dirs.retain(|d| !d.starts_with(path));
        Ok(())
    }

    fn read_dir(&self, path: &Path) -> io::Result<Vec<String>> {
        let disk = self.of_process()?;
        if disk.off {
            return Err(power_is_off());
        }
        if !disk.dirs.contains(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let children = disk
            .names
            .keys()
            .chain(&disk.dirs)
            .filter(|p| p.parent() == Some(path));
        let names: BTreeSet<String> = children
            .filter_map(|p| Some(p.file_name()?.to_string_lossy().into_owned()))
            .collect();
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> bool {
        self.of_process()
            .is_ok_and(|disk| disk.names.contains_key(path) || disk.dirs.contains(path))
    }

    fn file_len(&self, path: &Path) -> io::Result<u64> {
        let disk = self.of_process()?;
        let inode = disk.names.get(path).and_then(|i| disk.inodes.get(i));
        inode
            .map(|i| i.live.len() as u64)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn free_space(&self, _path: &Path) -> io::Result<(u64, u64)> {
        let disk = self.of_process()?;
        let total = disk.space.unwrap_or(1 << 40);
        Ok((total.saturating_sub(disk.used()), total))
    }

    fn try_lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        let mut disk = self.of_process()?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(Lock {
            disk: self.disk.clone(),
            path: path.to_owned(),
            boot: disk.boot,
        }))
    }

    fn is_locked(&self, path: &Path) -> io::Result<bool> {
        Ok(self.of_process()?.locks.contains(path))
    }
}
