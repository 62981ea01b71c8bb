//! The small model under random schemas, drafting, eight at a time: every answer is valid. There
//! are 64 of them, or as many as the environment's `MTPLX_SCHEMAS` says.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::house::House;

#[path = "../actors/ingress/grammar/tests/schemas.rs"]
mod schemas;

use schemas::{Chance, schema};

#[test]
fn the_small_model_keeps_random_schemas() {
    let requests = std::env::var("MTPLX_SCHEMAS").map_or(64, |count| count.parse().unwrap());
    let house = House::shared();
    let mut chance = Chance::new(11);
    let schemas: Vec<Value> = (0..requests).map(|_| schema(&mut chance, 3)).collect();
    let (next, drafted, accepted) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(schema) = schemas.get(i) else { return };
            let temperature = [0.0, 0.7, 1.0][i % 3];
            let (status, answer) = house.post(
                "/v1/chat/completions",
                &json!({
                    "messages": [{"role": "user", "content": "Describe a dragon as JSON."}],
                    "response_format": {"type": "json_schema",
                        "json_schema": {"name": "answer", "schema": schema}},
                    "temperature": temperature,
                    // The same texts in every run: a small model may, by bad luck, write the digits
                    // of a number for ever, which a schema allows.
                    "seed": i,
                    // Room for every answer with all the white space that there may be in it.
                    "max_tokens": 3000,
                    "generation_mode": "mtp",
                }),
            );
            assert_eq!(status, 200, "{answer}");
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
            assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{schema}: {text}");
            let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert!(jsonschema::is_valid(schema, &value), "{value} of {schema}");
            let count = |key: &str| answer["mtp"][key].as_u64().unwrap() as usize;
            drafted.fetch_add(count("drafted"), Ordering::Relaxed);
            accepted.fetch_add(count("accepted"), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        (0..8).for_each(|_| drop(scope.spawn(work)));
    });
    let (drafted, accepted) = (drafted.into_inner(), accepted.into_inner());
    println!("{requests} valid; {accepted} of {drafted} drafts accepted");
    assert!(accepted * 4 > drafted && drafted > 100, "{accepted} of {drafted}");
}
