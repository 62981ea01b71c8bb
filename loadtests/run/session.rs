//! What one client asks from first to last, and when sessions begin: all of it follows from the
//! seed but for the server's own words, which stand in later turns as they came.

use std::time::Duration;

use serde_json::{Value, json};

use super::scenario::{Arrivals, Load, Scenario};
use crate::prompts::{Random, chat, passage};

/// Beginnings that come again, so that warm prefixes are met.
const FAMILIAR: usize = 40;
/// Longest wait of somebody who hangs up before there is an answer, in milliseconds.
const EARLY_MS: usize = 60;
/// Most pieces of text that somebody reads who hangs up midway.
const MIDWAY: usize = 6;
/// Tokens that somebody asks for beyond others who hangs up before they have come.
const LEAVERS_TOKENS: usize = 200;

/// How a client behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// Reads a stream to its end.
    Streamed,
    /// Waits for the whole answer.
    Whole,
    /// Hangs up after this, often before there is an answer.
    LeavesEarly(Duration),
    /// Hangs up after so many pieces of text.
    LeavesMidway(usize),
    /// Sends what cannot be served.
    Wrong,
}

/// What is new in a turn.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Question(String),
    /// What a tool gave that the last answer is taken to have called.
    Tool {
        name: &'static str,
        argument: String,
        result: String,
    },
}

/// One request of a session.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Turn {
    /// From the end of the answer before; in a closed loop also before the first.
    pub(super) think: Duration,
    pub(super) manner: Manner,
    pub(super) max_tokens: usize,
    said: Said,
    temperature: f64,
    ignore_eos: bool,
    /// Sent in place of all else.
    wrong: Option<String>,
}

/// One client's requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Session {
    pub(super) turns: Vec<Turn>,
    system: Option<String>,
    tools: bool,
}

/// Numbers below this are sessions of one load.
const LOAD: u64 = 1 << 48;
/// … and of one client of it.
const CLIENT: u64 = 1 << 24;

impl Session {
    /// The session of this number of this client of this load: always the same one.
    pub(super) fn new(scenario: &Scenario, load: usize, client: usize, number: usize) -> Self {
        let stream = (load as u64 + 1) * LOAD + client as u64 * CLIENT + number as u64;
        let mut random = Random::new(scenario.seed, stream);
        let of = &scenario.loads[load];
        let system = (of.system_words > 0).then(|| {
            let mut random = Random::new(scenario.seed, (load as u64 + 1) * LOAD - 1);
            passage(&mut random, of.system_words).join(" ")
        });
        let count = within(&mut random, of.turns);
        let turns = (0..count).map(|turn| Turn::new(scenario.seed, of, turn, &mut random));
        Self { turns: turns.collect(), system, tools: of.tools }
    }

    /// The body of a turn, after these answers to those before.
    pub(super) fn body(&self, turn: usize, answers: &[String]) -> String {
        let now = &self.turns[turn];
        if let Some(wrong) = &now.wrong {
            return wrong.clone();
        }
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        for (at, turn) in self.turns[..=turn].iter().enumerate() {
            let before = at.checked_sub(1).and_then(|at| answers.get(at));
            turn.said.write(at, before, &mut messages);
        }
        let mut body = chat("", now.max_tokens, now.temperature);
        body["messages"] = messages.into();
        if self.tools {
            body["tools"] = tools();
        }
        if now.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        if now.manner == Manner::Whole {
            body["stream"] = false.into();
            body.as_object_mut().map(|body| body.remove("stream_options"));
        }
        body.to_string()
    }
}

impl Turn {
    fn new(seed: u64, load: &Load, turn: usize, random: &mut Random) -> Self {
        let seconds = load.think_s.0 + (load.think_s.1 - load.think_s.0) * fraction(random);
        let manner = manner(load, random);
        let words = if turn == 0 { load.words } else { load.more_words() };
        let words = within(random, words);
        let mut text = Vec::new();
        if turn == 0 && random.chance(load.familiar_percent) {
            let familiar = random.below(FAMILIAR);
            text = passage(&mut Random::new(seed ^ 1, familiar as u64), 10 + 2 * familiar);
        }
        text.extend(passage(random, words));
        let text = text.join(" ");
        let said = if turn > 0 && random.chance(load.tool_percent) {
            let name = random.pick(&["read_file", "run_command"]);
            Said::Tool { name, argument: format!("part-{}", random.below(100_000)), result: text }
        } else {
            Said::Question(text)
        };
        let wrong = (manner == Manner::Wrong).then(|| wrong(random));
        // Whoever hangs up does so before the end.
        let beyond = match manner {
            Manner::LeavesEarly(_) | Manner::LeavesMidway(_) => LEAVERS_TOKENS,
            Manner::Streamed | Manner::Whole | Manner::Wrong => 0,
        };
        Self {
            think: Duration::from_secs_f64(seconds),
            manner,
            max_tokens: within(random, load.tokens) + beyond,
            said,
            temperature: random.pick(&load.temperatures),
            ignore_eos: load.ignore_eos,
            wrong,
        }
    }
}

impl Said {
    fn write(&self, turn: usize, before: Option<&String>, messages: &mut Vec<Value>) {
        let answer = before.map_or("", String::as_str);
        match self {
            Self::Question(text) => {
                if turn > 0 {
                    messages.push(json!({"role": "assistant", "content": answer}));
                }
                messages.push(json!({"role": "user", "content": text}));
            }
            Self::Tool { name, argument, result } => {
                let id = format!("call_{turn}");
                let arguments = json!({"target": argument}).to_string();
                let call = json!({"id": id, "type": "function",
                    "function": {"name": name, "arguments": arguments}});
                messages
                    .push(json!({"role": "assistant", "content": answer, "tool_calls": [call]}));
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": result}));
            }
        }
    }
}

fn tools() -> Value {
    let tool = |name: &str, does: &str| {
        json!({"type": "function", "function": {"name": name, "description": does,
            "parameters": {"type": "object", "required": ["target"],
                "properties": {"target": {"type": "string"}}}}})
    };
    json!([tool("read_file", "Reads a file."), tool("run_command", "Runs a command.")])
}

fn within(random: &mut Random, (from, to): (usize, usize)) -> usize {
    from + random.below(to - from + 1)
}

/// Of (0, 1], so that its logarithm is a number.
fn fraction(random: &mut Random) -> f64 {
    ((random.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
}

fn manner(load: &Load, random: &mut Random) -> Manner {
    let drawn = random.below(100);
    let early = load.leave_early_percent;
    let midway = early + load.leave_midway_percent;
    let wrong = midway + load.wrong_percent;
    // All draws are made, so that one share does not change another's requests.
    let (ms, events) = (random.below(EARLY_MS) as u64, 1 + random.below(MIDWAY));
    match drawn {
        _ if drawn < early => Manner::LeavesEarly(Duration::from_millis(ms)),
        _ if drawn < midway => Manner::LeavesMidway(events),
        _ if drawn < wrong => Manner::Wrong,
        _ if drawn < wrong + load.whole_percent => Manner::Whole,
        _ => Manner::Streamed,
    }
}

/// Something that cannot be served.
fn wrong(random: &mut Random) -> String {
    let mut body = chat("Hello.", 4, 0.0);
    match random.below(8) {
        0 => return "{\"messages\": [".into(),
        1 => return String::new(),
        2 => body["messages"] = json!([]),
        3 => body["temperature"] = json!(-1),
        4 => body["max_tokens"] = json!(-5),
        5 => body["no_such_field"] = json!(true),
        6 => body["messages"] = json!([{"role": "nobody", "content": "x"}]),
        _ => body["stop"] = json!({"neither": "text nor list"}),
    }
    body.to_string()
}

/// When sessions of an open loop begin, from the start on; none for a closed one.
pub(super) fn arrivals(scenario: &Scenario, load: usize) -> Vec<Duration> {
    let mut random = Random::new(scenario.seed, load as u64 + 7);
    match scenario.loads[load].arrivals {
        Arrivals::Closed(_) => Vec::new(),
        Arrivals::Poisson(rate) => {
            let next = |at: &f64| Some(at - fraction(&mut random).ln() / rate);
            let times = std::iter::successors(Some(0.0), next).skip(1);
            let within = times.take_while(|&at| at < scenario.seconds);
            within.map(Duration::from_secs_f64).collect()
        }
        Arrivals::Burst { sessions, every_s } => {
            let bursts = (scenario.seconds / every_s).ceil() as usize;
            let at = |burst| Duration::from_secs_f64(burst as f64 * every_s);
            (0..bursts).flat_map(|burst| std::iter::repeat_n(at(burst), sessions)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::tests::{SMALL, parse};
    use super::*;

    fn bodies(scenario: &Scenario) -> Vec<String> {
        let answers: Vec<String> = (0..9).map(|i| format!("answer {i}")).collect();
        let all = (0..3).flat_map(|client| (0..5).map(move |number| (client, number)));
        let sessions = all.map(|(client, number)| Session::new(scenario, 0, client, number));
        let bodies =
            |s: Session| (0..s.turns.len()).map(|turn| s.body(turn, &answers)).collect::<Vec<_>>();
        sessions.flat_map(bodies).collect()
    }

    #[test]
    fn a_seed_gives_the_same_requests_again_and_another_others() {
        let mut scenario = parse(&SMALL.replace(
            "words =",
            "tools = true\ntool_percent = 40\n\
            wrong_percent = 10\nleave_early_percent = 20\nthink_s = [0.0, 2.0]\nwords =",
        ))
        .unwrap();
        let first = bodies(&scenario);
        assert_eq!(first, bodies(&scenario));
        assert_eq!(Session::new(&scenario, 0, 1, 2), Session::new(&scenario, 0, 1, 2));
        scenario.seed += 1;
        let other = bodies(&scenario);
        // What cannot be served is of a few kinds; all else has words of its own.
        assert!(first.iter().all(|body| !body.contains("tools") || !other.contains(body)));
    }

    #[test]
    fn arrivals_follow_from_the_seed_and_come_at_the_rate() {
        let mut scenario =
            parse(&SMALL.replace("closed = 2", "poisson = 50.0").replace("10", "100")).unwrap();
        let all = arrivals(&scenario, 0);
        assert_eq!(all, arrivals(&scenario, 0));
        assert!((4700..5300).contains(&all.len()), "{}", all.len());
        assert!(all.is_sorted() && all.last().is_some_and(|last| last.as_secs() < 100));
        // A Poisson process bunches: a share of 1 - 1/e of its gaps is below the mean.
        let short = |pair: &&[Duration]| pair[1] - pair[0] < Duration::from_millis(20);
        let gaps = all.windows(2).filter(short).count();
        assert!((2900..3400).contains(&gaps), "{gaps}");
        scenario.seed += 1;
        assert_ne!(all, arrivals(&scenario, 0));
    }

    #[test]
    fn bursts_come_all_at_once_and_again() {
        let burst = "burst = { sessions = 3, every_s = 4 }";
        let scenario = parse(&SMALL.replace("closed = 2", burst)).unwrap();
        let seconds: Vec<u64> = arrivals(&scenario, 0).iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [0, 0, 0, 4, 4, 4, 8, 8, 8]);
    }

    #[test]
    fn a_later_turn_begins_with_all_before_it_and_a_tools_result_follows_its_call() {
        let tools = "system_words = 4\ntools = true\ntool_percent = 100\nwords =";
        let scenario = parse(&SMALL.replace("words =", tools)).unwrap();
        let session = Session::new(&scenario, 0, 0, 0);
        let answers: Vec<String> = ["one".into(), "two".into()].into();
        let messages = |turn| {
            let body: Value = serde_json::from_str(&session.body(turn, &answers)).unwrap();
            assert!(body["tools"].is_array());
            body["messages"].as_array().cloned().unwrap()
        };
        let (first, second) = (messages(0), messages(1));
        assert_eq!(first[..], second[..first.len()]);
        let roles: Vec<_> = second.iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(
            (&second[2]["content"], &second[3]["tool_call_id"]),
            (&json!("one"), &second[2]["tool_calls"][0]["id"])
        );
    }

    #[test]
    fn all_manners_come_as_often_as_they_should() {
        let shares = "whole_percent = 20\nleave_early_percent = 20\nleave_midway_percent = 20\n\
                      wrong_percent = 20\nwords =";
        let scenario = parse(&SMALL.replace("words =", shares)).unwrap();
        let mut counts = [0; 5];
        for number in 0..500 {
            for turn in Session::new(&scenario, 0, 0, number).turns {
                counts[match turn.manner {
                    Manner::Streamed => 0,
                    Manner::Whole => 1,
                    Manner::LeavesEarly(_) => 2,
                    Manner::LeavesMidway(_) => 3,
                    Manner::Wrong => 4,
                }] += 1;
            }
        }
        assert!(counts.iter().all(|&n| n > 220), "{counts:?}");
    }
}
