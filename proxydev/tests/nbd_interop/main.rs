//! NBD with programs that others wrote: their clients and our server, our client and their servers.
#![forbid(unsafe_code)]

mod clients;
mod servers;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use oslet::arena::Arena;
use oslet::id::{Epoch, OsletId, ParticipantId};
use oslet::region::{Backing, ControlPage, OwnSegment, Paging, Region, SegmentSpec};

fn arena(frames: usize) -> Arc<Arena> {
    let control = ControlPage::create(&Backing::Memfd, "interop", 2).unwrap();
    let spec = SegmentSpec {
        participant: ParticipantId::runtime(OsletId::new(0).unwrap()),
        epoch: Epoch(1),
        frames,
        space: 2 << 20,
        paging: Paging::default(),
    };
    let own = OwnSegment::create(&Backing::Memfd, control.cluster(), &spec).unwrap();
    Arena::new(&Region::new(control, own, Paging::default()).unwrap())
}

/// Runs a program of the system's that must end well; its output. `None`, with a line that says so,
/// where there is none.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let Some(output) = try_run(program, arguments) else {
        println!("skipped: no {program}");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}{errors}", output.status);
    Some(text)
}

fn try_run(program: &str, arguments: &[&str]) -> Option<Output> {
    // The system's own Python is the one that has libnbd.
    let path = format!("/usr/bin:/usr/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut limited = Command::new("timeout");
    limited.args(["60", program]).args(arguments).env("PATH", path).env("LC_ALL", "C");
    let output = limited.output().ok()?;
    (output.status.code() != Some(127)).then_some(output)
}

/// A path as a part of a URI.
fn encoded(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(byte);
    let parts = path.as_os_str().as_bytes().iter().map(|byte| match plain(byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    parts.collect()
}

/// An authority, a server and a client, under the names that NBD programs look for.
fn certificates(dir: &Path) -> bool {
    let file = |name: &str| dir.join(name).display().to_string();
    let (ca, ca_key) = (file("ca-cert.pem"), file("ca-key.pem"));
    let made = run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "30",
            "-subj",
            "/CN=authority",
            "-keyout",
            &ca_key,
            "-out",
            &ca,
        ],
    );
    if made.is_none() {
        return false;
    }
    let extensions = file("extensions");
    std::fs::write(&extensions, "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    for who in ["server", "client"] {
        let request = file("request");
        let (key, certificate) =
            (file(&format!("{who}-key.pem")), file(&format!("{who}-cert.pem")));
        run(
            "openssl",
            &[
                "req",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=localhost",
                "-keyout",
                &key,
                "-out",
                &request,
            ],
        );
        run(
            "openssl",
            &[
                "x509",
                "-req",
                "-in",
                &request,
                "-CA",
                &ca,
                "-CAkey",
                &ca_key,
                "-CAcreateserial",
                "-days",
                "30",
                "-extfile",
                &extensions,
                "-out",
                &certificate,
            ],
        );
    }
    true
}
