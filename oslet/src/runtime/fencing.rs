//! Carrying out fences: one thread each.

use std::path::Path;

use super::*;
use crate::member::fence::Kit;

/// How long to wait before a fence that did not come to an end is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The kit that the incarnation left on disk; an empty one when it left none of that epoch: then
/// it died before it had anything. The caller knows that its process is gone or is in the record.
pub(super) fn recorded_kit(
    directory: &Path,
    names: &[String],
    oslet: OsletId,
    epoch: Epoch,
) -> Result<Kit> {
    let name = names.get(oslet.index()).map_or("?", String::as_str);
    let label = format!("{name} epoch {epoch}");
    match Record::read(&directory.join(name))? {
        Some(record) if record.epoch == epoch.0 => Kit::from_record(&label, &record),
        _ => Ok(Kit::empty(&label)),
    }
}

/// Fences until it is done or no longer ours.
pub(super) fn run(shared: &Shared, oslet: OsletId, epoch: Epoch, kit: &Kit) {
    let limit = Duration::from_millis(shared.spec.io_limit_ms);
    let control = shared.region.control();
    let start = Instant::now();
    let mut stuck = false;
    loop {
        match kit.fence(limit) {
            Ok(notes) => {
                notes.iter().for_each(|note| shared.log(note));
                match word::end_fence(control, shared.me, oslet, epoch) {
                    Ok(true) => shared.log(format_args!(
                        "{}: fenced in {} ms",
                        kit.name,
                        start.elapsed().as_millis()
                    )),
                    Ok(false) => shared.log(format_args!("{}: fenced by another", kit.name)),
                    Err(error) => shared.log(error),
                }
                shared.inbox.post(Command::FenceEnded(oslet, epoch));
                return;
            }
            Err(error) => {
                shared.log(format_args!("{}: not fenced: {error}", kit.name));
                if !std::mem::replace(&mut stuck, true) {
                    shared.inbox.post(Command::FenceStuck(oslet, epoch));
                }
            }
        }
        std::thread::sleep(AGAIN);
        let mine = control.member(oslet).is_ok_and(|member| {
            member.epoch == epoch
                && member.state == MemberState::Fencing
                && member.fencer == Some(shared.me)
        });
        let own = control.member(shared.me).is_ok_and(|member| member.epoch == shared.epoch);
        if !mine || !own {
            return;
        }
    }
}
