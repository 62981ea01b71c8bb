use proptest::prelude::*;

use std::time::Instant;

use super::*;
use crate::ingress::text::tests::tiny;

fn choice(stops: &[&str]) -> (mpsc::Sender<RowEvent>, Choice) {
    let (sender, receiver) = mpsc::channel(100);
    let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
    let watch = Watch::new("test", Instant::now());
    let manner = Manner::default();
    let detokenizer = tiny().detokenizer();
    let (manner, stops) = (&manner, stops.as_slice());
    let (course, thinking, bound) = (Course::nowhere(), None, None);
    let making = Making { course, detokenizer, stops, manner, thinking, bound, watch };
    (sender, Choice::new(receiver, making))
}

fn answer(lists: &[&[u32]], stops: &[&str]) -> (String, End) {
    let (sender, choice) = choice(stops);
    for list in lists {
        sender.try_send(RowEvent::Tokens(list.to_vec(), Usage::default())).unwrap();
    }
    sender.try_send(RowEvent::Finished(Finish::Length, Usage::default())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (replies, _, ends) = runtime.block_on(Choices::new(vec![choice]).whole()).unwrap();
    // How long it took is another matter.
    (replies[0].text(), End { pace: Pace::default(), ..ends[0].clone() })
}

proptest! {
    #[test]
    fn how_tokens_are_bundled_changes_nothing(
        tokens in prop::collection::vec(0u32..8192, 1..40),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        stops in prop::collection::vec("[a-z ]{1,2}", 0..3),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|c| c.index(tokens.len())).collect();
        cuts.extend([0, tokens.len()]);
        cuts.sort_unstable();
        cuts.dedup();
        let bundled: Vec<&[u32]> = cuts.windows(2).map(|w| &tokens[w[0]..w[1]]).collect();
        let single: Vec<&[u32]> = tokens.chunks(1).collect();
        prop_assert_eq!(answer(&bundled, &stops), answer(&single, &stops));
    }
}

#[tokio::test]
async fn no_choice_starves_another() {
    let (one, two) = (choice(&[]), choice(&[]));
    for _ in 0..3 {
        one.0.try_send(RowEvent::Tokens(vec![464], Usage::default())).unwrap();
        two.0.try_send(RowEvent::Tokens(vec![464], Usage::default())).unwrap();
    }
    let mut choices = Choices::new(vec![one.1, two.1]);
    let mut order = Vec::new();
    for _ in 0..6 {
        let (index, _) = poll_fn(|cx| choices.poll(cx)).await.unwrap();
        order.push(index);
    }
    assert_eq!(order, [0, 1, 0, 1, 0, 1]);
}

#[tokio::test]
async fn one_choice_that_breaks_ends_the_whole_answer() {
    let (one, two) = (choice(&[]), choice(&[]));
    drop(one.0);
    let choices = Choices::new(vec![one.1, two.1]);
    assert_eq!(choices.whole().await, Err(Interrupted::Engine));
    assert!(two.0.is_closed());
}
