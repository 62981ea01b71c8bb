//! Clients that use much and little, on a clock of the test's own.

use super::*;

fn quota(minute: u64, day: u64) -> Quota {
    let hard = Bounds { minute_tokens: Some(minute), day_tokens: Some(day), ..Bounds::default() };
    Quota { hard, ..Quota::default() }
}

#[test]
fn one_client_leaves_places_to_others_and_so_do_several() {
    for clients in 1..=6 {
        let (mut held, mut free) = (vec![0; clients], 64);
        while let Some(who) = (0..clients).find(|&i| may_take(held[i], 1, free)) {
            (held[who], free) = (held[who] + 1, free - 1);
        }
        assert!(free >= 1 && held.iter().all(|&held| held >= 1), "{clients}: {held:?}");
        // Once all places have turned over, it is the same for all.
        for _ in 0..200 {
            let most = (0..clients).max_by_key(|&i| held[i]).unwrap();
            (held[most], free) = (held[most] - 1, free + 1);
            let least = (0..clients).min_by_key(|&i| held[i]).unwrap();
            let more = usize::from(may_take(held[least], 1, free));
            (held[least], free) = (held[least] + more, free - more);
        }
        let (least, most) = (held.iter().min().unwrap(), held.iter().max().unwrap());
        assert!(most - least <= 1 && *least >= 64 / (clients + 2), "{clients}: {held:?}");
    }
    assert!(may_take(31, 1, 33) && !may_take(32, 1, 32));
    // Whoever holds none may have all that is free, and no more.
    assert!(may_take(0, 8, 8) && may_take(0, 1, 1) && !may_take(0, 2, 1));
}

#[test]
fn without_bounds_everything_begins() {
    let mut meter = Meter::default();
    for i in 0..1000 {
        assert_eq!(meter.begin(&Quota::default(), Class::Interactive, 0.0), Ok(Class::Interactive));
        meter.add(&Quota::default(), 1 << 40, f64::from(i));
    }
    assert_eq!(meter.requests(), 1000);
}

#[test]
fn over_an_hour_a_client_gets_what_a_minute_allows_and_one_request_more() {
    let quota = quota(600, 1_000_000);
    let mut meter = Meter::default();
    let (mut used, mut refused) = (0, 0);
    for second in 0..3600 {
        match meter.begin(&quota, Class::Interactive, f64::from(second)) {
            Ok(_) => {
                meter.add(&quota, 50, f64::from(second));
                meter.end();
                used += 50;
            }
            Err(_) => refused += 1,
        }
    }
    // The bound of every minute, the first minute's twice, and one request.
    assert!((600 * 60..=600 * 61 + 50).contains(&used), "{used}");
    assert!(refused > 1000);
}

#[test]
fn after_the_time_that_was_named_the_next_attempt_begins() {
    for (minute, used) in [(600, 700), (600, 6000), (10, 11), (100_000, 100_001)] {
        let quota = quota(minute, 1 << 40);
        let mut meter = Meter::default();
        meter.add(&quota, used, 5.0);
        let Err(Exceeded::Minute { tokens, retry_after_s }) =
            meter.begin(&quota, Class::Interactive, 5.0)
        else {
            panic!("{used} of {minute} begin");
        };
        assert_eq!(tokens, minute);
        assert!(meter.begin(&quota, Class::Interactive, 5.0 + retry_after_s).is_ok());
        let early = 5.0 + 0.5 * retry_after_s - 1.0;
        assert!(retry_after_s < 3.0 || meter.begin(&quota, Class::Interactive, early).is_err());
    }
}

#[test]
fn the_day_counts_when_no_minute_does() {
    let quota = quota(1_000_000, 1000);
    let mut meter = Meter::default();
    meter.add(&quota, 1500, 0.0);
    let refused = meter.begin(&quota, Class::Interactive, 3600.0);
    assert!(matches!(refused, Err(Exceeded::Day { tokens: 1000, .. })), "{refused:?}");
    assert!(meter.begin(&quota, Class::Interactive, 13.0 * 3600.0).is_ok());
}

#[test]
fn beyond_the_soft_bound_requests_step_back_and_are_served() {
    let soft = Bounds { minute_tokens: Some(100), requests: Some(2), ..Bounds::default() };
    let quota = Quota { soft, ..quota(1000, 10_000) };
    let mut meter = Meter::default();
    let mut class = |now| meter.begin(&quota, Class::Interactive, now).unwrap_or_default();
    assert_eq!([class(0.0), class(0.0), class(0.0)][2], Class::Background, "the third at once");
    let mut meter = Meter::default();
    meter.add(&quota, 150, 0.0);
    assert_eq!(meter.begin(&quota, Class::Interactive, 20.0), Ok(Class::Background));
    meter.end();
    assert_eq!(meter.begin(&quota, Class::Interactive, 40.0), Ok(Class::Interactive));
}

#[test]
fn requests_at_once_are_bounded_and_an_end_makes_room() {
    let hard = Bounds { requests: Some(2), ..Bounds::default() };
    let quota = Quota { hard, ..Quota::default() };
    let mut meter = Meter::default();
    let begin = |meter: &mut Meter| meter.begin(&quota, Class::Interactive, 0.0);
    assert!(begin(&mut meter).is_ok() && begin(&mut meter).is_ok());
    assert_eq!(begin(&mut meter), Err(Exceeded::Requests { requests: 2 }));
    meter.end();
    assert!(begin(&mut meter).is_ok());
}

#[test]
fn a_bound_of_nothing_refuses_everything() {
    let mut meter = Meter::default();
    let refused = meter.begin(&quota(0, 1), Class::Interactive, 1e9);
    assert!(matches!(refused, Err(Exceeded::Minute { tokens: 0, .. })), "{refused:?}");
}
