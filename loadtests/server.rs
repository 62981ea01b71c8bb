//! A server under load: one that runs already, or one of our own that ends with us.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use tempfile::TempPath;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::gauges::Gauges;

/// Longest wait until a server serves: a peer may compile at first.
const START: Duration = Duration::from_secs(120);
/// Logs of servers that we start, beside what cargo builds.
const LOGS: &str = "target/loadtests";

/// Which server.
#[derive(Args, Clone)]
pub(crate) struct Target {
    /// A running server on this machine. Without it, one is started from --binary.
    #[arg(long)]
    url: Option<String>,
    /// The server's binary.
    #[arg(long, default_value = "target/release/mtplx")]
    pub(crate) binary: PathBuf,
    /// Settings of the server that is started, in place of those the test would give it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// The checkpoint that it serves; the one inside the binary without it.
    #[arg(long)]
    pub(crate) model: Option<PathBuf>,
}

/// The server.
pub(crate) struct Server {
    pub(crate) url: String,
    child: Option<Child>,
    log: Option<PathBuf>,
    _settings: Option<TempPath>,
}

impl Server {
    /// Finds or starts it. `settings` are TOML, laid over the server's defaults.
    pub(crate) async fn open(target: &Target, settings: &str) -> Result<Self> {
        if let Some(url) = &target.url {
            let url = url.trim_end_matches('/').to_owned();
            local(&url)?;
            return Ok(Self { url, child: None, log: None, _settings: None });
        }
        let mut command = Command::new(&target.binary);
        command.args(["serve", "--host", "127.0.0.1", "--port", "0"]);
        let mut written = None;
        if let Some(config) = &target.config {
            command.arg("--config").arg(config);
        } else if !settings.is_empty() {
            let file = tempfile::Builder::new().suffix(".toml").tempfile()?.into_temp_path();
            std::fs::write(&file, settings)?;
            command.arg("--config").arg(&file);
            written = Some(file);
        }
        if let Some(model) = &target.model {
            // What is measured is its speed; whether it passed its gates is another question.
            command.arg("--model").arg(model).arg("--unsafe-force-unverified");
        }
        let (mut child, log) = spawn(command, "mtplx", Stdio::piped())
            .with_context(|| format!("{}; `make build` makes it", target.binary.display()))?;
        let stdout = child.stdout.take().context("its stdout is ours")?;
        let mut line = String::new();
        let mut stdout = BufReader::new(stdout);
        // It ends without a line if it cannot start.
        timeout(START, stdout.read_line(&mut line)).await.context("the server said nothing")??;
        let url = address(&line)
            .with_context(|| format!("the server did not start; see {}", log.display()))?;
        let (url, child, log) = (url.to_owned(), Some(child), Some(log));
        let mut server = Self { url, child, log, _settings: written };
        server.ready().await?;
        Ok(server)
    }

    /// Starts another program that serves on a port it is told.
    pub(crate) async fn foreign(name: &str, command: Command, port: u16) -> Result<Self> {
        let (child, log) = spawn(command, name, Stdio::null())?;
        let url = format!("http://127.0.0.1:{port}");
        let mut server = Self { url, child: Some(child), log: Some(log), _settings: None };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&mut self) -> Result<()> {
        let http = http()?;
        let health = format!("{}/health", self.url);
        let serving = async {
            loop {
                self.alive()?;
                let answer = http.get(&health).send().await;
                if answer.is_ok_and(|r| r.status().is_success()) {
                    return Ok(());
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(START, serving).await.context("the server was never ready")?
    }

    /// Fails if our own server has ended.
    pub(crate) fn alive(&mut self) -> Result<()> {
        if let Some(child) = &mut self.child
            && let Some(status) = child.try_wait()?
        {
            let log = self.log.as_deref().unwrap_or(Path::new("its log"));
            bail!("the server ended: {status}; see {}", log.display());
        }
        Ok(())
    }

    /// Memory of its process that is in RAM, where we started it and the system tells.
    pub(crate) fn resident_bytes(&self) -> Option<u64> {
        let pid = self.child.as_ref()?.id()?;
        let asked = std::process::Command::new("ps")
            .args(["-o", "rss=", "-p", &pid.to_string()])
            .output()
            .ok()?;
        let kib: u64 = String::from_utf8_lossy(&asked.stdout).trim().parse().ok()?;
        Some(kib * 1024)
    }

    /// All that it tells about itself.
    pub(crate) async fn gauges(&self) -> Result<Gauges> {
        let answer = http()?.get(format!("{}/metrics", self.url)).send().await?;
        Ok(Gauges::parse(&answer.error_for_status()?.text().await?))
    }

    /// What it shows of itself at a path, as JSON; `None` where it does not.
    pub(crate) async fn show(&self, path: &str) -> Option<Value> {
        let answer = http().ok()?.get(format!("{}{path}", self.url)).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// Names of what it serves.
    pub(crate) async fn models(&self) -> Vec<String> {
        let told = self.show("/v1/models").await.unwrap_or_default();
        let all = told["data"].as_array().into_iter().flatten();
        all.filter_map(|model| model["id"].as_str().map(str::to_owned)).collect()
    }

    /// Lines of its log that speak of trouble, and how often each came, without their times.
    pub(crate) fn complaints(&self) -> BTreeMap<String, usize> {
        let text = self.log.as_ref().and_then(|log| std::fs::read_to_string(log).ok());
        let mut complaints = BTreeMap::new();
        for line in text.unwrap_or_default().lines() {
            let level = ["ERROR", "panicked at"].iter().find_map(|word| line.find(word));
            if let Some(start) = level {
                *complaints.entry(line[start..].to_owned()).or_default() += 1;
            }
        }
        complaints
    }

    /// Asks it to end in order, and waits until it has.
    pub(crate) async fn leave(mut self) -> Result<()> {
        let mut child = self.child.take().context("a server of our own is needed")?;
        let pid = child.id().context("it has ended")?.to_string();
        std::process::Command::new("kill").args(["-TERM", &pid]).status()?;
        let status = timeout(START, child.wait()).await.context("it does not end")??;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    /// Ends it and waits until it is gone.
    pub(crate) async fn end(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }
}

/// An HTTP client that goes nowhere but straight to its address.
pub(crate) fn http() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().build()?)
}

/// A port that was free a moment ago, for programs that cannot choose one themselves.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn spawn(mut command: Command, name: &str, stdout: Stdio) -> Result<(Child, PathBuf)> {
    std::fs::create_dir_all(LOGS)?;
    // Several runs at once keep theirs apart.
    let log = Path::new(LOGS).join(format!("{name}-{}.log", std::process::id()));
    let stderr = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = command.stdout(stdout).stderr(stderr).stdin(Stdio::null()).kill_on_drop(true);
    let child = child.spawn().context("cannot start it")?;
    Ok((child, log))
}

/// The address in the line by which a server says that it serves.
fn address(line: &str) -> Option<&str> {
    line.split_whitespace().find(|word| word.starts_with("http://"))
}

/// Load goes to this machine only.
fn local(url: &str) -> Result<()> {
    let parsed: reqwest::Url = url.parse().with_context(|| format!("{url} is no address"))?;
    let host = parsed.host_str().unwrap_or_default();
    let ip: Option<std::net::IpAddr> = host.trim_matches(['[', ']']).parse().ok();
    let loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback());
    ensure!(loopback, "{url} is not on this machine: load tests stay at home");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_stays_on_this_machine() {
        for home in ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:8000"] {
            assert!(local(home).is_ok(), "{home}");
        }
        for away in ["http://10.0.0.1:8000", "http://localhost.example.org", "8000"] {
            assert!(local(away).is_err(), "{away}");
        }
    }

    #[test]
    fn the_address_stands_in_the_first_line() {
        let line = "serving tiny on http://127.0.0.1:4711\n";
        assert_eq!(address(line), Some("http://127.0.0.1:4711"));
        assert_eq!(address(""), None);
    }
}
