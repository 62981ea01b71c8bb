use std::sync::Arc;

use metrics_exporter_prometheus::PrometheusBuilder;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, channel};

use mtplx_core::request::Finish;

use super::*;

const USAGE: Usage = Usage { prompt: 3, cached: 2, generated: 1, drafted: 0, accepted: 0 };

fn tokens() -> RowEvent {
    RowEvent::Tokens(vec![5], USAGE)
}

fn open(streams: &mut Streams, id: u64, room: usize) -> Receiver<RowEvent> {
    let (mut receiver, _) = waiting(streams, id, room);
    streams.seat([RequestId(id)].into_iter());
    assert_eq!(receiver.try_recv(), Ok(RowEvent::Seated));
    receiver
}

fn waiting(streams: &mut Streams, id: u64, room: usize) -> (Receiver<RowEvent>, AtWork) {
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let ((events, receiver), work) = (channel(room), AtWork::default());
    let (request, since) = (crate::oracle::request(id, &[1], 1), Instant::now());
    let span = Span::none();
    streams.open(Admission { request, events, permit, since, work: work.clone(), span });
    (receiver, work)
}

/// What `/metrics` would say of sizes after `act`: how many there are, and all prompts' tokens.
fn booked(act: impl FnOnce(&mut Streams)) -> (usize, usize) {
    let recorder = PrometheusBuilder::new().build_recorder();
    ::metrics::with_local_recorder(&recorder, || act(&mut Streams::default()));
    let text = recorder.handle().render();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    };
    (value("mtplx_request_generated_tokens_count"), value("mtplx_request_prompt_tokens_sum"))
}

#[test]
fn a_row_that_ends_is_booked_once() {
    let ended = booked(|streams| {
        let _client = open(streams, 1, 9);
        streams.publish(RequestId(1), tokens()).unwrap();
        streams.publish(RequestId(1), RowEvent::Finished(Finish::Stop, USAGE)).unwrap();
        assert!(streams.take_closed().is_empty());
    });
    assert_eq!(ended, (1, 3));
}

#[test]
fn only_who_waits_for_a_slot_can_be_late() {
    let mut streams = Streams::default();
    let _seated = open(&mut streams, 1, 9);
    let (mut waits, _) = waiting(&mut streams, 2, 9);
    assert!(streams.take_late(Duration::from_secs(9)).is_empty());
    assert_eq!(streams.take_late(Duration::ZERO), [RequestId(2)]);
    assert_eq!(waits.try_recv(), Ok(RowEvent::Late));
    assert!(streams.take_late(Duration::ZERO).is_empty());
}

#[test]
fn who_waited_elsewhere_is_late_by_what_it_waited_in_all() {
    let mut streams = Streams::default();
    let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let (events, mut waits) = channel(9);
    let since = Instant::now().checked_sub(Duration::from_secs(8)).unwrap();
    let (request, work) = (crate::oracle::request(1, &[1], 1), AtWork::default());
    let span = Span::none();
    streams.open(Admission { request, events, permit, since, work, span });
    assert!(streams.take_late(Duration::from_secs(60)).is_empty());
    assert_eq!(streams.take_late(Duration::from_secs(8)), [RequestId(1)]);
    assert_eq!(waits.try_recv(), Ok(RowEvent::Late));
}

#[test]
fn only_rows_with_a_slot_are_at_work_also_where_one_stepped_back() {
    let mut streams = Streams::default();
    let (_one, first) = waiting(&mut streams, 1, 9);
    let (_two, second) = waiting(&mut streams, 2, 9);
    streams.seat([RequestId(1)].into_iter());
    assert!(first.is() && !second.is());
    streams.seat([RequestId(2)].into_iter());
    assert!(!first.is() && second.is());
}

#[test]
fn a_row_whose_client_left_is_booked_too() {
    let left = booked(|streams| {
        drop(open(streams, 1, 9));
        streams.publish(RequestId(1), tokens()).unwrap();
        streams.publish(RequestId(1), tokens()).unwrap();
        assert_eq!(streams.take_closed(), [RequestId(1)]);
    });
    assert_eq!(left, (1, 3));
}

#[test]
fn a_row_whose_stream_is_full_is_booked_once() {
    let full = booked(|streams| {
        let _client = open(streams, 1, 1);
        streams.publish(RequestId(1), tokens()).unwrap();
        streams.publish(RequestId(1), tokens()).unwrap_err();
        streams.publish(RequestId(1), RowEvent::Finished(Finish::Stop, USAGE)).unwrap();
    });
    assert_eq!(full, (1, 3));
}
