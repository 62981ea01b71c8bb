//! Every metric that a dashboard draws exists.

use std::collections::BTreeSet;

use crate::house::root;

#[test]
fn every_drawn_metric_exists() {
    let known: BTreeSet<&str> = mtplx_actors::metrics::ALL.iter().map(|m| m.name).collect();
    let text = std::fs::read_to_string(root().join("dashboards/mtplx.json")).unwrap();
    let board: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = board["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|p| p["targets"].as_array().unwrap());
    let mut drawn = 0;
    for target in targets {
        let expr = target["expr"].as_str().unwrap();
        let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        for name in words.filter(|w| w.starts_with("mtplx_")) {
            let stem = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
            assert!(known.contains(name) || stem.is_some_and(|s| known.contains(s)), "{name}");
            drawn += 1;
        }
    }
    assert!(drawn > 10);
}
