//! What memory is needed is said beforehand, and what it cannot hold is refused.

use serde_json::{Value, json};

use crate::house::{House, mtplx, question};

fn plan(args: &[&str]) -> String {
    let out = mtplx().arg("plan").args(args).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

#[test]
fn the_plan_adds_up_and_says_what_would_fit() {
    let args = ["--context", "4096", "--clients", "4", "--memory", "8", "--json"];
    let told: Value = serde_json::from_str(&plan(&args)).unwrap();
    let bytes = |name: &str| told["bytes"][name].as_u64().unwrap();
    // Two attention layers and the head; 2 heads of 128 for keys and for values, in the 4 bytes
    // that the CPU computes in.
    assert_eq!(bytes("kv_token"), 3 * 2 * 2 * 128 * 4);
    assert_eq!(bytes("kv"), 4 * 4096 * bytes("kv_token"));
    // Six layers of 4 heads of 128 x 128 in 4 bytes; on the CPU there is a spare slot, in which
    // states are set aside.
    let slots = 4 + told["wish"]["spare_slots"].as_u64().unwrap();
    assert_eq!(slots, 4 + u64::from(cfg!(target_os = "linux")));
    assert_eq!(bytes("states"), slots * 6 * 4 * 128 * 128 * 4);
    assert_eq!(bytes("budget"), 6 << 30);
    assert_eq!(told["fits"], true);
    let table = plan(&["--context", "4096", "--memory", "0.0625"]);
    assert!(table.contains("weights") && table.contains("it does not fit"), "{table}");
    let narrow = plan(&["--context", "4096", "--clients", "64", "--memory", "8"]);
    assert!(narrow.contains("engine.slots is 8: 64 at once need more"), "{narrow}");
    let out = mtplx().args(["plan", "--memory", "0"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("--memory"));
}

/// What is concluded. Figures are of the device: what is said with them is not.
fn without_figures(text: &str) -> String {
    let mut shown = String::new();
    for line in text.lines().skip_while(|line| !line.starts_with("budget")).skip(2) {
        let words =
            line.split_whitespace().map(|word| match word.trim_end_matches(',').parse::<f64>() {
                Ok(_) => "N",
                Err(_) => word,
            });
        shown.push_str(&format!("{}\n", words.collect::<Vec<_>>().join(" ")));
    }
    shown
}

#[test]
fn a_plan_warns_of_a_small_machine_and_names_what_would_fit_a_full_one() {
    let wish = ["--context", "65536", "--clients", "4", "--memory"];
    let cases = [("fits", "64"), ("tight", "40"), ("too-large", "1.5"), ("hopeless", "0.01")];
    for (name, memory) in cases {
        let text = plan(&[&wish[..], &[memory]].concat());
        crate::commands::snapshot(&format!("plan-{name}"), &without_figures(&text));
        let told = plan(&[&wish[..], &[memory, "--json"]].concat());
        let told: Value = serde_json::from_str(&told).unwrap();
        crate::commands::fits("plan", &told);
        let status = told["verdict"]["status"].as_str().unwrap();
        assert_eq!(status, if name == "hopeless" { "too-large" } else { name });
        assert_eq!(told["verdict"]["warning"].is_null(), status == "fits", "{told}");
    }
}

#[test]
fn a_request_beyond_the_budget_is_refused_and_the_server_lives_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    std::fs::write(&path, "[engine]\nmemory_budget = 1\n").unwrap();
    let house = House::start(&["--config", path.to_str().unwrap()]);
    for _ in 0..2 {
        let (status, told) = house.post("/v1/chat/completions", &question("Hi"));
        assert_eq!((status, &told["error"]["code"]), (503, &json!("insufficient_memory")));
        let message = told["error"]["message"].as_str().unwrap();
        assert!(message.contains("engine.memory_budget"), "{message}");
    }
    assert_eq!(house.metric_of("mtplx_refusals_total", "reason=\"memory\""), 2.0);
}

#[test]
fn memory_in_use_and_its_budget_are_measured() {
    let house = House::start(&[]);
    let (status, _) = house.post("/v1/chat/completions", &question("Hi"));
    assert_eq!(status, 200);
    let (used, budget) =
        (house.metric("mtplx_memory_used_bytes"), house.metric("mtplx_memory_budget_bytes"));
    // At least the weights.
    assert!(used > 30e6 && used < budget, "{used} of {budget}");
}
