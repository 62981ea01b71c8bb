//! Fans that are held at their most are given back, however a server ends. A stand-in plays
//! ThermalForge: a script that keeps its state in a file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::commands::fits;
use crate::consent::{answers, end, terminal};
use crate::house::{House, mtplx, question};

const STAND_IN: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
if [ "$1" = max ] && [ -e slow ]; then touch begun && sleep 6; fi
if [ "$1" = auto ] && [ -e refuse ]; then exit 1; fi
case "$1" in
max | auto) echo "$1" > state.new && mv state.new state && echo "$1" >> orders ;;
status)
    rpm=2000
    if [ "$(cat state)" = max ] && [ ! -e stuck ]; then rpm=5900; fi
    echo "{\"fans\": [{\"actual_rpm\": $rpm, \"max_rpm\": 6000, \"mode\": \"$(cat state)\"}]}" ;;
*) exit 2 ;;
esac
"#;

/// A machine with fans.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(settings: &str) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        let path = machine.path();
        let program = path.join("thermalforge");
        std::fs::write(&program, STAND_IN).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(path.join("state"), "auto\n").unwrap();
        for (name, mode) in [("max.toml", "max"), ("auto.toml", "auto")] {
            let text = format!(
                "[fans]\nmode = \"{mode}\"\nprogram = {program:?}\nsudo = false\nfolder = {:?}\n\
                 {settings}\n",
                path.join("shared")
            );
            std::fs::write(path.join(name), text).unwrap();
        }
        machine
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn serve(&self, mode: &str) -> House {
        let config = self.path().join(format!("{mode}.toml"));
        House::start(&["--config", config.to_str().unwrap()])
    }

    fn command(&self, what: &[&str]) -> (bool, String) {
        let config = self.path().join("max.toml");
        let out = mtplx().arg("max").args(what).arg("--config").arg(config).output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    fn state(&self) -> String {
        std::fs::read_to_string(self.path().join("state")).unwrap().trim().to_owned()
    }

    fn marked(&self) -> bool {
        self.path().join("shared/fans.pinned").exists()
    }

    /// How long it took until the fans were so.
    fn until(&self, state: &str) -> Duration {
        let began = Instant::now();
        while self.state() != state {
            assert!(began.elapsed() < Duration::from_secs(60), "never {state}");
            std::thread::sleep(Duration::from_millis(10));
        }
        began.elapsed()
    }

    /// The mark goes after the fans were given back.
    fn until_unmarked(&self) {
        let began = Instant::now();
        while self.marked() {
            assert!(began.elapsed() < Duration::from_secs(30), "the mark stays");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Processes that watch over this machine's fans.
    fn watchdogs(&self) -> Vec<u32> {
        let out = Command::new("ps").args(["-eo", "pid=,stat=,args="]).output().unwrap();
        let all = String::from_utf8_lossy(&out.stdout).into_owned();
        let own = self.path().display().to_string();
        let words = all.lines().filter(|line| line.contains("fan-watchdog") && line.contains(&own));
        let words = words.map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.filter(|w| !w[1].starts_with('Z')).map(|w| w[0].parse().unwrap()).collect()
    }
}

fn signal(name: &str, process: u32) {
    let done = Command::new("kill").args([name, &process.to_string()]).status().unwrap();
    assert!(done.success(), "kill {name} {process}");
}

fn fans(house: &House) -> Value {
    let health: Value = serde_json::from_str(&house.get("/health").1).unwrap_or_default();
    health["heat"]["fans"].clone()
}

#[test]
fn a_killed_server_leaves_no_fan_pinned() {
    let kills = std::env::var("MTPLX_KILLS").map_or(3, |kills| kills.parse().unwrap());
    let machine = Machine::new("");
    let mut slowest = Duration::ZERO;
    for i in 0..kills {
        let mut house = machine.serve("max");
        machine.until("max");
        if i % 3 > 0 {
            // Otherwise it is killed while it waits for them to rise.
            house.eventually("at their most", |h| fans(h) == "max");
        }
        house.child.kill().unwrap();
        let took = machine.until("auto");
        assert!(took < Duration::from_secs(3), "kill {i}: {took:?}");
        slowest = slowest.max(took);
        house.child.wait().unwrap();
    }
    println!("{kills} kills: back to auto within {slowest:?}");
    machine.until_unmarked();
}

#[test]
fn an_order_that_outlives_its_server_is_waited_for_before_the_fans_are_given_back() {
    let machine = Machine::new("");
    std::fs::write(machine.path().join("slow"), "").unwrap();
    let mut house = machine.serve("max");
    house.eventually("told", |_| machine.path().join("begun").exists());
    house.child.kill().unwrap();
    machine.until_unmarked();
    let orders = std::fs::read_to_string(machine.path().join("orders")).unwrap();
    assert_eq!((orders.as_str(), machine.state().as_str()), ("max\nauto\n", "auto"));
}

#[test]
fn a_server_that_ends_in_order_gives_the_fans_back_itself() {
    let machine = Machine::new("");
    let mut house = machine.serve("max");
    house.eventually("at their most", |h| fans(h) == "max");
    assert_eq!(house.metric("mtplx_fans_pinned_ratio"), 1.0);
    let watchdogs = machine.watchdogs();
    let [watchdog] = watchdogs[..] else { panic!("{watchdogs:?}") };
    let session = |process: u32| {
        let ps = Command::new("ps").args(["-o", "sid=", "-p", &process.to_string()]).output();
        String::from_utf8_lossy(&ps.unwrap().stdout).trim().to_owned()
    };
    assert_eq!(session(watchdog), watchdog.to_string(), "no terminal reaches it");
    signal("-TERM", house.child.id());
    assert!(house.child.wait().unwrap().success());
    assert_eq!((machine.state().as_str(), machine.marked()), ("auto", false));
    let began = Instant::now();
    while !machine.watchdogs().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(10), "a watchdog stays");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_watchdog_is_replaced_and_what_both_leave_is_undone_at_the_next_start() {
    let machine = Machine::new("");
    let mut house = machine.serve("max");
    house.eventually("at their most", |h| fans(h) == "max");
    let first = machine.watchdogs();
    signal("-KILL", first[0]);
    house.eventually("watched again", |_| {
        let now = machine.watchdogs();
        now.len() == 1 && now != first
    });
    house.eventually("counted", |h| h.metric("mtplx_fan_watchdogs_total") == 2.0);
    // Stopped, it cannot start another.
    signal("-STOP", house.child.id());
    signal("-KILL", machine.watchdogs()[0]);
    house.child.kill().unwrap();
    house.child.wait().unwrap();
    assert_eq!((machine.state().as_str(), machine.marked()), ("max", true));
    let (_, said) = machine.command(&["--status"]);
    assert!(said.contains("left pinned"), "{said}");
    let _next = machine.serve("auto");
    machine.until("auto");
    machine.until_unmarked();
}

#[test]
fn two_servers_hold_the_fans_together_and_the_last_gives_back() {
    let machine = Machine::new("");
    let (mut first, mut second) = (machine.serve("max"), machine.serve("max"));
    first.eventually("at their most", |h| fans(h) == "max");
    second.eventually("at their most", |h| fans(h) == "max");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(machine.state(), "max", "the second is served with them");
    second.child.kill().unwrap();
    assert!(machine.until("auto") < Duration::from_secs(3));
}

#[test]
fn idle_fans_are_given_back_and_rise_with_the_next_request() {
    let machine = Machine::new("idle_s = 2.0");
    let house = machine.serve("max");
    let orders = || std::fs::read_to_string(machine.path().join("orders")).unwrap_or_default();
    house.eventually("idle", |h| fans(h) == "idle");
    assert_eq!((orders().as_str(), machine.marked()), ("max\nauto\n", false), "both came before");
    let mut body = question("Tell me a long story about a dragon.");
    body["ignore_eos"] = json!(true);
    // Long enough to be seen by who looks twice a second.
    body["max_tokens"] = json!(3000);
    assert_eq!(house.post("/v1/chat/completions", &body).0, 200);
    house.eventually("told to rise again", |_| orders().starts_with("max\nauto\nmax\n"));
    house.eventually("idle again", |_| orders() == "max\nauto\nmax\nauto\n");
}

#[test]
fn fans_that_could_not_be_given_back_are_tried_again_though_nobody_asks() {
    let machine = Machine::new("idle_s = 2.0");
    let house = machine.serve("max");
    machine.until("max");
    std::fs::write(machine.path().join("refuse"), "").unwrap();
    house.eventually("failed", |h| fans(h) == "failed");
    assert!(machine.marked() && machine.state() == "max");
    std::fs::remove_file(machine.path().join("refuse")).unwrap();
    machine.until("auto");
    house.eventually("idle", |h| fans(h) == "idle");
    machine.until_unmarked();
}

#[test]
fn fans_that_do_not_rise_are_a_failure_that_is_told_and_given_back() {
    let machine = Machine::new("ramp_s = 1.0");
    std::fs::write(machine.path().join("stuck"), "").unwrap();
    let house = machine.serve("max");
    house.eventually("told as failed", |h| fans(h) == "failed");
    assert_eq!((machine.state().as_str(), machine.marked()), ("auto", false));
    assert!(house.log().iter().any(|line| line.contains("did not rise")), "{:?}", house.log());
}

#[test]
fn a_person_sees_how_fans_stand_and_takes_them_off_a_server() {
    let machine = Machine::new("");
    let house = machine.serve("max");
    house.eventually("at their most", |h| fans(h) == "max");
    let (_, said) = machine.command(&["--status", "--json"]);
    let status: Value = serde_json::from_str(&said).unwrap();
    fits("max", &status);
    assert_eq!((&status["held"], &status["fans"][0]["actual_rpm"]), (&json!(true), &json!(5900.0)));
    assert!(machine.command(&["--off"]).0);
    assert_eq!(machine.state(), "auto");
    house.eventually("told as off", |h| fans(h) == "off");
    let (_, said) = machine.command(&["--off", "--json"]);
    fits("max off", &serde_json::from_str(&said).expect("twice does no harm"));
    assert!(!machine.command(&[]).0, "it wants to know what");
}

#[test]
fn a_rule_is_written_with_consent_only_and_fans_are_heard_before_it_is_called_done() {
    let machine = Machine::new("ramp_s = 1.0");
    let rules = machine.path().join("sudoers.d");
    std::fs::create_dir(&rules).unwrap();
    let rules = rules.to_str().unwrap();
    let (done, said) = machine.command(&["--install", "--sudoers", rules]);
    assert!(!done && !Path::new(rules).join("mtplx").exists(), "{said}");
    if machine.path().metadata().unwrap().uid() != 0 {
        // Only root owns what only root can exchange.
        assert!(said.contains("others than root"), "{said}");
        return;
    }
    assert!(said.contains("NOPASSWD") && said.contains("--yes"), "{said}");
    for no in ["no\r", "y\r", "\r"] {
        let mut command = mtplx();
        command.args(["max", "--install", "--sudoers", rules, "--config"]);
        command.arg(machine.path().join("max.toml"));
        let mut asked = terminal(command, machine.path());
        answers(&mut asked, "Type yes to write it:", no);
        let (said, code) = end(asked);
        assert!(code == Some(3) && said.contains("nothing was changed"), "{no:?}: {said}");
        assert!(!Path::new(rules).join("mtplx").exists() && machine.state() == "auto");
    }
    for again in ["is in place", "was there already"] {
        let (done, said) = machine.command(&["--install", "--yes", "--sudoers", rules]);
        assert!(done && said.contains(again) && said.contains("the fans rise"), "{said}");
        assert_eq!((machine.state().as_str(), machine.marked()), ("auto", false));
    }
    let (_, said) = machine.command(&["--install", "--yes", "--json", "--sudoers", rules]);
    // Behind the report is what people were told meanwhile.
    let report = serde_json::Deserializer::from_str(&said).into_iter().next();
    fits("max install", &report.unwrap().unwrap());
    std::fs::write(machine.path().join("stuck"), "").unwrap();
    let (done, said) = machine.command(&["--install", "--yes", "--sudoers", rules]);
    assert!(!done && said.contains("did not rise"), "{said}");
    assert_eq!(machine.state(), "auto");
    let (_, said) = machine.command(&["--uninstall", "--sudoers", rules, "--json"]);
    fits("max uninstall", &serde_json::from_str(&said).unwrap());
    assert!(!Path::new(rules).join("mtplx").exists());
}
