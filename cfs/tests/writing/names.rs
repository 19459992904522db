//! Names: made, moved, removed; what everybody sees behind each; inodes without names.

use std::sync::Arc;

use cfs::Caller;
use cfs::change::{NewInode, WriteOptions};
use cfs::client::Client;
use cfs::id::Ino;

use crate::image::Image;

pub(crate) const FILE: NewInode = NewInode { mode: 0o100_644, umask: 0, device: (0, 0) };
const DIRECTORY: NewInode = NewInode { mode: 0o040_755, umask: 0, device: (0, 0) };

pub(crate) fn make(client: &Client, dir: Ino, name: &str) -> Ino {
    client.make(dir, name.as_bytes(), FILE, Caller::ROOT).unwrap().attr.ino
}

pub(crate) fn put(client: &Client, ino: Ino, bytes: &[u8]) {
    let written = client.write(ino, 0, bytes, WriteOptions::default()).unwrap();
    assert_eq!(written.len, bytes.len());
}

pub(crate) fn get(client: &Arc<Client>, ino: Ino) -> Vec<u8> {
    let mut bytes = vec![0; client.stat(ino).unwrap().size as usize];
    let len = client.file(ino).read(0, &mut bytes).unwrap();
    assert_eq!(len, bytes.len());
    bytes
}

fn find(client: &Client, path: &str) -> Result<Ino, i32> {
    client.resolve(path.as_bytes()).map(|record| record.attr.ino).map_err(|error| error.errno())
}

#[test]
fn what_was_made_moved_and_removed_is_seen_at_once_and_later() {
    const ENOENT: i32 = 2;
    let root = Ino::ROOT;
    let image = Image::new(&[], "32M", 0);
    let volume = image.open(8 << 20);
    let client = volume.client();
    assert_eq!(find(client, "a"), Err(ENOENT));
    let dir = client.make(root, b"dir", DIRECTORY, Caller::ROOT).unwrap().attr.ino;
    let a = make(client, root, "a");
    assert_eq!(find(client, "a"), Ok(a));
    put(client, a, b"contents of a");
    let error = client.make(root, b"a", FILE, Caller::ROOT).unwrap_err();
    assert_eq!(error.errno(), 17, "EEXIST");
    let (again, made) = client.make_or_find(root, b"a", FILE, Caller::ROOT).unwrap();
    assert_eq!((again.attr.ino, made), (a, false));
    client.link(a, dir, b"b", Caller::ROOT).unwrap();
    assert_eq!((find(client, "dir/b"), client.stat(a).unwrap().links), (Ok(a), 2));
    client.rename((root, b"a"), (dir, b"c"), 0, Caller::ROOT).unwrap();
    assert_eq!((find(client, "a"), find(client, "dir/c")), (Err(ENOENT), Ok(a)));
    let other = make(client, root, "other");
    put(client, other, b"other");
    client.rename((dir, b"c"), (root, b"other"), 0, Caller::ROOT).unwrap();
    assert_eq!((find(client, "other"), find(client, "dir/c")), (Ok(a), Err(ENOENT)));
    assert!(client.stat(other).is_err(), "its last name is another's");
    assert_eq!(client.rmdir(root, b"dir", Caller::ROOT).unwrap_err().errno(), 39, "ENOTEMPTY");
    client.unlink(dir, b"b", Caller::ROOT).unwrap();
    client.rmdir(root, b"dir", Caller::ROOT).unwrap();
    assert_eq!((find(client, "dir"), client.stat(a).unwrap().links), (Err(ENOENT), 1));
    client.symlink(root, b"link", b"other", Caller::ROOT).unwrap();
    assert_eq!(find(client, "link"), Ok(a));
    client.set_xattr(a, b"user.x", b"value", 0, Caller::ROOT).unwrap();
    assert_eq!(client.getxattr(a, b"user.x").unwrap(), b"value");
    volume.close().unwrap();
    image.assert_clean();
    let volume = image.open(8 << 20);
    let client = volume.client();
    let a = find(client, "link").unwrap();
    assert_eq!(get(client, a), b"contents of a");
    assert_eq!(client.getxattr(a, b"user.x").unwrap(), b"value");
    volume.close().unwrap();
}

/// An open file keeps its contents when its last name goes, and its room comes back in the end.
#[test]
fn a_file_without_a_name_stays_while_it_is_held() {
    let image = Image::new(&[], "32M", 0);
    let volume = image.open(8 << 20);
    let client = volume.client();
    let free = client.statfs().unwrap().free;
    let ino = make(client, Ino::ROOT, "file");
    client.hold(ino).unwrap();
    client.hold(ino).unwrap();
    put(client, ino, &[7; 100_000]);
    client.unlink(Ino::ROOT, b"file", Caller::ROOT).unwrap();
    assert_eq!(get(client, ino), [7; 100_000]);
    client.write(ino, 100_000, &[8; 5000], WriteOptions::default()).unwrap();
    client.sync_all(&mut 0).unwrap();
    assert_eq!(client.stat(ino).unwrap().size, 105_000);
    client.let_go(ino, 1).unwrap();
    assert_eq!(get(client, ino)[..100_000], [7; 100_000]);
    assert!(client.statfs().unwrap().free < free);
    client.let_go(ino, 1).unwrap();
    assert!(client.stat(ino).is_err() && client.hold(ino).is_err());
    assert!(client.write(ino, 0, b"x", WriteOptions::default()).is_err());
    assert_eq!(client.statfs().unwrap().free, free);
    // The number is another's now, and so are its pages.
    let again = make(client, Ino::ROOT, "again");
    assert_eq!(get(client, again), b"");
    client.truncate(again, 50_000).unwrap();
    assert_eq!(get(client, again), [0; 50_000]);
    volume.close().unwrap();
    image.assert_clean();
}

/// Files of one directory made, written, renamed and removed by several threads, each of which sees
/// its own.
#[test]
fn threads_change_one_directory_at_once() {
    const THREADS: usize = 4;
    const ROUNDS: usize = 150;
    let image = Image::new(&[], "64M", 0);
    let volume = image.open(4 << 20);
    let client = volume.client();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let (name, next) = (format!("{thread}-{round}"), format!("{thread}+{round}"));
                    let ino = make(client, Ino::ROOT, &name);
                    let bytes = vec![(thread * 50 + round) as u8; round * 97];
                    put(client, ino, &bytes);
                    let (old, new) = (name.as_bytes(), next.as_bytes());
                    let root = Ino::ROOT;
                    client.rename((root, old), (root, new), 0, Caller::ROOT).unwrap();
                    assert_eq!(find(client, &name), Err(2));
                    assert_eq!(find(client, &next), Ok(ino));
                    assert_eq!(get(client, ino), bytes);
                    if round % 3 == 0 {
                        client.unlink(Ino::ROOT, new, Caller::ROOT).unwrap();
                        assert_eq!(find(client, &next), Err(2));
                    }
                }
            });
        }
    });
    volume.close().unwrap();
    image.assert_clean();
    let volume = image.open(4 << 20);
    for (thread, round) in (0..THREADS).flat_map(|t| (0..ROUNDS).map(move |r| (t, r))) {
        let found = find(volume.client(), &format!("{thread}+{round}"));
        assert_eq!(found.is_err(), round % 3 == 0);
        if let Ok(ino) = found {
            let bytes = vec![(thread * 50 + round) as u8; round * 97];
            assert_eq!(get(volume.client(), ino), bytes);
        }
    }
    volume.close().unwrap();
}

/// A directory in its inode: a whiteout is put there in place, a file that had no name is not.
#[test]
fn whiteouts_and_late_names_in_a_directory_that_lies_in_its_inode() {
    const WHITEOUT: u32 = 4;
    let image = Image::new(&["-O", "inline_data"], "32M", 0);
    image.debugfs("mkdir dir");
    image.debugfs("mkdir dir/sub");
    let is_inline = |path| image.debugfs(&format!("stat {path}")).contains("Flags: 0x10000000");
    assert!(is_inline("dir") && is_inline("dir/sub"));
    let volume = image.open(8 << 20);
    let client = volume.client();
    let (dir, sub) = (find(client, "dir").unwrap(), find(client, "dir/sub").unwrap());
    client.rename((dir, b"sub"), (Ino::ROOT, b"sub"), WHITEOUT, Caller::ROOT).unwrap();
    assert_eq!(find(client, "sub"), Ok(sub));
    assert_eq!(client.resolve(b"dir/sub").unwrap().attr.mode, 0o020_000);
    volume.close().unwrap();
    image.assert_clean();
    assert!(is_inline("dir") && is_inline("sub"));
    let volume = image.open(8 << 20);
    let client = volume.client();
    let late = client.make_nameless(dir, FILE, Caller::ROOT).unwrap().attr.ino;
    put(client, late, b"late");
    client.link(late, dir, b"late", Caller::ROOT).unwrap();
    client.let_go(late, 1).unwrap();
    assert_eq!((find(client, "dir/late"), get(client, late)), (Ok(late), b"late".to_vec()));
    volume.close().unwrap();
    image.assert_clean();
    assert!(!is_inline("dir"));
    assert_eq!(image.dump("dir/late"), b"late");
}
