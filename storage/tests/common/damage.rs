//! Directories as workloads leave them, and what may happen to their files.

use super::{ROOT, Rng, World, open, overwrite};
use logd_storage::vfs::{SimFs, Vfs};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const STEPS: usize = 120;
pub const SEEDS: usize = 6;

pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What one workload left on its disk, and what it may hold.
pub struct Made {
    pub files: Files,
    pub world: World,
}

pub fn made(n: usize) -> &'static Made {
    static MADE: [OnceLock<Made>; SEEDS] = [const { OnceLock::new() }; SEEDS];
    MADE[n].get_or_init(|| {
        let seed = 100 + n as u64;
        let fs = SimFs::new(seed);
        let disk = open(&fs).unwrap();
        let mut world = World::default();
        let mut rng = Rng(seed);
        for _ in 0..STEPS {
            assert!(world.step(&disk, &mut rng));
        }
        // Some end in order, some in a crash.
        if n.is_multiple_of(2) {
            while disk.pump() {}
            drop(disk);
        } else {
            disk.close().unwrap();
        }
        fs.reboot();
        let files = files_of(&fs);
        Made { files, world }
    })
}

pub fn files_of(fs: &SimFs) -> Files {
    let files = fs.files().into_iter();
    files
        .filter_map(|f| fs.contents(&f).map(|c| (f, c)))
        .collect()
}

pub fn disk_of(files: &Files) -> SimFs {
    let fs = SimFs::new(1);
    for folder in ["wal", "logs", "trash"] {
        fs.create_dir_all(&Path::new(ROOT).join(folder)).unwrap();
    }
    for (path, bytes) in files {
        fs.create_dir_all(path.parent().unwrap()).unwrap();
        overwrite(&fs, path, bytes);
    }
    fs
}

#[derive(Debug, Clone)]
pub enum Damage {
    FlipBits(Vec<(usize, u8)>),
    Truncate(usize),
    ExtendByNoise(u64, usize),
    ExtendByZeros(usize),
    Zero(usize, usize),
    Noise(u64, usize, usize),
    Swap(usize),
    Delete,
    Replace(u64, usize),
}

pub fn damage() -> impl Strategy<Value = Damage> {
    let place = || any::<prop::sample::Index>().prop_map(|i| i.index(1 << 20));
    prop_oneof![
        4 => prop::collection::vec((place(), 0u8..8), 1..4).prop_map(Damage::FlipBits),
        2 => place().prop_map(Damage::Truncate),
        1 => (any::<u64>(), 1usize..9_000).prop_map(|(s, n)| Damage::ExtendByNoise(s, n)),
        1 => (1usize..9_000).prop_map(Damage::ExtendByZeros),
        2 => (place(), 1usize..5_000).prop_map(|(at, n)| Damage::Zero(at, n)),
        2 => (any::<u64>(), place(), 1usize..5_000).prop_map(|(s, at, n)| Damage::Noise(s, at, n)),
        2 => place().prop_map(Damage::Swap),
        2 => Just(Damage::Delete),
        1 => (any::<u64>(), 0usize..9_000).prop_map(|(s, n)| Damage::Replace(s, n)),
    ]
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

pub fn apply(files: &mut Files, which: usize, damage: &Damage) {
    let names: Vec<PathBuf> = files.keys().cloned().collect();
    let path = names[which % names.len()].clone();
    let Some(bytes) = files.get_mut(&path).filter(|b| !b.is_empty()) else {
        return;
    };
    let len = bytes.len();
    match damage {
        Damage::FlipBits(bits) => bits
            .iter()
            .for_each(|(at, bit)| bytes[at % len] ^= 1 << bit),
        Damage::Truncate(to) => bytes.truncate(to % len),
        Damage::ExtendByNoise(seed, n) => bytes.extend(noise(*seed, *n)),
        Damage::ExtendByZeros(n) => bytes.resize(len + n, 0),
        Damage::Zero(at, n) => {
            let places = bytes.iter_mut().skip(at % len).take(*n);
            places.for_each(|b| *b = 0);
        }
        Damage::Noise(seed, at, n) => {
            let places = bytes.iter_mut().skip(at % len).take(*n);
            places
                .zip(noise(*seed, *n))
                .for_each(|(b, noise)| *b = noise);
        }
        Damage::Swap(other) => {
            let other = names[other % names.len()].clone();
            let ours = files.remove(&path).unwrap_or_default();
            let theirs = files.insert(other, ours).unwrap_or_default();
            files.entry(path).or_insert(theirs);
        }
        Damage::Delete => {
            files.remove(&path);
        }
        Damage::Replace(seed, n) => *bytes = noise(*seed, *n),
    }
}
