//! A device that does not answer: what holds up whom.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use cfs::client::Client;
use cfs::id::Ino;

use crate::check;
use crate::cluster::{WORKERS, cluster_of, image, tree};
use crate::gate::Gate;

/// By then what does not wait for the device is done.
const SOON: Duration = Duration::from_secs(10);
/// Inodes in blocks of their own, none of them the root directory's.
const COLD: [u32; 4] = [20, 36, 52, 68];

/// Opens a gate however the test ends: who waits for it would keep the test from ending.
struct Opens<'g>(&'g Gate);

impl Drop for Opens<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// Asks the owner what no table has.
fn ask(client: &Arc<Client>, times: usize) {
    for _ in 0..times {
        assert!(client.readdir(Ino::ROOT, 0).unwrap().0.len() > 8);
        client.statfs().unwrap();
    }
}

/// More misses than there are threads wait for a device; over the same channel, by which all of
/// an OSlet's requests go, what the owner has in memory is answered, and another volume read.
#[test]
fn a_device_that_does_not_answer_holds_up_its_own_misses_alone() {
    let files = tree();
    let bytes = image(&files, &[]);
    let gates = [Arc::new(Gate::new(bytes.clone())), Arc::new(Gate::new(bytes))];
    let devices = gates.iter().map(|gate| gate.clone() as _).collect();
    let cluster = cluster_of(devices, 4096, 1500);
    let (remote, other) = (&cluster.remote, &cluster.others[0]);
    ask(remote, 1);
    let known: Vec<_> = [3, 4, 5]
        .map(|dir| remote.open(format!("dir {dir}/file {}", 49 + dir).as_bytes()).unwrap())
        .into();
    let [slow, _] = &gates;
    slow.close();
    std::thread::scope(|scope| {
        let _opens = Opens(slow);
        let pages: Vec<_> = known.iter().map(|file| scope.spawn(|| file.read_ref(0))).collect();
        slow.wait_for(WORKERS);
        let misses = COLD.map(|ino| scope.spawn(move || remote.stat(Ino(ino))));
        // Both kinds have threads of their own that wait for the device.
        slow.wait_for(2 * WORKERS);
        let (done, answered) = mpsc::channel();
        scope.spawn(move || {
            ask(remote, 20);
            done.send("cached").unwrap();
            check(other, &tree());
            done.send("elsewhere").unwrap();
        });
        let cached = answered.recv_timeout(SOON);
        let elsewhere = answered.recv_timeout(SOON);
        slow.open();
        assert_eq!(cached, Ok("cached"), "what is in memory waits for the device");
        assert_eq!(elsewhere, Ok("elsewhere"), "another volume waits for the device");
        for page in pages {
            assert!(page.join().unwrap().unwrap().is_some());
        }
        for (ino, miss) in COLD.into_iter().zip(misses) {
            assert_eq!(miss.join().unwrap().unwrap().ino, Ino(ino));
        }
    });
    check(remote, &files);
}
