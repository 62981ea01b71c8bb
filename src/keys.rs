//! `mtplx keys`: the file of clients' keys, edited in place and read by the server.

#![expect(clippy::print_stdout, reason = "a command prints what it made")]

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use mtplx_actors::ingress::date;
use mtplx_actors::ingress::keys::{Entry, Keys, check_name, new_key};
use serde::Deserialize;
use serde_json::json;
use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, value};

use crate::files;

/// What stands at the head of a new file.
const HEAD: &str =
    "# Keys of clients, made by `mtplx keys add`: what stands here are their hashes.\n\n";

/// What `--help` ends with.
pub const EXAMPLES: &str = "Examples:\n  mtplx keys --file keys.toml add ann\n  \
                            mtplx keys --config my.toml list\n\nA server reads the file of its \
                            setting keys.file, and follows changes of it while it runs.";

/// What to do with the keys.
#[derive(Args, Debug)]
pub struct KeysArgs {
    /// What was found or done as JSON; `mtplx schema keys` describes it.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key; it is shown once, here.
    #[command(after_help = "Example:\n  mtplx keys --file keys.toml add ann --tenant team")]
    Add(Box<Add>),
    /// Show who has keys.
    #[command(after_help = "Example:\n  mtplx keys --file keys.toml list --json")]
    List,
    /// Let a key open nothing any more.
    #[command(after_help = "Example:\n  mtplx keys --file keys.toml revoke ann")]
    Revoke {
        /// Its name.
        name: String,
    },
    /// Give a client another key in place of the one that it has.
    #[command(after_help = "Example:\n  mtplx keys --file keys.toml rotate ann")]
    Rotate {
        /// Its name.
        name: String,
    },
}

#[derive(Args, Debug)]
struct Add {
    /// Whose it is; it is a label of metrics.
    name: String,
    /// With whom it shares warm prefixes; without it, with nobody.
    #[arg(long)]
    tenant: Option<String>,
    /// Its requests have time.
    #[arg(long)]
    background: bool,
    /// Shares of service beside others.
    #[arg(long, default_value = "1")]
    weight: NonZeroU32,
    /// It may say for whom it asks, as Open WebUI does.
    #[arg(long)]
    trusted: bool,
    /// Tokens a minute beyond which it is refused.
    #[arg(long)]
    minute_tokens: Option<u32>,
    /// Tokens a day beyond which it is refused.
    #[arg(long)]
    day_tokens: Option<u32>,
    /// Answers at once beyond which it is refused.
    #[arg(long)]
    requests: Option<u32>,
    /// Tokens a minute beyond which it stands back.
    #[arg(long)]
    soft_minute_tokens: Option<u32>,
    /// Tokens a day beyond which it stands back.
    #[arg(long)]
    soft_day_tokens: Option<u32>,
}

/// The file as the server reads it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    key: Vec<Entry>,
}

fn parse(text: &str) -> Result<Vec<Entry>, String> {
    let written: Written = toml::from_str(text).map_err(|e| e.to_string())?;
    Keys::new(written.key.clone()).map(|_| written.key)
}

/// The keys that a server goes by; none where no file is named.
///
/// # Errors
/// What is wrong with the file, by its name.
pub fn read(file: &Path) -> Result<Keys, String> {
    if file.as_os_str().is_empty() {
        return Ok(Keys::default());
    }
    let told = |e: String| format!("keys.file {}: {}", file.display(), e.trim_end());
    let text = std::fs::read_to_string(file).map_err(|e| told(e.to_string()))?;
    let keys = parse(&text).and_then(Keys::new).map_err(told)?;
    // An empty file would let everybody in.
    if keys.is_empty() {
        return Err(told("holds no key; make one with `mtplx keys add NAME`".into()));
    }
    Ok(keys)
}

/// The file that settings name.
///
/// # Errors
/// If they name none.
pub fn file_of(config: Option<&Path>) -> Result<PathBuf> {
    let none = "no file of keys is named: say --file, or --config with [keys] file = \"…\"";
    let config = config.context(none)?;
    let text = std::fs::read_to_string(config).with_context(|| config.display().to_string())?;
    let table: toml::Table = text.parse().with_context(|| config.display().to_string())?;
    let file = table.get("keys").and_then(|keys| keys.get("file")?.as_str());
    Ok(file.filter(|file| !file.is_empty()).context(none)?.into())
}

/// Does what is asked with the file.
///
/// # Errors
/// What is wrong with it, or with what was asked.
pub fn run(file: &Path, args: &KeysArgs) -> Result<()> {
    let _turn = turn(file, args)?;
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => HEAD.to_owned(),
        Err(e) => return Err(e).with_context(|| file.display().to_string()),
    };
    let wrong = |e: String| anyhow!("{}: {e}", file.display());
    let entries = parse(&text).map_err(wrong)?;
    let (head, rest) = text.split_at(head_of(&text));
    let mut document: DocumentMut = rest.parse().with_context(|| file.display().to_string())?;
    let known = |name: &str| {
        let at = entries.iter().position(|entry| entry.name == name);
        at.with_context(|| format!("no key is named {name:?}; `mtplx keys list` shows them"))
    };
    let made = match &args.command {
        Command::List => return list(&entries, args.json),
        Command::Add(add) => {
            if entries.iter().any(|entry| entry.name == add.name) {
                bail!("a key is named {:?} already; `mtplx keys rotate` renews it", add.name);
            }
            check_name(&add.name).map_err(|e| anyhow!(e))?;
            let (key, hash, prefix) = fresh()?;
            all(&mut document)?.push(written(add, &hash, &prefix));
            (add.name.clone(), Some(key))
        }
        Command::Revoke { name } => {
            let at = known(name)?;
            if entries.len() == 1 {
                bail!(
                    "{name:?} is the last key: a server without keys is open to everybody who \
                       reaches it; make another first, or take keys.file out of the settings"
                );
            }
            all(&mut document)?.remove(at);
            (name.clone(), None)
        }
        Command::Rotate { name } => {
            let at = known(name)?;
            let (key, hash, prefix) = fresh()?;
            let table = all(&mut document)?.get_mut(at).context("it was there")?;
            for (field, text) in [("hash", hash), ("prefix", prefix), ("created", today())] {
                table[field] = value(text);
            }
            (name.clone(), Some(key))
        }
    };
    let text = format!("{head}{}", document.to_string().trim_start());
    // Nothing is written that the server would not read.
    parse(&text).map_err(wrong)?;
    files::replace(file, &text)?;
    tell(made, args.json);
    Ok(())
}

/// Lets one command at a time edit a file. Its lock lies beside it, as the file itself is replaced.
fn turn(file: &Path, args: &KeysArgs) -> Result<Option<std::fs::File>> {
    if matches!(args.command, Command::List) {
        return Ok(None);
    }
    let beside = file.with_extension("lock");
    let lock = std::fs::File::create(&beside).with_context(|| beside.display().to_string())?;
    lock.lock().with_context(|| beside.display().to_string())?;
    Ok(Some(lock))
}

fn tell((name, key): (String, Option<String>), as_json: bool) {
    match key {
        Some(key) if as_json => println!("{:#}", json!({"name": name, "key": key})),
        Some(key) => {
            println!("{key}");
            eprintln!("the key of {name}: it is shown this once and stands nowhere");
        }
        None if as_json => println!("{:#}", json!({"name": name, "revoked": true})),
        None => {}
    }
}

fn list(entries: &[Entry], json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(entries)?);
        return Ok(());
    }
    println!("{:<20} {:<14} {:<12} {:>6}  {:<20} TENANT", "NAME", "KEY", "CLASS", "WEIGHT", "MADE");
    for Entry { name, prefix, class, weight, created, tenant, .. } in entries {
        let (class, tenant) =
            (format!("{class:?}").to_lowercase(), tenant.as_deref().unwrap_or("-"));
        println!(
            "{name:<20} {:<14} {class:<12} {weight:>6}  {created:<20} {tenant}",
            format!("{prefix}…")
        );
    }
    Ok(())
}

fn fresh() -> Result<(String, String, String)> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|e| anyhow!("the system gives no random bits: {e}"))?;
    Ok(new_key(random))
}

fn today() -> String {
    date(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}

fn all(document: &mut DocumentMut) -> Result<&mut ArrayOfTables> {
    let item = document.entry("key").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    item.as_array_of_tables_mut().context("keys are written as [[key]]")
}

fn written(add: &Add, hash: &str, prefix: &str) -> Table {
    let mut table = Table::new();
    table["name"] = value(&add.name);
    if let Some(tenant) = &add.tenant {
        table["tenant"] = value(tenant);
    }
    table["class"] = value(if add.background { "background" } else { "interactive" });
    table["weight"] = value(i64::from(add.weight.get()));
    table["trusted"] = value(add.trusted);
    let soft = [("minute_tokens", add.soft_minute_tokens), ("day_tokens", add.soft_day_tokens)];
    let hard = [("minute_tokens", add.minute_tokens), ("day_tokens", add.day_tokens)];
    let hard = hard.into_iter().chain([("requests", add.requests)]);
    for (name, bounds) in [("soft", soft.to_vec()), ("hard", hard.collect())] {
        let set = bounds.into_iter().filter_map(|(name, bound)| Some((name, i64::from(bound?))));
        let set: InlineTable = set.collect();
        if !set.is_empty() {
            table[name] = value(set);
        }
    }
    table["hash"] = value(hash);
    table["created"] = value(today());
    table["prefix"] = value(prefix);
    table
}

/// How many bytes of a file are remarks at its head: those are of no key, and stay when the first
/// one goes.
fn head_of(text: &str) -> usize {
    let remarks = text.split_inclusive('\n').take_while(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#')
    });
    remarks.map(str::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        keys: KeysArgs,
    }

    fn say(file: &Path, line: &str) -> Result<()> {
        let words = std::iter::once("keys").chain(line.split(' '));
        run(file, &<Line as clap::Parser>::try_parse_from(words)?.keys)
    }

    #[test]
    fn keys_are_added_renewed_and_revoked_and_what_people_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.toml");
        say(&file, "add ann --weight 3 --tenant team --day-tokens 1000").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, format!("# written by hand\n{text}")).unwrap();
        say(&file, "add bob --trusted --background --soft-minute-tokens 5").unwrap();
        let before = parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!((before[0].weight.get(), before[0].hard.day_tokens), (3, Some(1000)));
        assert!(before[1].trusted && before[1].soft.minute_tokens == Some(5));
        say(&file, "rotate ann").unwrap();
        let after = parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert!(after[0].hash != before[0].hash && after[1] == before[1]);
        say(&file, "revoke ann").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains("# written by hand") && !text.contains("ann"), "{text}");
        assert!(!read(&file).unwrap().is_empty());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_cannot_be_done_is_said_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.toml");
        say(&file, "add ann").unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        for (line, said) in [
            ("add ann", "rotate"),
            ("add a\"b", "no name"),
            ("revoke bob", "no key is named"),
            ("rotate bob", "no key is named"),
            ("revoke ann", "the last key"),
        ] {
            let error = say(&file, line).unwrap_err().to_string();
            assert!(error.contains(said), "{line}: {error}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}
