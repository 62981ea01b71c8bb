//! Settings that change while the house stands.

use super::*;
use crate::thermal::Quantity;

struct Hot;

impl Sensor for Hot {
    fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        reading.add(Quantity::Celsius, "test", "die", 99.0);
        reading
    }
}

impl World {
    async fn rows_max(&self, expected: usize) {
        let reached = async {
            while self.overview().await.tuner.is_none_or(|t| t.rows_max != expected) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("it is told");
    }
}

#[tokio::test]
async fn new_settings_reach_everybody_and_hold_for_the_next_engine() {
    let mut new = configs();
    (new.thermal.sample_s, new.thermal.timeout_s) = (0.1, 0.05);
    let mut world = build(new, Arc::new(|| Box::new(Hot)), breaking(1)).await;
    world.rows_max(2).await;
    (new.tuner.rows_max, new.bank.entries_max) = (4, 0);
    world.house.root().cast(Message::Configure(Box::new(new))).unwrap();
    // What it learnt is gone, the heat is not.
    world.rows_max(1).await;
    let cut = world.ask(1, request(1, &[1, 2, 3], 200)).await;
    assert_eq!(cut.hear().await.end, None);
    world.ask(2, request(2, &[1, 2, 3], 40)).await.hear_truth().await;
    world.rows_max(1).await;
    new.tuner.rows_max = 8;
    world.house.root().cast(Message::Configure(Box::new(new))).unwrap();
    world.rows_max(2).await;
}
