//! `mtplx init`: a file of settings that says what there is, and changes nothing until somebody
//! takes a remark away.

#![allow(clippy::print_stdout, reason = "a command prints what it made")]

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::config::DEFAULTS;
use crate::{files, modes};

/// What to write where.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx init\n  \
    mtplx init my.toml --model /models/big --mode stable\n  \
    mtplx init - | less\n\nThen: mtplx serve --config my.toml")]
pub struct InitArgs {
    /// The file, which must not exist; - for stdout.
    #[arg(default_value = "mtplx.toml")]
    file: PathBuf,
    /// Folder of the model to serve.
    #[arg(long)]
    model: Option<PathBuf>,
    /// sustained, sustained-max, burst, stable or safe.
    #[arg(long)]
    mode: Option<String>,
    /// What was done as JSON; `mtplx schema init` describes it.
    #[arg(long)]
    json: bool,
}

/// Writes it.
///
/// # Errors
/// When the file is there already, or cannot be made.
pub fn run(args: &InitArgs) -> Result<()> {
    if let Some(mode) = &args.mode {
        modes::settings(mode).map_err(anyhow::Error::msg)?;
    }
    let model = args.model.as_ref().map(|path| path.display().to_string());
    let text = written(model.as_deref(), args.mode.as_deref());
    if args.file.as_os_str() == "-" {
        print!("{text}");
        return Ok(());
    }
    // Tokens may come to stand in it: it is its owner's alone.
    files::make(&args.file)?.write_all(text.as_bytes())?;
    if args.json {
        let report = json!({"file": args.file, "model": model, "mode": args.mode});
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", args.file.display());
        eprintln!(
            "every setting with its default; then: mtplx serve --config {}",
            args.file.display()
        );
    }
    Ok(())
}

/// All settings as remarks, but those that were asked for.
fn written(model: Option<&str>, mode: Option<&str>) -> String {
    let mut section = String::new();
    let mut lines = Vec::new();
    for line in DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let name = line.split_once(" = ").map(|(name, _)| name).unwrap_or_default();
        let wish = match (section.as_str(), name) {
            ("", "mode") => mode,
            ("model", "path") => model,
            _ => None,
        };
        let remark = line.is_empty() || line.starts_with(['#', '[']);
        lines.push(match wish {
            // A literal string of TOML holds no escapes; a path may hold anything.
            Some(wish) => format!("{name} = {}", toml::Value::from(wish)),
            None if remark => line.to_owned(),
            None => format!("#{line}"),
        });
    }
    let head = "# Settings of mtplx, written by `mtplx init`. Those with a # right before\n\
                # their name are the defaults; take it away to change one.\n\n";
    format!("{head}{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_file_changes_nothing_until_a_remark_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        std::fs::write(&file, written(None, None)).unwrap();
        let defaults = format!("{:?}", Config::load(None, &[]).unwrap());
        // But for where it is from.
        let told = format!("{:?}", Config::load(Some(&file), &[]).unwrap());
        assert_eq!(told.replace(&format!("Some({file:?})"), "None"), defaults);
        // Taken away everywhere, it is the file of defaults.
        let is_setting = |line: &&str| {
            line.starts_with('#') && line[1..].starts_with(|c: char| c.is_ascii_lowercase())
        };
        let text = written(None, None);
        let bare =
            |line: &str| if is_setting(&line) { line[1..].to_owned() } else { line.to_owned() };
        let all: Vec<String> = text.lines().map(bare).collect();
        let all: toml::Table = all.join("\n").parse().unwrap();
        assert_eq!(all, DEFAULTS.parse().unwrap());
    }

    #[test]
    fn what_is_asked_for_is_set_whatever_a_path_is_called() {
        let text = written(Some("/a \"b\"\\c"), Some("stable"));
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["mode"].as_str(), Some("stable"));
        assert_eq!(table["model"]["path"].as_str(), Some("/a \"b\"\\c"));
        assert_eq!(table["model"].as_table().unwrap().len(), 1);
    }
}
