#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn prefix(len: usize) -> Prefix {
    Prefix { tenant: Tenant(0), tokens: (0..len as Token).collect() }
}

#[test]
fn a_warm_row_shares_whole_pages_and_copies_the_partial_one() {
    let mut ledger = Ledger::new(2, 4, 8);
    let (slot, mut holding, copy) = ledger.open(12, None).unwrap();
    assert_eq!(copy, None);
    ledger.grow(&mut holding, 10);
    let id = ledger.park(&holding, prefix(6));
    let (other, second, copy) = ledger.open(12, Some(id)).unwrap();
    assert_eq!(second.pages()[0], holding.pages()[0]);
    let copy = copy.unwrap();
    assert_eq!(copy.from, holding.pages()[1]);
    assert_eq!(copy.to, second.pages()[1]);
    ledger.check_integrity([(slot, &holding), (other, &second)].into_iter()).unwrap();
    ledger.close(slot, holding);
    ledger.close(other, second);
    assert!(ledger.release(id));
    ledger.check_integrity(std::iter::empty()).unwrap();
    assert_eq!(ledger.free(), (2, 8));
}

#[test]
fn pages_are_promised_before_a_row_starts() {
    let mut ledger = Ledger::new(4, 4, 4);
    let (_, first, _) = ledger.open(12, None).unwrap();
    assert!(ledger.open(8, None).is_none(), "only one page is left to promise");
    assert!(ledger.open(4, None).is_some());
    assert!(first.pages().is_empty(), "memory grows with tokens used");
}

#[test]
fn a_held_snapshot_outlives_its_release_by_the_bank() {
    let mut ledger = Ledger::new(1, 4, 4);
    let (slot, mut holding, _) = ledger.open(8, None).unwrap();
    ledger.grow(&mut holding, 8);
    let id = ledger.park(&holding, prefix(8));
    ledger.close(slot, holding);
    assert_eq!(ledger.hold(id), Some(8));
    assert!(!ledger.release(id));
    assert!(ledger.release(id));
    assert_eq!(ledger.hold(id), None);
    assert_eq!(ledger.free(), (1, 4));
}

#[test]
fn the_longest_parked_prefix_of_the_same_tenant_is_found_while_the_bank_keeps_it() {
    let mut ledger = Ledger::new(1, 4, 8);
    let (slot, mut holding, _) = ledger.open(12, None).unwrap();
    ledger.grow(&mut holding, 12);
    let short = ledger.park(&holding, prefix(3));
    let long = ledger.park(&holding, prefix(9));
    let prompt: Vec<Token> = (0..12).collect();
    assert_eq!(ledger.find(Tenant(0), &prompt), Some((long, 9)));
    assert_eq!(ledger.find(Tenant(0), &prompt[..8]), Some((short, 3)));
    assert_eq!(ledger.find(Tenant(1), &prompt), None);
    assert_eq!(ledger.find(Tenant(0), &[0, 1, 3]), None);
    assert_eq!(ledger.same(&prefix(9)), Some(long));
    // Somebody still holds it, but the bank does not keep it.
    ledger.hold(long);
    assert!(!ledger.unbank(long));
    assert_eq!(ledger.find(Tenant(0), &prompt), Some((short, 3)));
    assert_eq!(ledger.same(&prefix(9)), None);
    assert!(ledger.release(long) && ledger.unbank(short));
    ledger.close(slot, holding);
    assert_eq!(ledger.free(), (1, 8));
}

#[test]
fn a_row_that_takes_over_a_state_gives_back_what_it_does_not_need() {
    let mut ledger = Ledger::new(2, 4, 8);
    let (first, mut leader, _) = ledger.open(12, None).unwrap();
    let (second, mut row, _) = ledger.open(14, None).unwrap();
    ledger.grow(&mut leader, 10);
    ledger.grow(&mut row, 3);
    let id = ledger.park(&leader, prefix(10));
    let copy = ledger.take_over(&mut row, 14, id).unwrap();
    assert_eq!(row.pages()[..2], leader.pages()[..2]);
    assert_eq!((copy.from, copy.to), (leader.pages()[2], row.pages()[2]));
    ledger.check_integrity([(first, &leader), (second, &row)].into_iter()).unwrap();
    // Six pages are free or promised: one to each row.
    assert_eq!(ledger.free(), (0, 8 - 4 - 1));
    ledger.close(first, leader);
    ledger.close(second, row);
    assert!(ledger.unbank(id));
    assert_eq!(ledger.free(), (2, 8));
}

#[test]
fn a_state_from_elsewhere_takes_free_pages_that_nobody_was_promised() {
    let mut ledger = Ledger::new(1, 4, 4);
    let (slot, holding, _) = ledger.open(8, None).unwrap();
    assert_eq!(ledger.import(prefix(9)), None);
    let id = ledger.import(prefix(8)).unwrap();
    assert_eq!(ledger.parcel(id).unwrap().pages.len(), 2);
    ledger.check_integrity([(slot, &holding)].into_iter()).unwrap();
    ledger.close(slot, holding);
    assert!(ledger.unbank(id));
    assert_eq!(ledger.free(), (1, 4));
}

#[test]
fn only_pages_that_idle_states_alone_hold_would_come_free_with_them() {
    let mut ledger = Ledger::new(2, 4, 8);
    let (slot, mut holding, _) = ledger.open(12, None).unwrap();
    ledger.grow(&mut holding, 12);
    let (short, long) = (ledger.park(&holding, prefix(6)), ledger.park(&holding, prefix(12)));
    assert_eq!(ledger.idle(), (2, 0), "the row holds them too");
    ledger.close(slot, holding);
    assert_eq!(ledger.idle(), (2, 3));
    // Who waits to start from the short one keeps its pages, and needs fewer.
    ledger.hold(short);
    assert_eq!(ledger.idle(), (1, 1));
    assert_eq!((ledger.own(12, None), ledger.own(12, Some(short))), (3, 2));
    assert_eq!((ledger.rise(24, None), ledger.rise_after(1, 6)), (6, 5));
    assert!(!ledger.unbank(short));
    assert_eq!(ledger.idle(), (1, 1));
    assert!(ledger.release(short) && ledger.unbank(long));
    assert_eq!((ledger.idle(), ledger.free()), ((0, 0), (2, 8)));
}
