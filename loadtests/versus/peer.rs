//! The peer: an environment of its own, the checkpoint in the forms it is measured in, and the
//! BLAS that it is measured with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::figures::Remarks;
use crate::progress;
use crate::server::{Server, free_port};

/// Where it is all made: below what git ignores.
const HOME: &str = "target/peers";
const MLX_LM: &str = include_str!("../peers/mlx-lm.txt");
const MTPLX: &str = include_str!("../peers/mtplx.txt");
/// The original itself, without the dependencies that its metadata names for a Mac.
const ORIGINAL: &str = "mtplx==2.12.2";
const STAND_IN: &str = include_str!("../peers/sitecustomize.py");
/// Where Debian puts its libopenblas0-pthread.
const DEBIAN: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
];

/// How the peer is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Form {
    /// As pip installs it.
    Installed,
    /// With the BLAS.
    Blas,
    /// With the BLAS, on the checkpoint unpacked to fp32.
    Fp32,
    /// Another peer: the original, one request at a time, without its kernels for Metal.
    Mtplx,
}

impl Form {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Installed => "mlx_lm as installed",
            Self::Blas => "mlx_lm, BLAS",
            Self::Fp32 => "mlx_lm, BLAS, fp32",
            Self::Mtplx => "MTPLX on MLX CPU",
        }
    }

    /// How many times its tokens per second ours are to be.
    pub(super) fn bar(self) -> Option<f64> {
        match self {
            Self::Installed => Some(3.0),
            Self::Blas => Some(1.5),
            // Another checkpoint than ours, or a server far from its home: told, not judged.
            Self::Fp32 | Self::Mtplx => None,
        }
    }

    fn needs_blas(self) -> bool {
        matches!(self, Self::Blas | Self::Fp32)
    }
}

/// All that is needed to start it.
pub(super) struct Peers {
    python: PathBuf,
    /// Of the original, where it was asked for.
    original: Option<PathBuf>,
    packed: PathBuf,
    unpacked: PathBuf,
    blas: Option<PathBuf>,
    forms: Vec<Form>,
    /// What people must know who read the figures.
    pub(super) remarks: Remarks,
}

impl Peers {
    /// Makes what is missing.
    pub(super) fn prepare(checkpoint: &Path, blas: Option<&Path>, forms: &[Form]) -> Result<Self> {
        let home = Path::new(HOME);
        std::fs::create_dir_all(home)?;
        let python = environment(&home.join("mlx-lm"), MLX_LM, None)?;
        let original = match forms.contains(&Form::Mtplx) {
            true => Some(environment(&home.join("mtplx"), MTPLX, Some(ORIGINAL))?),
            false => None,
        };
        let (packed, unpacked) = (home.join("endless"), home.join("endless-fp32"));
        endless(checkpoint, &packed)?;
        let blas = fast_blas(blas)?;
        let mut notes = Vec::new();
        let mut chosen = forms.to_vec();
        if let Some(blas) = &blas {
            notes.push(format!("BLAS of the peer: {}", blas.display()));
        } else if forms.iter().any(|form| form.needs_blas()) {
            chosen.retain(|form| !form.needs_blas());
            let word = "NO FAST BLAS HERE: the peer's columns with one are LEFT OUT. Debian and \
                        Ubuntu: sudo apt-get install libopenblas0-pthread; or --blas FILE";
            eprintln!("mtplx-loadtests: {word}");
            notes.push(word.into());
        }
        if chosen.contains(&Form::Fp32) {
            unpack(&python, &packed, &unpacked)?;
        }
        let remarks = Remarks { lines: notes, left_out: chosen.len() < forms.len() };
        Ok(Self { python, original, packed, unpacked, blas, forms: chosen, remarks })
    }

    /// Those that can be run here.
    pub(super) fn forms(&self) -> impl Iterator<Item = Form> {
        self.forms.clone().into_iter()
    }

    pub(super) async fn start(&self, form: Form) -> Result<Server> {
        let port = free_port()?;
        if let Some(python) = self.original.as_ref().filter(|_| form == Form::Mtplx) {
            let command = original(python, &self.packed, port)?;
            return Server::foreign("mtplx-original", command, port).await;
        }
        let model = if form == Form::Fp32 { &self.unpacked } else { &self.packed };
        let mut command = tokio::process::Command::new(&self.python);
        command.args(["-m", "mlx_lm", "server", "--log-level", "WARNING", "--model"]).arg(model);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        // It would ask for models by name elsewhere.
        command.env("HF_HUB_OFFLINE", "1");
        if let Some(blas) = self.blas.as_ref().filter(|_| form.needs_blas()) {
            command.env("LD_PRELOAD", blas);
        }
        let log = format!("mlx-lm-{form:?}").to_lowercase();
        Server::foreign(&log, command, port).await
    }
}

/// The original's server. Without the two settings of its verification its text is wrong where
/// there is no Metal, and a comparison void.
fn original(python: &Path, model: &Path, port: u16) -> Result<tokio::process::Command> {
    let scratch = std::path::absolute(Path::new(HOME).join("mtplx-home"))?;
    std::fs::create_dir_all(&scratch)?;
    std::fs::write(scratch.join("sitecustomize.py"), STAND_IN)?;
    let mut command = tokio::process::Command::new(python.with_file_name("mtplx"));
    command.args(["serve", "--host", "127.0.0.1", "--port", &port.to_string(), "--model"]);
    command.arg(model).args(["--yes", "--no-auth", "--no-stats-footer", "--warmup-tokens", "0"]);
    command.args(["--verify-strategy", "capture_commit", "--verify-core", "stock"]);
    command.args(["--ssd-session-cache", "off"]).env("HF_HUB_OFFLINE", "1");
    command.env("HOME", &scratch).env("PYTHONPATH", &scratch);
    Ok(command)
}

/// A virtual environment with what the requirements name, and one more package without its
/// dependencies; its python.
fn environment(folder: &Path, requirements: &str, bare: Option<&str>) -> Result<PathBuf> {
    let python = folder.join("bin/python");
    let stamp = folder.join("requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|made| made == requirements) {
        return Ok(python);
    }
    progress::say("making the peer's environment");
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))?;
    let wanted = folder.join("wanted.txt");
    std::fs::write(&wanted, requirements)?;
    let pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"];
    succeed(Command::new(&python).args(pip).arg("-r").arg(&wanted))?;
    if let Some(bare) = bare {
        succeed(Command::new(&python).args(pip).args(["--no-deps", bare]))?;
    }
    std::fs::rename(wanted, stamp)?;
    Ok(python)
}

/// A copy of a checkpoint whose answers end by their length only: it names as stop token the last
/// of the vocabulary, which no text has.
fn endless(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    let entries = std::fs::read_dir(from).with_context(|| format!("no folder {}", from.display()));
    for entry in entries? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        let target = to.join(&name);
        let change: Option<fn(&mut Value)> = match name.to_str() {
            Some("config.json") => Some(without_end),
            Some("generation_config.json" | "tokenizer_config.json") => Some(unnamed_end),
            _ => None,
        };
        if let Some(change) = change {
            let mut value: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)
                .with_context(|| path.display().to_string())?;
            change(&mut value);
            std::fs::write(target, value.to_string())?;
        } else if path.is_file() {
            std::fs::copy(&path, target)?;
        }
    }
    Ok(())
}

fn without_end(config: &mut Value) {
    let inner = config["text_config"]["vocab_size"].as_u64();
    let last = inner.or(config["vocab_size"].as_u64()).map_or(0, |size| size.saturating_sub(1));
    config["eos_token_id"] = last.into();
    if let Some(inner) = config.get_mut("text_config") {
        inner["eos_token_id"] = last.into();
    }
}

fn unnamed_end(config: &mut Value) {
    if let Some(config) = config.as_object_mut() {
        config.remove("eos_token_id");
        config.remove("eos_token");
    }
}

/// The checkpoint without quantisation, by the peer's own tool.
fn unpack(python: &Path, from: &Path, to: &Path) -> Result<()> {
    if to.join("config.json").exists() {
        return Ok(());
    }
    progress::say("unpacking the checkpoint");
    let convert = ["-m", "mlx_lm", "convert", "--dequantize", "--dtype", "float32"];
    let mut command = Command::new(python);
    command.args(convert).arg("--hf-path").arg(from).arg("--mlx-path").arg(to);
    succeed(command.env("HF_HUB_OFFLINE", "1"))
}

fn fast_blas(given: Option<&Path>) -> Result<Option<PathBuf>> {
    if let Some(path) = given {
        ensure!(path.is_file(), "there is no {}", path.display());
        return Ok(Some(path.canonicalize()?));
    }
    Ok(DEBIAN.iter().map(PathBuf::from).find(|path| path.is_file()))
}

fn succeed(command: &mut Command) -> Result<()> {
    let done = command.output().with_context(|| format!("cannot run {command:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{command:?} failed: {said}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_without_an_end_keeps_everything_else() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(from.path().join(name), text).unwrap();
        put("config.json", r#"{"eos_token_id": [3, 1], "text_config": {"vocab_size": 9, "a": 1}}"#);
        put("tokenizer_config.json", r#"{"eos_token": "<end>", "pad_token": "<pad>"}"#);
        put("model.safetensors", "weights");
        endless(from.path(), to.path()).unwrap();
        let get = |name: &str| std::fs::read_to_string(to.path().join(name)).unwrap();
        let config: Value = serde_json::from_str(&get("config.json")).unwrap();
        let inner = json!({"vocab_size": 9, "a": 1, "eos_token_id": 8});
        assert_eq!(config, json!({"eos_token_id": 8, "text_config": inner}));
        assert_eq!(get("tokenizer_config.json"), r#"{"pad_token":"<pad>"}"#);
        assert_eq!(get("model.safetensors"), "weights");
    }
}
