//! What was found, as a file that may be shown to others.

use std::path::Path;

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

/// Words in the names of settings whose values are nobody's business.
const SECRET: [&str; 6] = ["token", "secret", "password", "key", "authorization", "header"];

/// Beginnings of what opens something, wherever it stands.
const KEYS: [&str; 5] = ["mtplx_", "hf_", "sk-", "Bearer ", "ghp_"];

/// Writes the report and the settings, without what is secret.
pub(super) fn write(file: &Path, report: &Value, config: Option<&Path>) -> Result<()> {
    let home = std::env::var("HOME").unwrap_or_default();
    let mut parts = vec![("doctor.json", serde_json::to_string_pretty(report)?)];
    if let Some(text) = config.and_then(|path| std::fs::read_to_string(path).ok()) {
        parts.push(("settings.toml", without_secrets(&text)));
    }
    let to = crate::files::make(file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    for (name, text) in parts {
        let text = tamed(&text, &home);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, format!("mtplx-doctor/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()?;
    Ok(())
}

/// Settings by line: what a line says that names a secret, and every remark, is left out.
fn without_secrets(text: &str) -> String {
    let mut shown = String::new();
    // A value in triple quotes goes on over lines that name nothing.
    let mut within = None;
    for line in text.lines() {
        if let Some(quotes) = within {
            if line.contains(quotes) {
                within = None;
            }
            continue;
        }
        let line = line.trim_end();
        let (name, value) = line.split_once('=').map_or((line, None), |(n, v)| (n, Some(v)));
        within = value.and_then(|value| {
            ["\"\"\"", "'''"].into_iter().find(|quotes| value.matches(quotes).count() == 1)
        });
        // Numbers of tokens are no tokens; in an inline table names stand in the value.
        let names = if value.is_some_and(|value| value.contains('{')) { line } else { name };
        let names = names.to_lowercase().replace("tokens", "");
        let secret = SECRET.iter().any(|word| names.contains(word));
        match value {
            _ if line.trim_start().starts_with('#') => continue,
            Some(_) if secret || within.is_some() => shown.push_str(&format!("{name}= \"…\"")),
            Some(_) | None => shown.push_str(line),
        }
        shown.push('\n');
    }
    shown
}

/// Without keys, wherever they stand, and without the name of whoever lives in the home folder.
fn tamed(text: &str, home: &str) -> String {
    let mut text = text.to_owned();
    if home.len() > 1 {
        text = text.replace(home.trim_end_matches('/'), "~");
    }
    for begin in KEYS {
        let mut shown = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(begin) {
            let after = &rest[at + begin.len()..];
            let word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            let length = after.find(|c| !word(c)).unwrap_or(after.len());
            shown.push_str(&rest[..at + begin.len()]);
            // Names of metrics and the like are shorter, or no random letters.
            let random = length >= 16 && after[..length].contains(|c: char| c.is_ascii_digit());
            shown.push_str(if random { "…" } else { &after[..length] });
            rest = &after[length..];
        }
        shown.push_str(rest);
        text = shown;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_remarks_and_homes_are_left_out() {
        let text = "# call Ann\n[admin]\ntoken = \"abc\"\n[server]\nport = 1\n\
                    [traces]\nheaders = '''\nsecretive\n'''\nname = \"/home/ann/m\"\n\
                    a = { b = 1, token_of = \"zebra\" }\n";
        let shown = tamed(&without_secrets(text), "/home/ann");
        for secret in ["abc", "Ann", "ann", "secretive", "zebra"] {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
        assert!(shown.contains("port = 1") && shown.contains("~/m"), "{shown}");
        let keys = "mtplx_0123456789abcdefgh hf_abcdefghijklmnop1 mtplx_requests_total";
        assert_eq!(tamed(keys, ""), "mtplx_… hf_… mtplx_requests_total");
    }
}
