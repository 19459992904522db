//! Serves devices by NBD until standard input ends: what the tests of interoperability and the
//! benchmarks talk to.
//!
//!     nbdserve [--memory MIB] [--unix PATH] [--tcp ADDRESS] [--tls DIR] NAME=SOURCE[,ro]...
//!
//! SOURCE is `ram:BYTES` or a path. DIR holds `server-cert.pem`, `server-key.pem` and, where
//! clients have to show a certificate of theirs, `ca-cert.pem`. A line on standard output says that
//! it serves.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};
use proxydev::BlockDevice;
use proxydev::backend::engine::{Engine, EngineOptions};
use proxydev::backend::file::{FileDevice, FileOptions};
use proxydev::backend::ram::RamDevice;
use proxydev::nbd::{Export, ExportTable, Server, ServerOptions, TlsMode, tls};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut memory, mut unix, mut tcp) = (256_usize, None, None);
    let mut options = ServerOptions::default();
    let mut sources = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--memory" => memory = value()?.parse()?,
            "--unix" => unix = Some(PathBuf::from(value()?)),
            "--tcp" => tcp = Some(value()?.parse()?),
            "--tls" => options.tls = TlsMode::Forced(tls::server(Path::new(&value()?))?),
            "--tls-selective" => {
                options.tls = TlsMode::Selective(tls::server(Path::new(&value()?))?);
            }
            _ => sources.push(argument),
        }
    }
    let arena = arena(memory * 256)?;
    let engine = Engine::new(arena.region(), EngineOptions::default())?;
    let table = ExportTable::new();
    for source in &sources {
        table.add(export(source, &engine, &arena)?)?;
    }
    let server = Server::new(table, &arena, options)?;
    if let Some(path) = unix {
        server.listen_unix(&path)?;
        println!("serving {}", path.display());
    }
    if let Some(address) = tcp {
        println!("serving {}", server.listen_tcp(address)?);
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    server.shutdown();
    Ok(())
}

fn export(text: &str, engine: &Arc<Engine>, arena: &Arc<Arena>) -> Result<Export> {
    let (name, source) = text.split_once('=').ok_or("NAME=SOURCE")?;
    let (source, read_only) = match source.strip_suffix(",ro") {
        Some(source) => (source, true),
        None => (source, false),
    };
    let device: Arc<dyn BlockDevice> = match source.strip_prefix("ram:") {
        Some(size) => Arc::new(RamDevice::new(name, size.parse()?, arena)?),
        None => {
            let options = FileOptions { read_only, ..FileOptions::default() };
            Arc::new(FileDevice::open(Path::new(source), options, engine, arena)?)
        }
    };
    let description = format!("{source} of {} bytes", device.info().size);
    Ok(Export { name: name.to_owned(), description, device, read_only })
}

/// Memory of a cluster of one.
fn arena(frames: usize) -> Result<Arc<Arena>> {
    let control = ControlPage::create(&Backing::Memfd, "nbdserve", 2)?;
    let oslet = OsletId::new(0).ok_or("no OSlet")?;
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(oslet),
        epoch: Epoch(1),
        frames,
        space: 2 << 20,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec)?;
    Ok(Arena::new(&Region::new(control, own, Paging::default())?))
}
