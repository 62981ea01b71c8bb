//! A peer: an environment of its own, the checkpoint in the forms it is measured in, and the BLAS
//! that it is measured with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::progress;
use crate::server::{Server, free_port};

/// Where it is all made: below what git ignores.
const HOME: &str = "target/peers";
const MLX_LM: &str = include_str!("mlx-lm.txt");
const MTPLX: &str = include_str!("mtplx.txt");
/// The original itself, without the dependencies that its metadata names for a Mac.
const ORIGINAL: &str = "mtplx==2.12.2";
const STAND_IN: &str = include_str!("sitecustomize.py");
/// Where Debian puts its libopenblas0-pthread.
const DEBIAN: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0",
];

/// Who is measured, and how it is run.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Form {
    /// Our own release binary.
    Ours,
    /// mlx_lm.server as pip installs it.
    MlxLm,
    /// The same with the BLAS.
    MlxLmBlas,
    /// The same on the checkpoint unpacked to fp32, which is what a BLAS is good for.
    MlxLmFp32,
    /// The original, one request at a time, without its kernels for Metal, as pip installs it.
    Mtplx,
    /// The same with the BLAS.
    MtplxBlas,
}

impl Form {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::MlxLm => "mlx_lm.server 0.32.2",
            Self::MlxLmBlas => "… with BLAS",
            Self::MlxLmFp32 => "… with BLAS, on fp32",
            Self::Mtplx => "MTPLX 2.12.2",
            Self::MtplxBlas => "… with BLAS",
        }
    }

    fn needs_blas(self) -> bool {
        matches!(self, Self::MlxLmBlas | Self::MlxLmFp32 | Self::MtplxBlas)
    }

    pub(super) fn is_mtplx(self) -> bool {
        matches!(self, Self::Mtplx | Self::MtplxBlas)
    }

    /// Whether it runs on our checkpoint, so that it is judged and not only told.
    pub(super) fn is_judged(self) -> bool {
        !matches!(self, Self::Ours | Self::MlxLmFp32)
    }
}

/// All that is needed to start it.
pub(super) struct Peer {
    form: Form,
    python: PathBuf,
    model: PathBuf,
    blas: Option<PathBuf>,
}

impl Peer {
    /// Makes what is missing.
    pub(super) fn prepare(form: Form, checkpoint: &Path, blas: Option<&Path>) -> Result<Self> {
        let home = Path::new(HOME);
        std::fs::create_dir_all(home)?;
        let lm = environment(&home.join("mlx-lm"), MLX_LM, None)?;
        let python = match form.is_mtplx() {
            true => environment(&home.join("mtplx"), MTPLX, Some(ORIGINAL))?,
            false => lm.clone(),
        };
        let mut model = home.join("endless");
        endless(checkpoint, &model)?;
        if form == Form::MlxLmFp32 {
            let unpacked = home.join("endless-fp32");
            unpack(&lm, &model, &unpacked)?;
            model = unpacked;
        }
        let blas = match form.needs_blas() {
            true => Some(fast_blas(blas)?.context(
                "no fast BLAS here. Debian and Ubuntu: sudo apt-get install libopenblas0-pthread; \
                 or --blas FILE",
            )?),
            false => None,
        };
        Ok(Self { form, python, model, blas })
    }

    pub(super) async fn start(&self) -> Result<Server> {
        let port = free_port()?;
        let mut command = match self.form.is_mtplx() {
            true => original(&self.python, &self.model, port)?,
            false => self.mlx_lm(port),
        };
        if let Some(blas) = &self.blas {
            command.env("LD_PRELOAD", blas);
        }
        let log = format!("peer-{:?}", self.form).to_lowercase();
        Server::foreign(&log, command, port).await
    }

    fn mlx_lm(&self, port: u16) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(&self.python);
        command.args(["-m", "mlx_lm", "server", "--log-level", "WARNING", "--model"]);
        command.arg(&self.model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        // It would ask for models by name elsewhere.
        command.env("HF_HUB_OFFLINE", "1");
        command
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
