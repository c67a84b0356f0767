//! The simulated disk loses what it should, and only that.

use super::sim::{Fault, SimFs};
use super::{Open, Vfs, VfsFile};
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

const DIR: &str = "/d";

fn fresh(seed: u64) -> SimFs {
    let fs = SimFs::new(seed);
    fs.create_dir_all(Path::new(DIR)).unwrap();
    fs
}

fn create(fs: &SimFs, name: &str, direct: bool) -> Arc<dyn VfsFile> {
    fs.open(
        &Path::new(DIR).join(name),
        Open {
            read: true,
            write: true,
            create: true,
            direct,
            ..Open::default()
        },
    )
    .unwrap()
}

fn write(file: &dyn VfsFile, pos: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_all_at(&[IoSlice::new(bytes)], pos)
}

#[test]
fn what_was_synced_survives_and_a_name_needs_its_directory_synced() {
    for seed in 0..20 {
        let fs = fresh(seed);
        let file = create(&fs, "a", false);
        fs.sync_dir(Path::new(DIR)).unwrap();
        write(&*file, 0, &[1; 2048]).unwrap();
        file.sync_data().unwrap();
        fs.reboot();
        assert_eq!(fs.contents(&Path::new(DIR).join("a")), Some(vec![1; 2048]));
    }
    let lost = (0..20).filter(|seed| {
        let fs = fresh(*seed);
        create(&fs, "a", false).sync_data().unwrap();
        fs.reboot();
        !fs.exists(&Path::new(DIR).join("a"))
    });
    assert!(
        lost.count() > 0,
        "a name without a synced directory may be lost"
    );
}

#[test]
fn unsynced_writes_are_torn_by_sector_in_some_crash() {
    let torn = (0..20).any(|seed| {
        let fs = fresh(seed);
        let file = create(&fs, "a", false);
        fs.sync_dir(Path::new(DIR)).unwrap();
        file.allocate(4096).unwrap();
        file.sync_data().unwrap();
        write(&*file, 0, &[1; 4096]).unwrap();
        fs.reboot();
        let image = fs.contents(&Path::new(DIR).join("a")).unwrap();
        image.contains(&0) && image.contains(&1)
    });
    assert!(torn);
}

#[test]
fn a_direct_write_is_durable_when_it_returns() {
    let fs = fresh(3);
    let file = create(&fs, "a", true);
    fs.sync_dir(Path::new(DIR)).unwrap();
    file.write_aligned_at(&[9; 4096], 0).unwrap();
    fs.reboot();
    assert_eq!(fs.contents(&Path::new(DIR).join("a")), Some(vec![9; 4096]));
}

#[test]
fn after_the_power_went_nothing_works_until_the_reboot() {
    let fs = fresh(1);
    let file = create(&fs, "a", true);
    fs.sync_dir(Path::new(DIR)).unwrap();
    fs.inject(Fault::PowerAfter(2));
    write(&*file, 0, &[1; 512]).unwrap();
    assert!(write(&*file, 512, &[2; 512]).is_err());
    assert!(file.sync_data().is_err());
    fs.reboot();
    assert!(
        file.len().is_err(),
        "a handle from before the crash is dead"
    );
    assert_eq!(
        fs.contents(&Path::new(DIR).join("a")).unwrap()[..512],
        [1; 512]
    );
}

#[test]
fn a_failed_sync_loses_what_it_should_have_written_and_the_next_one_lies() {
    let fs = fresh(1);
    let file = create(&fs, "a", false);
    fs.sync_dir(Path::new(DIR)).unwrap();
    write(&*file, 0, &[1; 512]).unwrap();
    fs.inject(Fault::SyncErrorOnce(1));
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    fs.reboot();
    assert_eq!(fs.contents(&Path::new(DIR).join("a")), Some(vec![]));
}

#[test]
fn a_full_disk_refuses_to_grow_and_lets_rewrite() {
    let fs = fresh(1);
    let file = create(&fs, "a", false);
    fs.inject(Fault::Space(1024));
    file.allocate(1024).unwrap();
    assert_eq!(
        write(&*file, 1024, &[1]).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    write(&*file, 0, &[1; 1024]).unwrap();
}

#[test]
fn reserved_space_is_taken_without_making_the_file_longer() {
    let fs = fresh(1);
    let (a, b) = (create(&fs, "a", false), create(&fs, "b", false));
    fs.inject(Fault::Space(1024));
    a.reserve(1024).unwrap();
    assert_eq!(a.len().unwrap(), 0);
    assert_eq!(
        write(&*b, 0, &[1]).unwrap_err().kind(),
        io::ErrorKind::StorageFull
    );
    write(&*a, 0, &[1; 512]).unwrap();
    a.set_len(512).unwrap();
    write(&*b, 0, &[1; 512]).unwrap();
}

#[test]
fn the_same_seed_crashes_the_same_way() {
    let run = |seed| {
        let fs = fresh(seed);
        let file = create(&fs, "a", false);
        (0..50u64).for_each(|n| write(&*file, n * 700, &[n as u8; 900]).unwrap());
        fs.reboot();
        fs.contents(&Path::new(DIR).join("a"))
    };
    assert_eq!(run(5), run(5));
}
