//! What is looked at.

use std::path::Path;

use indicatif::HumanBytes;
use mtplx_kernels::place::{Dtype, Place};
use mtplx_kernels::{memory, shape};
use sysinfo::System;

use super::Check;
use crate::config::{self, ADMIN_TOKEN, Config};
use crate::model;
use crate::pull::cache::{Cache, room};
use crate::server::Server;
use crate::state;

const GIB: u64 = 1 << 30;

/// Connections, files of models and of the bank, and some to spare.
const FILES: u64 = 1024;

/// The machine and what computes on it.
pub(super) fn machine() -> Vec<Check> {
    let system = format!(
        "{}, {}",
        System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into()),
        System::cpu_arch()
    );
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut checks = vec![Check::pass("system", system), cpu(cores)];
    let bytes = memory::machine();
    let found = format!("{} that this process may use", HumanBytes(bytes));
    checks.push(if bytes < 4 * GIB {
        Check::fail("memory", found, "even small models want 4 GiB")
    } else if bytes < 48 * GIB {
        let fix = "below 48 GiB large models do not fit: ask mtplx plan --model …";
        Check::warn("memory", found, fix)
    } else {
        Check::pass("memory", found)
    });
    let (name, version) = (shape::device_name(), shape::mlx_version());
    let device = name.unwrap_or_else(|| "the CPU".into());
    checks.push(match Place::detect(Dtype::Float32) {
        Ok(_) => Check::pass("device", format!("{device}, MLX {version}")),
        Err(error) => {
            Check::fail("device", format!("MLX {version}: {error}"), "see README: On NVIDIA GPUs")
        }
    });
    checks.push(files());
    checks
}

fn cpu(cores: usize) -> Check {
    let brand = System::new().ok().and_then(|mut system| {
        system.refresh_cpu_all();
        Some(system.cpus().first()?.brand().trim().to_owned())
    });
    let brand = brand.filter(|brand| !brand.is_empty()).unwrap_or_else(|| "unnamed".into());
    Check::pass("processor", format!("{brand}, {cores} cores for this process"))
}

fn files() -> Check {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    match limit.current {
        Some(most) if most < FILES => {
            let fix = format!("raise it before you serve a team: ulimit -n {}", 4 * FILES);
            Check::warn("open files", format!("at most {most}"), fix)
        }
        most => {
            Check::pass("open files", most.map_or("any number".into(), |n| format!("at most {n}")))
        }
    }
}

/// The settings, and the model that they name.
pub(super) fn settings(file: Option<&Path>) -> Vec<Check> {
    let config = match Config::load(file, &[]) {
        Ok(config) => config,
        Err(error) => {
            let fix = "mtplx init shows every setting with its reason";
            return vec![Check::fail("settings", error.to_string(), fix)];
        }
    };
    let named = file.map_or("the defaults".into(), |file| file.display().to_string());
    let mut checks = vec![Check::pass("settings", named)];
    checks.push(model(&config.model));
    checks.push(match config.check_door() {
        Ok(()) => Check::pass("door", format!("{}:{}", config.server.host, config.server.port)),
        Err(error) => Check::fail("door", error.to_string(), "mtplx keys add NAME makes a key"),
    });
    if std::env::var_os(ADMIN_TOKEN).is_some_and(|token| token.len() < 16) {
        let fix = "openssl rand -hex 32 makes a better one";
        checks.push(Check::warn("admin token", "it is short", fix));
    }
    checks
}

/// Whether the model would be served, by its configuration and headers alone.
fn model(settings: &config::Model) -> Check {
    let fetch = "mtplx pull owner/name fetches one";
    let judged = match model::judged(settings) {
        Ok(judged) => judged,
        Err(error) => return Check::fail("model", format!("{error:#}"), fetch),
    };
    let found = match settings.path.as_os_str().is_empty() {
        true => format!("the embedded model, {}", judged.tier),
        false => format!("{}, {}", settings.path.display(), judged.tier),
    };
    match model::admit(settings, &judged) {
        Ok(()) => Check::pass("model", found),
        Err(_) => {
            let reason = judged.reasons.first().map_or("", String::as_str);
            let fix = judged.mend.unwrap_or_else(|| fetch.into());
            Check::fail("model", format!("{found}: {reason}"), fix)
        }
    }
}

/// Whether all that the model's files hold can be read.
pub(super) fn files_of_the_model(file: Option<&Path>) -> Option<Check> {
    // Settings that cannot be read have a check of their own.
    let config = Config::load(file, &[]).ok()?;
    Some(match model::Model::open(&config.model) {
        Ok(model) => Check::pass("model files", model.name),
        Err(error) => Check::fail(
            "model files",
            format!("{error:#}"),
            "mtplx inspect tells more; mtplx pull owner/name fetches one",
        ),
    })
}

/// Where models and states are kept.
pub(super) fn disk() -> Vec<Check> {
    let mut checks = Vec::new();
    match Cache::of_environment() {
        Ok(cache) => {
            let (count, folder) = (cache.models().len(), cache.folder().display().to_string());
            checks.push(Check::pass("models", format!("{count} in {folder}")));
            checks.push(match cache.room() {
                Ok(free) if free < 20 * GIB => {
                    let fix =
                        "mtplx pull wants 20 GiB beyond a model: name another disk with HF_HOME";
                    Check::warn("disk", format!("{} free in {folder}", HumanBytes(free)), fix)
                }
                Ok(free) => Check::pass("disk", format!("{} free", HumanBytes(free))),
                Err(error) => Check::warn("disk", format!("{error:#}"), "look at HF_HOME"),
            });
        }
        Err(error) => checks.push(Check::warn("models", format!("{error:#}"), "set HOME")),
    }
    checks.push(match state::folder().and_then(|folder| Ok((room(&folder)?, folder))) {
        Ok((_, folder)) => Check::pass("state", folder.display().to_string()),
        Err(error) => {
            Check::warn("state", format!("{error:#}"), "mtplx start forgets what you chose")
        }
    });
    checks
}

/// Whether somebody serves, or could.
pub(super) async fn server(url: &str) -> Check {
    let server = match Server::at(url) {
        Ok(server) => server,
        Err(error) => return Check::fail("server", error.to_string(), "name it with --url"),
    };
    match server.page("/health").await {
        Ok((200, health)) => match health["kernels_switched_off"].as_array() {
            Some(off) => {
                let found = format!("{url} serves; kernels switched off: {}", off.len());
                Check::warn("server", found, "its log says why, from its start")
            }
            None => Check::pass("server", format!("{url} serves")),
        },
        Ok((503, health)) if health["status"] == "unavailable" => {
            let reason = health["reason"].as_str().unwrap_or("it does not say why");
            Check::fail(
                "server",
                format!("{url} is up and does not serve: {reason}"),
                "see its log",
            )
        }
        Ok((status, _)) => {
            let found = format!("somebody else is at {url} and answered {status}");
            Check::warn("server", found, "serve elsewhere: mtplx serve --port …")
        }
        Err(_) => Check::pass("server", format!("none at {url}; the port is free for one")),
    }
}
