//! Who gets which blocks and inodes, and when there are none.

use super::*;
use crate::journal::Handle;

const ALICE: Caller = Caller { uid: 1000, gid: 1000, privileged: false };

fn is_full<T: std::fmt::Debug>(result: Result<T>) -> bool {
    matches!(result, Err(Error::NoSpace))
}

/// The blocks of a claim, once it is committed.
fn commit(open: &Open, claim: Claim) -> std::ops::Range<u64> {
    let blocks = claim.start().0..claim.start().0 + u64::from(claim.len());
    open.with(|handle| claim.commit(handle).unwrap());
    blocks
}

#[test]
fn a_full_volume_is_full_to_the_last_block() {
    for (name, size, args) in KINDS {
        println!("{name}");
        let source = image(*size, args);
        let open = Open::new(&source);
        let (space, counts) = (&open.space, open.space.statfs());
        let held = open.volume.held_back();
        let users = counts.free - open.volume.superblock().reserved_blocks - held;
        assert!(is_full(space.reserve(users + 1, &ALICE)));
        space.reserve(users, &ALICE).unwrap();
        assert!(is_full(space.reserve(1, &ALICE)));
        assert_eq!(space.statfs().free, counts.free - users);
        let rest = open.volume.superblock().reserved_blocks;
        assert!(is_full(space.reserve(rest + 1, &Caller::ROOT)));
        space.reserve(rest, &Caller::ROOT).unwrap();
        assert!(is_full(space.reserve(1, &Caller::ROOT)));
        let (mut seen, mut next, mut left) = (BTreeSet::new(), Block(0), users + rest);
        let mut take = |claim: Claim| {
            let blocks = commit(&open, claim);
            let (end, len) = (Block(blocks.end), blocks.end - blocks.start);
            blocks.for_each(|block| assert!(seen.insert(block), "block {block} twice"));
            (end, len)
        };
        while left > 0 {
            // In files that grow, so that windows have to give their blocks back.
            let ino = Ino(12 + (left % 50) as u32);
            let want = left.min(777) as u32;
            let claim = space.claim_for(ino, 0, next, want, true).unwrap();
            let (goal, len) = take(claim);
            (next, left) = (goal, left - len);
        }
        let mut maps = 0;
        while let Ok(claim) = space.claim(next, 3, false) {
            maps += take(claim).1;
        }
        assert_eq!(maps, held, "what is held back for maps");
        assert_eq!(space.statfs().free, 0);
        assert!(is_full(space.claim(Block(0), 1, false)));
        open.stop();
        assert_eq!(e2fsck(&source).blocks, seen);
    }
}

#[test]
fn the_user_of_reserved_blocks_is_the_superblocks() {
    let args = ["-t", "ext4", "-E", "root_owner=0:0", "-m", "10"];
    let source = image(64 << 10, &args);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes).unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let tuned = Command::new("tune2fs").args(["-u", "1000", "-g", "50"]).arg(file.path()).output();
    assert!(tuned.unwrap().status.success());
    let source = Arc::new(MemSource::new(std::fs::read(file.path()).unwrap()));
    let open = Open::new(&source);
    let available = open.space.statfs().available;
    let may = |uid, gid| {
        let who = Caller { uid, gid, privileged: false };
        let done = open.space.reserve(available + 1, &who).is_ok();
        if done {
            open.space.release(available + 1);
        }
        done
    };
    assert!(may(1000, 7) && may(7, 50) && !may(7, 7) && !may(0, 0));
    assert!(open.space.reserve(available + 1, &Caller::ROOT).is_ok());
}

#[test]
fn freed_blocks_are_claimed_after_the_commit() {
    let source = image(16 << 10, &["-t", "ext4", "-b", "1024", "-J", "size=1", "-m", "0"]);
    let open = Open::new(&source);
    let available = open.space.statfs().available;
    open.space.reserve(available, &ALICE).unwrap();
    let (mut runs, mut left) = (Vec::new(), available);
    while left > 0 {
        let claim = open.space.claim(Block(0), left as u32, true).unwrap();
        left -= u64::from(claim.len());
        runs.push(commit(&open, claim));
    }
    let run = runs.swap_remove(0);
    let len = run.end - run.start;
    open.with(|handle| {
        open.space.free(handle, Block(run.start), len).unwrap();
        assert_eq!(open.space.statfs().available, len);
        // Nobody waits for a commit within a handle.
        assert!(is_full(open.space.reserve(1, &ALICE)));
        assert!(!open.space.reclaim().unwrap());
    });
    let elsewhere = open.space.claim(Block(run.start), 1, false).unwrap();
    assert!(!run.contains(&elsewhere.start().0), "the transaction has not committed");
    drop(elsewhere);
    let before = open.journal.committed();
    open.space.reserve(len, &ALICE).unwrap();
    assert_ne!(open.journal.committed(), before, "a reservation waits for freed blocks");
    let claim = open.space.claim(Block(run.start), len as u32, true).unwrap();
    assert_eq!((claim.start().0, u64::from(claim.len())), (run.start, len));
    assert!(is_full(open.space.reserve(1, &ALICE)));
    assert!(!open.space.reclaim().unwrap(), "nothing was freed");
}

#[test]
fn files_that_grow_in_turns_have_few_extents() {
    let source = image(256 << 10, &["-t", "ext4", "-b", "4096"]);
    let open = Open::new(&source);
    let mut files = vec![Vec::<std::ops::Range<u64>>::new(); 8];
    for round in 0..1000u64 {
        for (number, extents) in files.iter_mut().enumerate() {
            let ino = Ino(100 + number as u32);
            let goal = extents.last().map_or(open.space.goal(ino, true), |last| Block(last.end));
            open.space.reserve(1, &ALICE).unwrap();
            let claim = open.space.claim_for(ino, round, goal, 1, true).unwrap();
            let blocks = commit(&open, claim);
            match extents.last_mut() {
                Some(last) if last.end == blocks.start => last.end = blocks.end,
                _ => extents.push(blocks),
            }
        }
    }
    for extents in &files {
        assert!(extents.len() <= 10, "{} extents for 1000 blocks", extents.len());
    }
    let free = open.space.statfs().free;
    (0..8).for_each(|number| open.space.close_window(Ino(100 + number)));
    assert!(!open.space.windows.give_back_all(&open.space), "windows are closed");
    assert_eq!(open.space.statfs().free, free, "windows are nobody's");
    open.stop();
}

#[test]
fn small_files_of_a_directory_lie_together_and_large_ones_in_one_piece() {
    let source = image(512 << 10, &["-t", "ext4", "-b", "4096"]);
    let open = Open::new(&source);
    let directory =
        open.with(|handle| open.space.new_inode(handle, Ino::ROOT, true, true).unwrap());
    let mut last = None;
    for _ in 0..500 {
        let ino = open.with(|handle| open.space.new_inode(handle, directory, false, false));
        let ino = ino.unwrap();
        assert_eq!(open.space.group_of(ino).0, open.space.group_of(directory).0);
        let claim = open.space.claim(open.space.goal(ino, true), 1, false).unwrap();
        let blocks = commit(&open, claim);
        assert!(last.is_none_or(|last| last == blocks.start), "a gap at {}", blocks.start);
        last = Some(blocks.end);
    }
    // A file of 100 MiB, in the largest pieces that extents have.
    let (mut goal, mut pieces, mut left) = (Block(0), 0, 25_600u32);
    while left > 0 {
        let claim = open.space.claim(goal, left.min(8192), false).unwrap();
        pieces += u32::from(claim.start() != goal);
        left -= claim.len();
        goal = Block(commit(&open, claim).end);
    }
    assert!(pieces <= 2, "{pieces} pieces");
    open.stop();
}

#[test]
fn directories_spread_and_files_stay_near_them() {
    let args = ["-t", "ext4", "-b", "1024", "-G", "2", "-N", "16384", "-J", "size=4"];
    let source = image(256 << 10, &args);
    let open = Open::new(&source);
    let flex_of = |ino: Ino| open.space.group_of(ino).0 / 2;
    let flexes = open.volume.superblock().groups.div_ceil(2);
    let make = |parent, top, directory| {
        open.with(|handle| open.space.new_inode(handle, parent, top, directory).unwrap())
    };
    let tops: Vec<Ino> = (0..flexes).map(|_| make(Ino::ROOT, true, true)).collect();
    let used: BTreeSet<u32> = tops.iter().map(|ino| flex_of(*ino)).collect();
    assert!(used.len() as u32 > flexes / 2, "{} of {flexes} flex groups", used.len());
    for top in tops {
        let below = make(top, false, true);
        assert_eq!(flex_of(below), flex_of(top));
        for _ in 0..20 {
            assert_eq!(flex_of(make(below, false, false)), flex_of(top));
        }
    }
    // Many below one parent leave its group.
    let parent = make(Ino::ROOT, true, true);
    let children: BTreeSet<u32> = (0..2000).map(|_| flex_of(make(parent, false, true))).collect();
    assert!(children.len() > 1);
    // Every inode can be had.
    let left = open.space.statfs().free_inodes;
    let all: BTreeSet<Ino> = (0..left).map(|_| make(parent, false, false)).collect();
    assert_eq!(all.len() as u64, left);
    let none = open.with(|handle| open.space.new_inode(handle, parent, false, false));
    assert!(is_full(none));
    open.stop();
    let inodes = open_inodes(&source);
    assert_eq!(e2fsck(&source).inodes.len() as u32, inodes);
}

/// Inodes in use beside those that mke2fs makes.
fn open_inodes(source: &Arc<MemSource>) -> u32 {
    let superblock = crate::engine::read_superblock(&**source).unwrap();
    // Reserved ones and lost+found.
    superblock.inodes_count - superblock.first_ino
}

#[test]
fn trim_discards_what_is_free_and_nothing_else() {
    let source = image(64 << 10, &["-t", "ext4", "-b", "1024", "-J", "size=1"]);
    let open = Open::new(&source);
    let claim = open.space.claim(Block(20_000), 100, false).unwrap();
    let claimed = claim.start().0..claim.start().0 + u64::from(claim.len());
    let freed = commit(&open, open.space.claim(Block(30_000), 50, false).unwrap());
    open.commit();
    let count = open.volume.superblock().blocks_count;
    let used: BTreeSet<u64> = (1..count)
        .filter(|block| {
            let (number, bit) = open.space.place(Block(*block));
            let mut state = open.space.groups[number as usize].state.lock();
            state.need_blocks(&open.space, number).unwrap().runs.len_at(bit, 1) == 0
        })
        .collect();
    open.with(|handle| open.space.free(handle, Block(freed.start), 50).unwrap());
    let before = contents(&source);
    let mut filled = before.clone();
    for block in (1..count).filter(|block| !used.contains(block)) {
        let at = block as usize * 1024;
        filled[at..at + 1024].fill(0xaa);
        source.write_at(at as u64, &filled[at..at + 1024]).unwrap();
    }
    let whole = Block(0)..Block(u64::MAX);
    assert_eq!(open.space.trim(Block(25_000)..Block(25_010), 11).unwrap(), 0);
    assert_eq!(open.space.trim(Block(25_000)..Block(25_010), 10).unwrap(), 10);
    let done = open.space.trim(whole.clone(), 1).unwrap();
    assert_eq!(done, count - 1 - used.len() as u64);
    let after = contents(&source);
    for block in 1..count as usize {
        let bytes = &after[block * 1024..(block + 1) * 1024];
        if used.contains(&(block as u64)) {
            assert!(*bytes == before[block * 1024..(block + 1) * 1024], "block {block}");
        } else {
            assert!(bytes.iter().all(|byte| *byte == 0), "block {block}");
        }
    }
    assert!(claimed.clone().chain(freed.clone()).all(|block| used.contains(&block)));
    // With the option, what is freed goes at the commit.
    source.write_at(freed.start * 1024, &[0xaa; 50 * 1024]).unwrap();
    open.space.set_discard(true);
    open.commit();
    let bytes = contents(&source);
    let bytes = &bytes[freed.start as usize * 1024..freed.end as usize * 1024];
    assert!(bytes.iter().all(|byte| *byte == 0));
    drop(claim);
    open.stop();
    assert_clean(&source);
}

fn contents(source: &MemSource) -> Vec<u8> {
    let mut bytes = vec![0; source.size() as usize];
    source.read_at(0, &mut bytes).unwrap();
    bytes
}

#[test]
fn tables_that_were_never_written_need_not_be() {
    for kind in ["metadata_csum", "^metadata_csum,uninit_bg"] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0xa5; 40 << 20]).unwrap();
        let lazily = "nodiscard,lazy_itable_init=1,lazy_journal_init=1";
        let args = ["-t", "ext4", "-b", "1024", "-g", "2048", "-J", "size=1", "-E", lazily];
        let source = image_in(&file, &[&args[..], &["-O", kind]].concat());
        let open = Open::new(&source);
        let superblock = open.volume.superblock();
        let table = open.volume.groups()[10].unwrap().inode_table;
        let mut bytes = [0; 1024];
        source.read_at(table.0 * 1024, &mut bytes).unwrap();
        assert_eq!(bytes, [0xa5; 1024], "what the disk held before");
        let mut inodes = BTreeSet::new();
        for round in 0..1000 {
            let parent = Ino(1 + round * 13 % superblock.inodes_count);
            open.with(|handle| {
                let ino = open.space.new_inode(handle, parent, false, round % 9 == 0).unwrap();
                // Part of it only: the rest must have been made.
                let offset = open.volume.inode_offset(ino).unwrap();
                let (block, within) = (Block(offset / 1024), (offset % 1024) as usize);
                let size = superblock.inode_size as usize;
                assert!(handle.read(block).unwrap().bytes[within..within + size] == vec![0; size]);
                handle.put(block, within, &vec![0; size]).unwrap();
                if round % 3 == 0 {
                    open.space.free_inode(handle, ino, round % 9 == 0).unwrap();
                } else {
                    assert!(inodes.insert(ino.0));
                }
            });
            if round % 100 == 0 {
                open.commit();
            }
        }
        open.stop();
        assert_eq!(e2fsck(&source).inodes, inodes);
    }
}

#[test]
fn without_a_journal_a_number_is_used_again_after_the_commit() {
    for (args, at_once) in [(["-t", "ext2"], false), (["-t", "ext4"], true)] {
        let source = image(16 << 10, &args);
        let open = Open::new(&source);
        fn make(open: &Open, handle: &mut Handle<'_>) -> Ino {
            open.space.new_inode(handle, Ino::ROOT, false, false).unwrap()
        }
        let first = open.with(|handle| make(&open, handle));
        let second = open.with(|handle| {
            open.space.free_inode(handle, first, false).unwrap();
            make(&open, handle)
        });
        assert_eq!(second == first, at_once);
        open.with(|handle| open.space.free_inode(handle, second, false).unwrap());
        open.commit();
        assert_eq!(open.with(|handle| make(&open, handle)), first);
        open.stop();
    }
}
