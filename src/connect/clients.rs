//! What each client wants to be told: the settings that `make conformance` runs the real ones with.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::{Value, json};

use super::Whom;

/// Who can be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// Claude Code.
    ClaudeCode,
    /// opencode.
    Opencode,
    /// Pi.
    Pi,
    /// Codex CLI.
    Codex,
    /// Swival.
    Swival,
    /// Continue.
    Continue,
    /// Cline.
    Cline,
    /// Open WebUI.
    OpenWebui,
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::ClaudeCode => "Claude Code",
            Self::Opencode => "opencode",
            Self::Pi => "Pi",
            Self::Codex => "Codex",
            Self::Swival => "Swival",
            Self::Continue => "Continue",
            Self::Cline => "Cline",
            Self::OpenWebui => "Open WebUI",
        })
    }
}

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose.
    pub client: Client,
    /// Variables, where those are enough.
    pub env: BTreeMap<&'static str, String>,
    /// A file of its own, if it has one.
    pub target: Option<Target>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// What is to stand in a file.
#[derive(Clone, Debug)]
pub struct Target {
    /// The file.
    pub path: PathBuf,
    /// What.
    pub form: Form,
}

/// Settings in a file's language.
#[derive(Clone, Debug)]
pub enum Form {
    /// `own` is ours and replaced, `wishes` stand only where nothing else does.
    Json {
        /// Path of keys to what is ours.
        own: Vec<(Vec<&'static str>, Value)>,
        /// Keys at the top.
        wishes: Vec<(&'static str, Value)>,
    },
    /// The same as TOML.
    Toml {
        /// Path of keys to what is ours.
        own: Vec<(Vec<&'static str>, Value)>,
        /// Keys at the top.
        wishes: Vec<(&'static str, Value)>,
    },
    /// A whole file: for languages in which nothing can be added without losing remarks.
    Whole(String),
}

impl Form {
    /// As it stands in a file of its own.
    #[must_use]
    pub fn text(&self) -> String {
        // Into nothing, every form goes.
        super::merge::merged(None, self).unwrap_or_default()
    }
}

/// A folder below home, or where a variable says.
fn below(variable: &str, home: &str) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(folder) = set(variable) {
        return Ok(folder);
    }
    Ok(set("HOME").context("no home folder: set HOME, or name the file with --file")?.join(home))
}

/// What a client wants to be told.
///
/// # Errors
/// Where no home is known.
pub fn settings(client: Client, whom: &Whom) -> Result<Settings> {
    let Whom { url, model, .. } = whom;
    let key = whom.key.clone().unwrap_or_else(|| "none".into());
    let api = format!("{url}/v1");
    let none = Settings { client, env: BTreeMap::new(), target: None, notes: Vec::new() };
    let into = |path, form| Some(Target { path, form });
    Ok(match client {
        Client::ClaudeCode => {
            let env = claude_env(url, &key);
            let own = env.iter().map(|(name, value)| (vec!["env", *name], json!(value)));
            let form = Form::Json { own: own.collect(), wishes: Vec::new() };
            let path = below("CLAUDE_CONFIG_DIR", ".claude")?.join("settings.json");
            Settings { env, target: into(path, form), ..none }
        }
        Client::Opencode => {
            let path = below("XDG_CONFIG_HOME", ".config")?.join("opencode/opencode.json");
            let notes =
                vec![format!("choose mtplx/{model} with /models, or opencode -m mtplx/{model}")];
            Settings { target: into(path, opencode(whom)), notes, ..none }
        }
        Client::Pi => {
            let path = below("PI_CODING_AGENT_DIR", ".pi/agent")?.join("models.json");
            let notes = vec![format!("then: pi --provider mtplx --model {}", quoted(model))];
            Settings { target: into(path, pi(whom)), notes, ..none }
        }
        Client::Codex => codex(whom, none)?,
        Client::Swival => swival(whom, none)?,
        Client::Continue => {
            let path = below("CONTINUE_GLOBAL_DIR", ".continue")?.join("config.yaml");
            // A string of JSON is one of YAML, too.
            let word = |text: &str| Value::from(text).to_string();
            let form = Form::Whole(format!(
                "name: mtplx\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: {}\n    \
                 provider: openai\n    \
                 model: {}\n    apiBase: {}\n    apiKey: {}\n    roles: [chat, edit, apply]\n",
                word(model),
                word(model),
                word(&api),
                word(&key)
            ));
            Settings { target: into(path, form), ..none }
        }
        Client::Cline => {
            let notes = vec![
                "in Cline's settings: API Provider \"OpenAI Compatible\"".into(),
                format!("  Base URL {api}\n  API Key {key}\n  Model ID {model}"),
                format!("  Context Window Size {}", whom.context),
                format!(
                    "in a terminal: cline auth -p openai-compatible -k {} -m {} -b {}",
                    quoted(&key),
                    quoted(model),
                    quoted(&api)
                ),
            ];
            Settings { notes, ..none }
        }
        Client::OpenWebui => {
            let env = [("OPENAI_API_BASE_URL", api), ("OPENAI_API_KEY", key)].into();
            let notes = vec!["in a container: mtplx openwebui docker-command".into()];
            Settings { env, notes, ..none }
        }
    })
}

/// By these variables Claude Code asks us, and its maker's servers nothing.
pub(crate) fn claude_env(url: &str, key: &str) -> BTreeMap<&'static str, String> {
    [
        ("ANTHROPIC_BASE_URL", url.to_owned()),
        ("ANTHROPIC_API_KEY", key.to_owned()),
        ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".into()),
    ]
    .into()
}

/// A quarter of the context, at most what these clients ask of others.
fn answer_tokens(whom: &Whom) -> u64 {
    (whom.context / 4).clamp(1, 32_000)
}

pub(crate) fn opencode(whom: &Whom) -> Form {
    let limit = json!({"context": whom.context, "output": answer_tokens(whom)});
    let provider = json!({
        "npm": "@ai-sdk/openai-compatible",
        "name": "mtplx",
        "options": {"baseURL": format!("{}/v1", whom.url), "apiKey": key_of(whom)},
        "models": {&whom.model: {"limit": limit}},
    });
    let name = json!(format!("mtplx/{}", whom.model));
    Form::Json {
        own: vec![(vec!["provider", "mtplx"], provider)],
        wishes: vec![("model", name.clone()), ("small_model", name)],
    }
}

pub(crate) fn pi(whom: &Whom) -> Form {
    let (context, output) = (whom.context, answer_tokens(whom));
    let provider = json!({
        "baseUrl": format!("{}/v1", whom.url),
        "apiKey": key_of(whom),
        "api": "openai-completions",
        "models": [{"id": whom.model, "contextWindow": context, "maxTokens": output}],
    });
    Form::Json { own: vec![(vec!["providers", "mtplx"], provider)], wishes: Vec::new() }
}

fn codex(whom: &Whom, none: Settings) -> Result<Settings> {
    let mut provider = json!({
        "name": "mtplx",
        "base_url": format!("{}/v1", whom.url),
        "wire_api": "responses",
    });
    // Its keys stand in the environment.
    if whom.key.is_some() {
        provider["env_key"] = json!(super::KEY);
    }
    let wishes = vec![("model", json!(whom.model)), ("model_provider", json!("mtplx"))];
    let form = Form::Toml { own: vec![(vec!["model_providers", "mtplx"], provider)], wishes };
    let path = below("CODEX_HOME", ".codex")?.join("config.toml");
    let notes = vec![
        "Codex brings tools of OpenAI's: set [server] unknown_fields = \"warn\" for it".into(),
        format!("then: codex -c model_provider=mtplx -m {}", quoted(&whom.model)),
    ];
    Ok(Settings { target: Some(Target { path, form }), notes, ..none })
}

/// Swival knows one server at a time, by keys at the top.
fn swival(whom: &Whom, none: Settings) -> Result<Settings> {
    let wishes = vec![
        ("provider", json!("generic")),
        ("base_url", json!(format!("{}/v1", whom.url))),
        ("model", json!(whom.model)),
        ("api_key", json!(key_of(whom))),
        ("max_context_tokens", json!(whom.context)),
        ("max_output_tokens", json!(answer_tokens(whom))),
    ];
    let path = below("XDG_CONFIG_HOME", ".config")?.join("swival/config.toml");
    let form = Form::Toml { own: Vec::new(), wishes };
    let notes = vec!["then: swival".into()];
    Ok(Settings { target: Some(Target { path, form }), notes, ..none })
}

/// The same for one session; its key goes into the environment, which no list of processes shows.
pub(crate) fn swival_args(whom: &Whom) -> Vec<String> {
    let api = format!("{}/v1", whom.url);
    let (context, output) = (whom.context.to_string(), answer_tokens(whom).to_string());
    [
        ["--provider", "generic"],
        ["--base-url", &api],
        ["--model", &whom.model],
        ["--max-context-tokens", &context],
        ["--max-output-tokens", &output],
    ]
    .concat()
    .into_iter()
    .map(Into::into)
    .collect()
}

fn key_of(whom: &Whom) -> &str {
    whom.key.as_deref().unwrap_or("none")
}

/// The command that runs Open WebUI where it finds the server.
pub(super) fn docker(url: &str, port: u16, key: Option<&str>) -> Result<Vec<String>> {
    let known = reqwest::Url::parse(url)?;
    let host = known.host_str().context("the address names no host")?;
    let near = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"].contains(&host);
    // Linux can lend a container its own network, in which a server on 127.0.0.1 is found; Docker's
    // machine on macOS knows this one by name and is let in at its loopback.
    let own_network = near && cfg!(target_os = "linux");
    let from = match (near, own_network) {
        (true, false) => url.replacen(host, "host.docker.internal", 1),
        _ => url.to_owned(),
    };
    let mut words: Vec<String> =
        ["docker", "run", "-d", "--name", "open-webui"].map(Into::into).into();
    if own_network {
        words.extend(["--network=host".into(), "-e".into(), format!("PORT={port}")]);
    } else {
        words.extend(["-p".into(), format!("127.0.0.1:{port}:8080")]);
    }
    let env = [
        ("OPENAI_API_BASE_URL", format!("{from}/v1")),
        ("OPENAI_API_KEY", key.unwrap_or("none").to_owned()),
        ("ENABLE_OLLAMA_API", "false".into()),
    ];
    words
        .extend(env.into_iter().flat_map(|(name, value)| ["-e".into(), format!("{name}={value}")]));
    words.extend(
        ["-v", "open-webui:/app/backend/data", "ghcr.io/open-webui/open-webui:main"]
            .map(Into::into),
    );
    Ok(words)
}

/// A word as shells read it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
