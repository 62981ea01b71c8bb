//! How ThermalForge is spoken to: `max`, `auto`, `status`.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::pin::Hold;

/// It waits for the system to let go of each fan, up to ten seconds.
pub(super) const ORDER_TIME: Duration = Duration::from_secs(40);
/// It only reads.
const STATUS_TIME: Duration = Duration::from_secs(5);
const LOOK_TIME: Duration = Duration::from_millis(20);

/// ThermalForge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) sudo: bool,
}

/// A fan as it says.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Fan {
    pub(super) actual_rpm: f64,
    #[serde(default)]
    pub(super) max_rpm: f64,
    #[serde(default)]
    pub(super) mode: String,
}

#[derive(Deserialize)]
struct Status {
    fans: Vec<Fan>,
}

impl Program {
    /// All they can. The lock goes along as its standard input, so that it holds until the program
    /// has ended: it takes its time, and whoever gave the fans back before that would be too early.
    pub(super) fn max(&self, hold: &Hold) -> Result<()> {
        self.run("max", ORDER_TIME, hold.share()?).map(drop)
    }

    /// What the machine wants.
    pub(super) fn auto(&self) -> Result<()> {
        self.run("auto", ORDER_TIME, Stdio::null()).map(drop)
    }

    /// How fast they turn.
    pub(super) fn fans(&self) -> Result<Vec<Fan>> {
        let said = self.run("status", STATUS_TIME, Stdio::null())?;
        let status: Status = serde_json::from_str(&said).context("its status is not understood")?;
        Ok(status.fans)
    }

    fn run(&self, order: &str, limit: Duration, input: Stdio) -> Result<String> {
        let shown = self.path.display();
        let mut command = match self.sudo {
            true => {
                let mut sudo = Command::new("sudo");
                sudo.arg("-n").arg(&self.path);
                sudo
            }
            false => Command::new(&self.path),
        };
        command.arg(order).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("cannot run {shown} {order}"))?;
        let (fine, said, complained) = wait(child, limit)?;
        if !fine {
            let complained = complained.trim();
            bail!("{shown} {order} failed: {complained}{}", self.advice(complained));
        }
        Ok(said)
    }

    fn advice(&self, complained: &str) -> &'static str {
        let refused = self.sudo && complained.contains("password");
        if refused { " (`mtplx max --install` lets the server run it)" } else { "" }
    }
}

/// Its end and what it said, of which there is little; killed if it takes too long.
fn wait(mut child: Child, limit: Duration) -> Result<(bool, String, String)> {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > limit {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
            bail!("it did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(LOOK_TIME);
    };
    let (mut said, mut complained) = (String::new(), String::new());
    if let Some(out) = &mut child.stdout {
        out.read_to_string(&mut said)?;
    }
    if let Some(out) = &mut child.stderr {
        out.read_to_string(&mut complained)?;
    }
    Ok((status.success(), said, complained))
}

/// Whether they are heard: near their most, or, where that is not told, clearly faster than before.
pub(super) fn have_risen(before: &[Fan], now: &[Fan]) -> bool {
    let risen = |(i, fan): (usize, &Fan)| match fan.max_rpm > 0.0 {
        true => fan.actual_rpm >= 0.85 * fan.max_rpm,
        false => before.get(i).is_some_and(|before| fan.actual_rpm > 1.2 * before.actual_rpm),
    };
    !now.is_empty() && now.iter().enumerate().all(risen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fan(actual_rpm: f64, max_rpm: f64) -> Fan {
        Fan { actual_rpm, max_rpm, mode: "manual".into() }
    }

    #[test]
    fn fans_have_risen_when_all_of_them_are_near_their_most() {
        assert!(have_risen(&[], &[fan(5600.0, 6000.0), fan(5500.0, 6000.0)]));
        assert!(!have_risen(&[], &[fan(5600.0, 6000.0), fan(2000.0, 6000.0)]));
        assert!(!have_risen(&[], &[]), "a machine without fans has nothing to pin");
        assert!(have_risen(&[fan(2000.0, 0.0)], &[fan(3000.0, 0.0)]));
        assert!(!have_risen(&[fan(2000.0, 0.0)], &[fan(2100.0, 0.0)]));
    }

    #[test]
    fn thermalforges_status_is_understood() {
        let said = r#"{"fans": [{"actual_rpm": 2317, "index": 0, "max_rpm": 7826, "min_rpm": 2317,
            "mode": "auto", "target_rpm": 0}], "temperatures": {"TC0P": 45.1}}"#;
        let status: Status = serde_json::from_str(said).unwrap();
        assert_eq!((status.fans[0].actual_rpm, status.fans[0].max_rpm), (2317.0, 7826.0));
    }
}
