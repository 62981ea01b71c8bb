//! Dashboards and rules: they name what there is and draw all of it, Grafana's published types take
//! them, and a real Prometheus that watches the real server has data for every panel.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{House, Over, block, question, root};

/// Metrics that no panel draws, each with its reason.
const UNDRAWN: [(&str, &str); 0] = [];

/// Queries that have no data on some machines, each with its reason.
const EMPTY: [(&str, &str); 12] = [
    ("mtplx_temperature_celsius", "machines without a sensor"),
    ("mtplx_thermal_pressure_ratio", "machines that do not tell it"),
    ("mtplx_sensor_celsius", "machines without a sensor"),
    ("mtplx_sensor_watts", "machines without a meter"),
    ("mtplx_sensor_megahertz", "virtual machines"),
    ("mtplx_sensor_busy_ratio", "machines that do not tell it"),
    ("mtplx_sensor_fan_rpm", "machines without fans"),
    ("mtplx_sensor_fan_ratio", "machines without fans"),
    ("mtplx_node_rows", "a machine that serves alone"),
    ("mtplx_node_state_ratio", "a machine that serves alone"),
    ("mtplx_node_rtt_seconds", "a machine that serves alone"),
    ("mtplx_kernel_enabled_ratio", "CPUs, where no kernel has to pass a trial"),
];

const BOARDS: [&str; 5] = ["overview", "engine", "bank", "team", "thermal-tuner"];

fn folder() -> PathBuf {
    root().join("dashboards")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap()
}

/// Title of board and panel, and each of its queries.
fn queries() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in BOARDS {
        let board: Value = serde_json::from_str(&read(&format!("{name}.json"))).unwrap();
        for panel in board["panels"].as_array().unwrap() {
            let title = format!("{name}: {}", panel["title"].as_str().unwrap());
            for target in panel["targets"].as_array().unwrap() {
                all.push((title.clone(), target["expr"].as_str().unwrap().to_owned()));
            }
        }
    }
    all
}

/// Metrics that a text names, without what histograms put behind.
fn named(text: &str) -> BTreeSet<String> {
    let known: BTreeSet<&str> = mtplx_actors::metrics::ALL.iter().map(|m| m.name).collect();
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("mtplx_"))
        .map(|word| {
            let stem = ["_bucket", "_sum", "_count"].iter().find_map(|s| word.strip_suffix(s));
            stem.filter(|stem| known.contains(stem)).unwrap_or(word).to_owned()
        })
        .collect()
}

#[test]
fn every_drawn_metric_exists_and_every_metric_is_drawn() {
    let known: BTreeSet<String> =
        mtplx_actors::metrics::ALL.iter().map(|m| m.name.to_owned()).collect();
    let all: String = queries().into_iter().map(|(_, expr)| format!("{expr}\n")).collect();
    let drawn = named(&all);
    let unknown: Vec<_> = drawn.difference(&known).collect();
    assert!(unknown.is_empty(), "drawn, but there is no such metric: {unknown:?}");
    let excused: BTreeSet<String> = UNDRAWN.iter().map(|(name, _)| (*name).to_owned()).collect();
    let forgotten: Vec<_> = known.difference(&drawn).filter(|n| !excused.contains(*n)).collect();
    assert!(forgotten.is_empty(), "no panel draws {forgotten:?}; see dashboards/make.py");
    let needless: Vec<_> = excused.intersection(&drawn).collect();
    assert!(needless.is_empty(), "excused, and yet drawn: {needless:?}");
    let script = root().join("actors/ingress/dashboard/page.js");
    for text in [read("rules.yml"), std::fs::read_to_string(script).unwrap()] {
        let unknown: Vec<_> = named(&text).into_iter().filter(|n| !known.contains(n)).collect();
        assert!(unknown.is_empty(), "named, but there is no such metric: {unknown:?}");
    }
}

#[test]
fn every_alert_is_explained() {
    let (rules, readme) = (read("rules.yml"), read("README.md"));
    let alerts: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(readme.contains(&format!("`{alert}`")), "{alert} is not in the README");
        assert!(read("rules-test.yml").contains(alert), "{alert} is not tested");
    }
}

#[test]
fn the_dashboards_are_what_their_tables_say() {
    let made = Command::new("python3").arg(folder().join("make.py")).arg("--check").output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn grafanas_published_types_take_every_dashboard() {
    if Command::new("node").arg("--version").output().is_err() {
        println!("NOT JUDGED: there is no node on this machine");
        return;
    }
    crate::openai::make("judges-js");
    let judge = root().join(".native/judges-js/dashboards.mjs");
    let out = Command::new("node").arg(judge).arg(folder()).output().unwrap();
    let said = [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(out.status.success(), "{}", said.concat());
    println!("{}", said.concat());
}

/// A program of Prometheus's, if this machine has it or Debian gives it.
pub fn prometheus(program: &str) -> Option<PathBuf> {
    // What is wrong is told by its absence.
    let _ = Command::new("make").args(["--silent", "prometheus"]).current_dir(root()).output();
    let own = root().join(".native/prometheus/usr/bin").join(program);
    let found = [PathBuf::from(program), own].into_iter();
    let mut found = found.filter(|p| Command::new(p).arg("--version").output().is_ok());
    let program = found.next();
    if program.is_none() {
        println!("NOT JUDGED: there is no Prometheus on this machine, and `make prometheus` fails");
    }
    program
}

#[test]
fn promtool_takes_the_rules_and_they_pass_their_tests() {
    let Some(promtool) = prometheus("promtool") else { return };
    for words in [["check", "rules", "rules.yml"], ["test", "rules", "rules-test.yml"]] {
        let out = Command::new(&promtool).args(words).current_dir(folder()).output().unwrap();
        let said = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
        assert!(out.status.success(), "{}", said.concat());
    }
}

/// A Prometheus that watches a server each second.
struct Watcher {
    child: Child,
    url: String,
}

impl Watcher {
    fn start(program: PathBuf, house: &House, files: &std::path::Path) -> Self {
        let target = house.url.trim_start_matches("http://");
        let rules = folder().join("rules.yml");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
            "rule_files": [rules],
            "scrape_configs": [{"job_name": "mtplx", "static_configs": [{"targets": [target]}]}],
        });
        // JSON is YAML, too.
        let file = files.join("prometheus.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        // Free now, and taken in a moment.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", files.join("series").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, url: format!("http://127.0.0.1:{port}/api/v1") }
    }

    fn get(&self, path: &str) -> Value {
        block(async {
            match reqwest::get(format!("{}/{path}", self.url)).await {
                Ok(answer) => answer.json().await.unwrap_or_default(),
                Err(_) => Value::Null,
            }
        })
    }

    /// What a query gives now.
    fn ask(&self, query: &str) -> Value {
        let mut coded = String::new();
        for byte in query.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => coded.push(byte.into()),
                _ => coded += &format!("%{byte:02X}"),
            }
        }
        self.get(&format!("query?query={coded}"))
    }

    /// Its rules, of all groups.
    fn rules(&self) -> Vec<Value> {
        let answer = self.get("rules");
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|g| g["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Whether a query has a number to show.
    fn draws(&self, query: &str) -> bool {
        let query = query.replace("$__rate_interval", "30s");
        let answer = self.ask(&query);
        let rows = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let value = |row: &Value| row["value"][1].as_str().and_then(|v| v.parse::<f64>().ok());
        rows.iter().filter_map(value).any(f64::is_finite)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Chats that grow, long prompts beside them, more clients than slots, and one who asks nonsense.
pub fn mixed(house: &House, over: &AtomicBool) {
    let chat = |body: &Value| house.post("/v1/chat/completions", body);
    let going = || !over.load(Ordering::Relaxed);
    std::thread::scope(|s| {
        for client in 0..3 {
            s.spawn(move || {
                let mut turn = 0;
                while going() {
                    turn += 1;
                    let words = "and then the dragon slept ".repeat(1 + turn % 8);
                    let text = format!("Tell me story {client} of a dragon, {words}.");
                    let mut body = question(&text);
                    body["max_tokens"] = 24.into();
                    chat(&body);
                }
            });
        }
        s.spawn(|| {
            let mut round = 0;
            while going() {
                round += 1;
                let mut body = question(&format!("{round} {}", "a brave cat ".repeat(150)));
                body["max_tokens"] = 4.into();
                chat(&body);
                chat(&json!({"messages": "nonsense"}));
                house.get("/nowhere");
                std::thread::sleep(Duration::from_millis(300));
            }
        });
    });
}

#[test]
fn every_panel_has_data_while_a_real_prometheus_watches_a_mixed_load() {
    let Some(program) = prometheus("prometheus") else { return };
    let files = tempfile::tempdir().unwrap();
    let disk = files.path().join("disk");
    let settings = files.path().join("my.toml");
    let text = format!(
        "[engine]\nslots = 2\n[bank]\nidle_s = 600\n[disk]\npath = {disk:?}\nidle_s = 1\n\
         tokens_min = 16\n[thermal]\nsample_s = 1.0\ntimeout_s = 0.5\n"
    );
    std::fs::write(&settings, text).unwrap();
    let house = House::start(&["--config", &settings.display().to_string()]);
    let watcher = Watcher::start(program, &house, files.path());
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let mut empty: Vec<(String, String)> = queries();
    empty.retain(|(_, query)| !EMPTY.iter().any(|(name, _)| query == name));
    std::thread::scope(|s| {
        s.spawn(|| mixed(&house, &over));
        let _over = Over(&over);
        // Rates want some scrapes, and states some idle time before they are written.
        while !empty.is_empty() && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_secs(2));
            empty.retain(|(_, query)| !watcher.draws(query));
        }
    });
    assert!(empty.is_empty(), "no data for {empty:#?}");
    // A group is first evaluated at an offset of its own, which may lie behind the last query.
    let rules = loop {
        let rules = watcher.rules();
        let waits = rules.iter().any(|rule| rule["health"] == "unknown");
        if !rules.is_empty() && !waits || began.elapsed() > Duration::from_secs(120) {
            break rules;
        }
        std::thread::sleep(Duration::from_secs(1));
    };
    assert!(rules.len() > 20, "{rules:?}");
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    println!("{} queries had data after {:?}", queries().len(), began.elapsed());
}
