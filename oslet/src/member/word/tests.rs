use super::*;
use crate::region::Backing;

fn oslet(index: usize) -> OsletId {
    OsletId::new(index).unwrap()
}

fn page() -> ControlPage {
    ControlPage::create(&Backing::Memfd, "word", 4).unwrap()
}

#[test]
fn a_life_from_join_to_leave_and_back() {
    let page = page();
    let me = oslet(1);
    assert_eq!(join(&page, me).unwrap(), Join::Taken(Epoch(1)));
    assert!(matches!(join(&page, me).unwrap(), Join::Unfenced(_)));
    serve(&page, me, Epoch(1)).unwrap();
    assert!(serve(&page, me, Epoch(1)).is_err());
    leave(&page, me, Epoch(1)).unwrap();
    assert!(leave(&page, me, Epoch(1)).is_err());
    assert_eq!(join(&page, me).unwrap(), Join::Taken(Epoch(2)));
}

#[test]
fn a_fence_has_one_fencer_and_one_end() {
    let page = page();
    let target = oslet(0);
    join(&page, target).unwrap();
    serve(&page, target, Epoch(1)).unwrap();
    let begin = |who| begin_fence(&page, oslet(who), target, Epoch(1), |_| false).unwrap();
    assert_eq!(begin(1), Fencer::Me);
    assert_eq!(begin(1), Fencer::Me);
    assert_eq!(begin(2), Fencer::Other(oslet(1)));
    assert!(leave(&page, target, Epoch(1)).is_err(), "who is fenced cannot leave");
    assert!(matches!(join(&page, target).unwrap(), Join::Unfenced(_)));
    // The fencer dies: another takes over, and the first can no longer end it.
    let taken = begin_fence(&page, oslet(2), target, Epoch(1), |who| who == oslet(1)).unwrap();
    assert_eq!(taken, Fencer::Me);
    assert!(!end_fence(&page, oslet(1), target, Epoch(1)).unwrap());
    assert!(end_fence(&page, oslet(2), target, Epoch(1)).unwrap());
    assert_eq!(begin(1), Fencer::Over);
    assert_eq!(join(&page, target).unwrap(), Join::Taken(Epoch(2)));
    assert_eq!(begin(1), Fencer::Over, "a fence of epoch 1 does not touch epoch 2");
    assert_eq!(page.member(target).unwrap().state, MemberState::Joining);
}

#[test]
fn a_disowned_fence_is_anybodys() {
    let page = page();
    join(&page, oslet(0)).unwrap();
    begin_fence(&page, oslet(1), oslet(0), Epoch(1), |_| false).unwrap();
    disown_fence(&page, oslet(2), oslet(0)).unwrap();
    assert_eq!(page.member(oslet(0)).unwrap().fencer, Some(oslet(1)));
    disown_fence(&page, oslet(1), oslet(0)).unwrap();
    let taken = begin_fence(&page, oslet(2), oslet(0), Epoch(1), |_| false).unwrap();
    assert_eq!(taken, Fencer::Me);
}

#[test]
fn the_last_epoch_is_not_wrapped() {
    let page = page();
    let last = Membership { state: MemberState::Dead, epoch: Epoch(u32::MAX), fencer: None };
    let now = page.member(oslet(0)).unwrap();
    page.change_member(oslet(0), now, last).unwrap().unwrap();
    assert!(matches!(join(&page, oslet(0)), Err(Error::Exhausted(_))));
}
