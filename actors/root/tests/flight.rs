//! What is kept of an engine that breaks.

use serde_json::{Value, json};

use super::*;

/// Panics at its fifth step, in its first life.
struct Brittle(Scripted, bool);

impl Engine for Brittle {
    fn info(&self) -> &EngineInfo {
        self.0.info()
    }

    fn run(&mut self, plan: &Plan, rows: &Rows) -> Result<Outcome, Fault> {
        assert!(self.1 || plan.step < 5, "the script panics");
        self.0.run(plan, rows)
    }
}

#[tokio::test]
async fn the_last_cycles_of_an_engine_that_panicked_are_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let lives = AtomicU32::new(0);
    let open = Arc::new(move || Ok(Brittle(small(), lives.fetch_add(1, Ordering::Relaxed) > 0)));
    let (tell, mut told) = watch::channel((0, None));
    let flight = crate::flight::Config { path: folder.path().to_owned(), cycles: 3, files_max: 2 };
    let sensor: MakeSensor = Arc::new(|| Box::new(Numb));
    let door = Arc::new(Lobby(tell));
    let (configs, store) = (configs(), None);
    let blueprint = Blueprint { configs, open, sensor, store, notes: None, flight, door };
    let house = start(blueprint).await.unwrap();
    let serving = |times: u32| move |(n, now): &Told| *n >= times && now.is_some();
    let bank = told.wait_for(serving(1)).await.unwrap().1.clone().unwrap();
    let permits = Arc::new(Semaphore::new(1));
    let secret: [mtplx_core::Token; 3] = [29, 28, 27];
    let (admission, guest) = admit(&permits, request(77, &secret, 500)).await;
    bank.cast(bank::Message::Open(admission)).unwrap();
    assert_eq!(guest.hear().await.end, None);
    told.wait_for(serving(2)).await.unwrap();
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let text = std::fs::read_to_string(files[0].path()).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["generation"], &lines[0]["part"]), (&json!(1), &json!("decode")));
    assert!(lines[0]["reason"].as_str().unwrap().contains("the script panics"), "{text}");
    let steps: Vec<_> = lines[1..].iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [3, 4, 5]);
    // The one that broke it never came back, and its row is named, not what stands in it.
    assert_eq!((&lines[2]["ran"].is_object(), &lines[3]["ran"]), (&true, &Value::Null));
    assert_eq!(lines[3]["rows"][0]["request"], 77);
    assert!(!text.contains("token") && !text.contains("[29"), "{text}");
    house.drain(LONG);
}
