//! Volumes that contradict themselves, and storage that fails.

use proxydev::layer::{Rule, Rules};

use super::*;
use crate::disk::bitmap;
use crate::disk::group::Group;
use crate::engine::store::layer::FaultSource;

fn descriptor(open: &Open, group: u32) -> Group {
    open.volume.groups()[group as usize].unwrap()
}

/// An image with a group whose bitmaps are on disk, where 100 blocks from bit 2000 on are in use.
fn used(args: &[&str]) -> (Arc<MemSource>, u32, Group) {
    let source = image(60 << 10, args);
    let open = Open::new(&source);
    let group = 3;
    let goal = Block(open.volume.superblock().group_start(group) + 2000);
    let claim = open.space.claim(goal, 100, false).unwrap();
    assert_eq!(claim.start(), goal);
    open.with(|handle| {
        claim.commit(handle).unwrap();
        let mut state = open.space.groups[group as usize].state.lock();
        state.need_inodes(&open.space, group).unwrap().bits.touch();
        state.put_changes(&open.space, group, handle).unwrap();
    });
    let places = descriptor(&open, group);
    open.stop();
    (source, group, places)
}

/// The same with a bit of a bitmap changed.
fn damaged(args: &[&str], inodes: bool, bit: u32, set: bool) -> (Arc<MemSource>, u32) {
    let (source, group, places) = used(args);
    let place = if inodes { places.inode_bitmap } else { places.block_bitmap };
    let mut bytes = [0; 1024];
    source.read_at(place.0 * 1024, &mut bytes).unwrap();
    let bits = bit..bit + 1;
    if set {
        bitmap::set(&mut bytes, bits)
    } else {
        bitmap::clear(&mut bytes, bits)
    }
    source.write_at(place.0 * 1024, &bytes).unwrap();
    (source, group)
}

const CHECKED: &[&str] = &["-t", "ext4", "-b", "1024", "-J", "size=1"];
const UNCHECKED: &[&str] = &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-J", "size=1"];

#[test]
fn a_corrupt_bitmap_of_blocks_is_reported_and_never_used() {
    for args in [CHECKED, UNCHECKED] {
        for (bit, set) in [(5000, true), (2010, false)] {
            let (source, group) = damaged(args, false, bit, set);
            let open = Open::new(&source);
            let before = open.space.statfs().free;
            let start = open.volume.superblock().group_start(group);
            let claim = open.space.claim(Block(start + 4000), 10, false).unwrap();
            assert_ne!(open.space.place(claim.start()).0, group);
            drop(claim);
            let problems = open.space.take_problems();
            assert_eq!(problems.len(), 1);
            let text = problems[0].to_string();
            assert!(text.contains(&format!("block bitmap of group {group}")), "{text}");
            let unusable = u64::from(descriptor(&open, group).free_clusters);
            assert_eq!(open.space.statfs().free, before - unusable);
            // Its blocks stay in use, whoever gives them back.
            for _ in 0..2 {
                open.with(|handle| open.space.free(handle, Block(start + 2000), 5).unwrap());
            }
            while let Ok(claim) = open.space.claim(Block(start), 5000, false) {
                assert_ne!(open.space.place(claim.start()).0, group);
                open.with(|handle| claim.commit(handle).unwrap());
            }
            assert_eq!(open.space.statfs().free, 0);
            assert_eq!(open.space.take_problems().len(), 0, "it is reported once");
        }
    }
}

#[test]
fn a_corrupt_bitmap_of_inodes_is_reported_and_never_used() {
    for args in [CHECKED, UNCHECKED] {
        let (source, group) = damaged(args, true, 100, true);
        let open = Open::new(&source);
        let per_group = open.volume.superblock().inodes_per_group;
        let parent = Ino(group * per_group + 1);
        let left = open.space.statfs().free_inodes - u64::from(per_group);
        for _ in 0..left {
            let made =
                open.with(|handle| open.space.new_inode(handle, parent, false, false).unwrap());
            assert_ne!(open.space.group_of(made).0, group);
        }
        let none = open.with(|handle| open.space.new_inode(handle, parent, false, false));
        assert!(matches!(none, Err(Error::NoSpace)));
        assert_eq!(open.space.take_problems().len(), 1);
        open.with(|handle| open.space.free_inode(handle, parent, false).unwrap());
    }
}

#[test]
fn a_bitmap_that_cannot_be_read_is_tried_again() {
    let (source, group, places) = used(CHECKED);
    let rules = Rules::new();
    let open = Open::on(Arc::new(FaultSource::new(source.clone(), &rules)));
    let start = open.volume.superblock().group_start(group);
    let unreadable = |place: Block| Rule {
        writes: false,
        flushes: false,
        range: place.0 * 1024..place.0 * 1024 + 1024,
        ..Rule::all()
    };
    rules.set([places.block_bitmap, places.inode_bitmap].map(unreadable));
    let before = open.space.statfs();
    let claim = open.space.claim(Block(start + 3000), 10, false).unwrap();
    assert_ne!(open.space.place(claim.start()).0, group, "others have room");
    drop(claim);
    let parent = Ino(group * open.volume.superblock().inodes_per_group + 1);
    let made = open.with(|handle| {
        let refused = open.space.free(handle, Block(start + 2000), 100);
        assert!(matches!(refused, Err(Error::Io { .. })));
        let refused = open.space.free_inode(handle, Ino(parent.0 + 100), false);
        assert!(matches!(refused, Err(Error::Io { .. })));
        open.space.new_inode(handle, parent, false, false).unwrap()
    });
    assert_ne!(open.space.group_of(made).0, group, "others have room");
    rules.set([Rule { writes: false, flushes: false, ..Rule::all() }]);
    let elsewhere = open.volume.superblock().group_start(group + 2);
    for group in &open.space.groups {
        group.state.lock().unload();
    }
    let mut claims = Vec::new();
    let refused = loop {
        // Groups that were never used need no bitmap from disk.
        match open.space.claim(Block(elsewhere), 5000, false) {
            Ok(claim) => claims.push(claim),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::Io { .. }), "{refused}");
    drop(claims);
    rules.set([]);
    assert_eq!(open.space.statfs().free, before.free);
    open.with(|handle| {
        open.space.free(handle, Block(start + 2000), 100).unwrap();
        open.space.free_inode(handle, made, false).unwrap();
    });
    let claim = open.space.claim(Block(start + 3000), 10, false).unwrap();
    assert_eq!(claim.start().0, start + 3000);
    drop(claim);
    open.stop();
    assert_clean(&source);
}

#[test]
fn the_volumes_own_blocks_are_never_given_away() {
    // Their bits are clear and the count is right: only the places tell.
    let source = image(60 << 10, UNCHECKED);
    let open = Open::new(&source);
    let table = descriptor(&open, 0).inode_table;
    let (number, bit) = open.space.place(table);
    let refused = open.with(|handle| open.space.free(handle, table, 1));
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "a table is no file's");
    let mut state = open.space.groups[number as usize].state.lock();
    let place = descriptor(&open, number).block_bitmap;
    let count = state.counts.free_blocks;
    state.need_blocks(&open.space, number).unwrap();
    drop(state);
    let mut bytes = [0; 1024];
    source.read_at(place.0 * 1024, &mut bytes).unwrap();
    bitmap::clear(&mut bytes, bit..bit + 1);
    let other = bitmap::next_clear(&bytes, bit + 1..8192).unwrap();
    bitmap::set(&mut bytes, other..other + 1);
    assert_eq!(bitmap::count_clear(&bytes, 8192), count);
    source.write_at(place.0 * 1024, &bytes).unwrap();
    drop(open);
    let storage: Arc<dyn BlockSource> = source.clone();
    crate::journal::recover(&storage).unwrap();
    let open = Open::new(&source);
    let mut state = open.space.groups[number as usize].state.lock();
    let refused = state.need_blocks(&open.space, number).err().unwrap();
    assert!(matches!(refused, Error::Corrupt { .. }), "{refused}");
    drop(state);
    assert!(open.space.take_problems()[0].to_string().contains("own structures"));
}

#[test]
fn frees_that_cannot_be_are_refused_before_anything_changes() {
    let source = image(60 << 10, CHECKED);
    let open = Open::new(&source);
    let count = open.volume.superblock().blocks_count;
    // Across two groups, of which the second has a free block.
    let end = open.volume.superblock().group_start(3);
    let claim = open.space.claim(Block(end - 10), 10, false).unwrap();
    assert_eq!((claim.start().0, claim.len()), (end - 10, 10));
    open.with(|handle| claim.commit(handle).unwrap());
    let free = open.space.statfs().free;
    open.with(|handle| {
        for (start, len) in [(end - 10, 4000), (count - 1, 2), (0, 1), (u64::MAX, 2), (end - 11, 3)]
        {
            let refused = open.space.free(handle, Block(start), len);
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{start} {len}");
        }
        for ino in [0, 1, 2, 10, 500, u32::MAX] {
            let refused = open.space.free_inode(handle, Ino(ino), false);
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "inode {ino}");
        }
        open.space.free(handle, Block(end - 10), 10).unwrap();
    });
    open.commit();
    assert_eq!(open.space.statfs().free, free + 10);
    open.stop();
    assert_clean(&source);
}

#[test]
fn volumes_that_cannot_be_written_are_refused() {
    for (args, why) in [
        (&["-t", "ext4", "-O", "bigalloc"][..], "bigalloc"),
        (&["-t", "ext4", "-b", "65536"][..], "block size 65536"),
    ] {
        let source: Arc<dyn BlockSource> = image(64 << 10, args);
        let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
        let refused = Space::open(&volume).err().unwrap().to_string();
        assert!(refused.contains(why), "{refused}");
    }
}
