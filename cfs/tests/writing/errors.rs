//! A device that fails while pages are written back.

use std::sync::Arc;

use cfs::change::WriteOptions;
use cfs::engine::store::MemSource;
use cfs::engine::store::layer::FaultSource;
use cfs::engine::write::{Writer, WriterOptions};
use cfs::engine::{Options, Volume};
use cfs::id::Ino;
use cfs::local::LocalVolume;
use proxydev::layer::{Rule, Rules};

use crate::image::Image;
use crate::names::{get, make, put};

const EIO: i32 = 5;

/// Everybody who had the file open is told once, and whoever comes first if nobody had.
#[test]
fn a_failed_writeback_is_told_once_to_everybody() {
    let image = Image::new(&[], "32M", 0);
    let disk = Arc::new(MemSource::new(std::fs::read(image.path()).unwrap()));
    let rules = Rules::new();
    let open = || {
        let source = Arc::new(FaultSource::new(Arc::clone(&disk), &rules));
        let volume = Arc::new(Volume::open(source, &Options::default()).unwrap());
        let writer = Writer::open(volume, &WriterOptions::default()).unwrap();
        LocalVolume::write(writer, 8 << 20).unwrap()
    };
    let volume = open();
    let client = volume.client();
    let ino = make(client, Ino::ROOT, "file");
    client.sync_all(&mut 0).unwrap();
    let (mut first, mut second) = (client.hold(ino).unwrap(), client.hold(ino).unwrap());
    put(client, ino, &[1; 10_000]);
    let once = Rule { reads: false, flushes: false, times: 1, ..Rule::all() };
    rules.set([once.clone()]);
    let error = client.sync(ino, false, &mut first).unwrap_err();
    assert_eq!(error.errno(), EIO);
    client.sync(ino, false, &mut first).unwrap();
    assert_eq!(client.sync(ino, true, &mut second).unwrap_err().errno(), EIO);
    client.sync(ino, true, &mut second).unwrap();
    let mut all = 0;
    assert_eq!(client.sync_all(&mut all).unwrap_err().errno(), EIO);
    client.sync_all(&mut all).unwrap();
    // What was written is there as long as it stays in memory, and can be written again.
    assert_eq!(get(client, ino), [1; 10_000]);
    put(client, ino, &[2; 9000]);
    client.sync(ino, false, &mut first).unwrap();
    // A write that is to be durable says itself that it is not.
    rules.set([once]);
    let durable = WriteOptions { data_sync: true, ..WriteOptions::default() };
    assert_eq!(client.write(ino, 20_000, &[3; 100], durable).unwrap_err().errno(), EIO);
    client.write(ino, 20_000, &[4; 100], durable).unwrap();
    client.let_go(ino, 2).unwrap();
    volume.close().unwrap();
    let volume = open();
    let mut expected = vec![2; 9000];
    // The page that failed first was not written again as a whole.
    let found = get(volume.client(), ino);
    expected.extend_from_slice(&found[9000..20_000]);
    expected.extend_from_slice(&[4; 100]);
    assert!(found == expected);
    volume.close().unwrap();
    std::fs::write(image.path(), Arc::into_inner(disk).unwrap().into_bytes()).unwrap();
    image.assert_clean();
}
