//! Our server and clients that others wrote.

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

use oslet::arena::Arena;
use proxydev::backend::engine::{Engine, EngineOptions};
use proxydev::backend::file::{FileDevice, FileOptions};
use proxydev::backend::ram::RamDevice;
use proxydev::nbd::{Export, ExportTable, Server, ServerOptions, TlsMode, tls};
use proxydev::{BlockDevice, sync};
use tempfile::TempDir;

use crate::{arena, certificates, encoded, run, try_run};

const RAM: u64 = 32 << 20;
const FILE: u64 = 24 << 20;

struct Served {
    server: Server,
    ram: Arc<dyn BlockDevice>,
    arena: Arc<Arena>,
    dir: TempDir,
}

impl Served {
    /// "ram", "file", which has one piece of data and otherwise holes, and "fixed", which is "ram"
    /// to be read only.
    fn new(options: ServerOptions) -> Self {
        // On a disk, for direct I/O.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let arena = arena(20_000);
        let engine = Engine::new(arena.region(), EngineOptions::default()).unwrap();
        let path = dir.path().join("file");
        let mut file = std::fs::File::create(&path).unwrap();
        file.set_len(FILE).unwrap();
        file.seek(SeekFrom::Start(8 << 20)).unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        let ram: Arc<dyn BlockDevice> = Arc::new(RamDevice::new("ram", RAM, &arena).unwrap());
        let named = FileOptions { name: Some("file".into()), ..FileOptions::default() };
        let file = FileDevice::open(&path, named, &engine, &arena).unwrap();
        let exports = ExportTable::new();
        let fixed = Export { name: "fixed".into(), read_only: true, ..Export::new(ram.clone()) };
        for export in [Export::new(Arc::clone(&ram)), Export::new(Arc::new(file)), fixed] {
            exports.add(export).unwrap();
        }
        let server = Server::new(exports, &arena, options).unwrap();
        server.listen_unix(&dir.path().join("sock")).unwrap();
        Self { server, ram, arena, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", encoded(&self.path("sock")))
    }
}

#[test]
fn libnbd_sees_and_changes_what_is_exported() {
    let served = Served::new(ServerOptions::default());
    let Some(list) = run("nbdinfo", &["--list", &served.uri("")]) else { return };
    for expected in ["export=\"file\"", "can_multi_conn: true", "block_size_maximum: 33554432"] {
        assert!(list.contains(expected), "{list}");
    }
    let map = run("nbdinfo", &["--map", &served.uri("file")]).unwrap_or_default();
    let map: Vec<Vec<_>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    let hole = |from, len| vec![from, len, "3", "hole,zero"];
    let expected = [
        hole("0", "8388608"),
        vec!["8388608", "1048576", "0", "data"],
        hole("9437184", "15728640"),
    ];
    assert_eq!(map, expected);

    let script = r#"
import errno
def fails(number, call, *a):
    try: call(*a)
    except nbd.Error as e: assert e.errno == number, (e.errno, number)
    else: raise Exception("no error")
h.set_strict_mode(0)
h.connect_uri(uri)
size = h.get_size()
data = bytes((i * 7 + i // 256) & 255 for i in range(1 << 20))
h.pwrite(data, 1 << 20)
assert h.pread(1 << 20, 1 << 20) == data
h.pwrite(data[:512], 512, nbd.CMD_FLAG_FUA)
h.zero(4096, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(8192, 1 << 20) == bytes(4096) + data[4096:8192]
h.zero(4096, 1 << 20, nbd.CMD_FLAG_FAST_ZERO)
h.cache(4096, 0)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.flush()
h.pread(1 << 16, 0, nbd.CMD_FLAG_DF)
assert len(h.pread(32 << 20 if size >= 32 << 20 else size, 0)) > 0
fails("EINVAL", h.pread, 1, 1)
fails("EINVAL", h.pread, 1024, size - 512)
fails("ENOSPC", h.pwrite, data[:1024], size - 512)
fails("ENOSPC", h.zero, 1024, size - 512)
fails("EINVAL", h.trim, 1024, size)
cookies = []
for n in range(300):
    buf = nbd.Buffer(4096)
    place = (1 << 20) + 4096 + n % 200 * 4096
    cookies.append((h.aio_pread(buf, place), buf, place - (1 << 20)))
for cookie, buf, at in cookies:
    while not h.aio_command_completed(cookie): h.poll(-1)
    assert buf.to_bytearray() == data[at:at + 4096]
h.shutdown()
f = nbd.NBD()
f.connect_uri(fixed)
assert f.is_read_only()
f.set_strict_mode(0)
fails("EPERM", f.pwrite, data[:512], 0)
fails("EPERM", f.trim, 512, 0)
print("all of it")
"#;
    let script = script.replace("(number, call", "(name, call").replace(
        "e.errno == number, (e.errno, number)",
        "errno.errorcode[e.errnum] == name if e.errnum else name in str(e), str(e)",
    );
    for (uri, structured) in [("ram", true), ("ram", false), ("file", true)] {
        let head = format!(
            "uri, fixed = {:?}, {:?}\nh.set_request_structured_replies({})\n",
            served.uri(uri),
            served.uri("fixed"),
            if structured { "True" } else { "False" }
        );
        let script = match structured {
            true => script.clone(),
            false => script.replace("h.pread(1 << 16, 0, nbd.CMD_FLAG_DF)\n", ""),
        };
        let Some(said) = run("nbdsh", &["-c", &(head + &script)]) else { return };
        assert!(said.contains("all of it"), "{said}");
    }
}

#[test]
fn images_are_copied_in_and_out_and_compared() {
    let served = Served::new(ServerOptions::default());
    let image = served.path("image");
    let bytes: Vec<u8> = (0..RAM as u32).map(|i| (i ^ i >> 11 ^ i >> 3) as u8).collect();
    std::fs::write(&image, &bytes).unwrap();
    let (image, uri) = (image.to_str().unwrap(), served.uri("ram"));
    if run("nbdcopy", &["--connections=4", image, &uri]).is_some() {
        let mut found = vec![0; bytes.len()];
        sync::read_at(&*served.ram, 0, &mut found).unwrap();
        assert!(found == bytes, "nbdcopy with four connections");
        let back = served.path("back");
        run("nbdcopy", &[&uri, back.to_str().unwrap()]);
        assert!(std::fs::read(back).unwrap() == bytes, "nbdcopy back");
    }
    if run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", image, &uri]).is_none() {
        return;
    }
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &uri]);
    run("qemu-img", &["bench", "-c", "3000", "-d", "64", "-f", "raw", "-w", &served.uri("file")]);
    let info = run("qemu-img", &["info", &served.uri("file")]).unwrap_or_default();
    assert!(info.contains("24 MiB"), "{info}");
    let map = run("qemu-img", &["map", "--output=json", &served.uri("file")]).unwrap_or_default();
    assert!(map.contains("\"data\": false") || map.contains("\"zero\": true"), "{map}");
    for command in ["write -P 5 0 1M", "write -z -u 4k 64k", "write -f -P 9 8k 4k", "discard 1M 1M"]
    {
        run("qemu-io", &["-f", "raw", "-c", command, "-c", "flush", &served.uri("file")]);
    }
    let checks = ["read -P 5 0 4k", "read -P 0 4k 4k", "read -P 9 8k 4k", "read -P 5 68k 4k"];
    for command in checks {
        let said = run("qemu-io", &["-f", "raw", "-c", command, &served.uri("file")]);
        assert!(said.is_some_and(|said| !said.contains("failed")), "{command}");
    }
    // The last client has ended; its connection is about to.
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while served.server.connections() > 0 {
        assert!(std::time::Instant::now() < limit, "a connection outlives its client");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    while served.arena.tick() > 0 {}
}

#[test]
fn fio_verifies_what_it_wrote() {
    let served = Served::new(ServerOptions::default());
    for export in ["ram", "file"] {
        let uri = format!("--uri={}", served.uri(export));
        let size = format!("--size={}", FILE);
        let said = run(
            "fio",
            &[
                "--name=verify",
                "--ioengine=nbd",
                &uri,
                &size,
                "--rw=randrw",
                "--bsrange=4k-1m",
                "--iodepth=16",
                "--verify=crc32c",
                "--verify_fatal=1",
                "--do_verify=1",
                "--verify_backlog=64",
                "--verify_state_save=0",
                "--output-format=terse",
            ],
        );
        if said.is_none() {
            return;
        }
    }
}

#[test]
fn an_old_client_takes_an_export_by_its_name() {
    let served = Served::new(ServerOptions::default());
    let address = served.server.listen_tcp(([127, 0, 0, 1], 0).into()).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let export = nbd::client::handshake(&mut socket, b"ram").unwrap();
    assert_eq!(export.size, RAM);
    let mut client = nbd::client::NbdClient::new(&mut socket, &export);
    client.seek(SeekFrom::Start(4096)).unwrap();
    client.write_all(&[9; 8192]).unwrap();
    client.seek(SeekFrom::Start(4096)).unwrap();
    let mut found = [0; 8192];
    client.read_exact(&mut found).unwrap();
    assert_eq!(found, [9; 8192]);
}

#[test]
fn tls_with_certificates_is_offered_and_can_be_forced() {
    let dir = tempfile::tempdir().unwrap();
    if !certificates(dir.path()) {
        println!("skipped: no openssl");
        return;
    }
    let config = tls::server(dir.path()).unwrap();
    let shown = encoded(dir.path());
    for forced in [true, false] {
        let mode = if forced { TlsMode::Forced } else { TlsMode::Selective };
        let options = ServerOptions { tls: mode(Arc::clone(&config)), ..ServerOptions::default() };
        let served = Served::new(options);
        let secure = served.uri("ram").replace("nbd+", "nbds+");
        let secure = format!("{secure}&tls-certificates={shown}");
        let Some(said) = run("nbdinfo", &[&secure]) else { return };
        assert!(said.contains("with TLS"), "{said}");
        let image = served.path("image");
        let bytes: Vec<u8> = (0..RAM as u32).map(|i| (i ^ i >> 9) as u8).collect();
        std::fs::write(&image, &bytes).unwrap();
        run("nbdcopy", &[image.to_str().unwrap(), &secure]);
        let mut found = vec![0; bytes.len()];
        sync::read_at(&*served.ram, 0, &mut found).unwrap();
        assert!(found == bytes, "through TLS");
        let back = served.path("back");
        run("nbdcopy", &[&secure, back.to_str().unwrap()]);
        assert!(std::fs::read(back).unwrap() == bytes, "back through TLS");
        let plain = try_run("nbdinfo", &[&served.uri("ram")]).unwrap();
        assert_eq!(plain.status.success(), !forced, "in the clear");
    }
}
