//! A conversation: lines that are edited, answers that are rendered while they come, and commands.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use console::style;
use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use serde_json::{Value, json};

use super::markdown::{Page, tame};
use super::{Ask, answer, footnote, server};
use crate::server::{Said, Server};

const HELP: &str = "\
/help            this
/clear           forget what was said
/system TEXT     what the model is told before everything else; without TEXT, what it is
/mtp on|off      with drafts or without
/retry           another answer to the last question
/save FILE       write what was said to a new file
/exit            leave; so does Ctrl-D
A line that ends with \\ goes on in the next. Ctrl-C stops an answer.";

/// What is said so far.
struct Talk<'a> {
    ask: &'a Ask,
    server: Server,
    model: String,
    messages: Vec<Value>,
    mtp: bool,
}

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Empty,
    Help,
    Clear,
    System(&'a str),
    Mtp(bool),
    Retry,
    Save(&'a str),
    Exit,
    Unknown(&'a str),
    Say(&'a str),
}

fn line_of(line: &str) -> Line<'_> {
    let line = line.trim();
    if line.is_empty() {
        return Line::Empty;
    }
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (word, rest.trim()) {
        ("/help" | "/?", _) => Line::Help,
        ("/clear", _) => Line::Clear,
        ("/system", text) => Line::System(text),
        ("/mtp", "on") => Line::Mtp(true),
        ("/mtp", "off") => Line::Mtp(false),
        ("/retry", _) => Line::Retry,
        ("/save", file) if !file.is_empty() => Line::Save(file),
        ("/exit" | "/quit" | "/bye", _) => Line::Exit,
        // Paths and the like begin so, too.
        (word, _) if word.starts_with('/') && !word[1..].contains('/') => Line::Unknown(word),
        _ => Line::Say(line),
    }
}

/// Talks until somebody leaves.
pub(super) async fn talk(ask: &Ask) -> Result<()> {
    let server = server(ask).await?;
    let model = server.served().await?.model;
    let of = if server.is_own() { "ends with this chat".into() } else { server.url.clone() };
    println!("{} {}", style(&model).bold(), style(format!("({of}); /help, /exit")).dim());
    let mut talk = Talk { ask, server, model, messages: ask.opening(), mtp: !ask.no_mtp };
    let mut editor: Editor<(), MemHistory> =
        Editor::with_history(rustyline::Config::default(), MemHistory::new())?;
    loop {
        let line = match whole_line(&mut editor) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                println!("{}", style("/exit or Ctrl-D leaves").dim());
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from this terminal"),
        };
        editor.add_history_entry(line.as_str())?;
        let line = line_of(&line);
        if line == Line::Exit {
            return Ok(());
        }
        // What goes wrong in a turn does not end the conversation.
        if let Err(error) = talk.turn(line).await {
            eprintln!("{} {error:#}", style("!").red());
        }
    }
}

/// A line, with those that it goes on in.
fn whole_line(editor: &mut Editor<(), MemHistory>) -> rustyline::Result<String> {
    let mut whole = editor.readline("> ")?;
    while let Some(so_far) = whole.strip_suffix('\\') {
        whole = format!("{so_far}\n{}", editor.readline(". ")?);
    }
    Ok(whole)
}

impl Talk<'_> {
    async fn turn(&mut self, line: Line<'_>) -> Result<()> {
        match line {
            Line::Empty | Line::Exit => {}
            Line::Help => println!("{HELP}"),
            Line::Clear => {
                self.messages.retain(|message| message["role"] == "system");
                println!("{}", style("forgotten").dim());
            }
            Line::System("") => println!("{}", self.system().unwrap_or("nothing")),
            Line::System(text) => {
                self.messages.retain(|message| message["role"] != "system");
                self.messages.insert(0, json!({"role": "system", "content": text}));
            }
            Line::Mtp(on) => {
                self.mtp = on;
                println!("{}", style(if on { "with drafts" } else { "without drafts" }).dim());
            }
            Line::Retry => {
                if self.messages.last().is_some_and(|last| last["role"] == "assistant") {
                    self.messages.pop();
                }
                if self.messages.last().is_none_or(|last| last["role"] != "user") {
                    anyhow::bail!("nothing was asked yet");
                }
                self.answer().await?;
            }
            Line::Save(file) => {
                save(Path::new(file), &self.messages)?;
                println!("{}", style(format!("written to {file}")).dim());
            }
            Line::Unknown(word) => anyhow::bail!("{word}: no such command; /help lists them"),
            Line::Say(text) => {
                self.messages.push(json!({"role": "user", "content": text}));
                self.answer().await?;
            }
        }
        Ok(())
    }

    fn system(&self) -> Option<&str> {
        let first = self.messages.first().filter(|message| message["role"] == "system")?;
        first["content"].as_str()
    }

    /// Asks with all that was said, and keeps what comes: also of an answer that was stopped.
    async fn answer(&mut self) -> Result<()> {
        let body = self.ask.body(&self.model, &self.messages, self.mtp);
        let mut page = Page::new(std::io::stdout(), console::colors_enabled());
        let mut thinks = false;
        let mut show = |said: &Said| match said {
            Said::Thought(text) => {
                thinks = true;
                let mut out = std::io::stdout().lock();
                write!(out, "{}", style(tame(text)).dim())?;
                out.flush()
            }
            Said::Text(text) => {
                if std::mem::take(&mut thinks) {
                    println!("\n");
                }
                page.text(text)
            }
            Said::Finish(_) | Said::Cost(_) => Ok(()),
        };
        let answer = answer(&self.server, &body, &mut show).await;
        page.end()?;
        let answer = answer?;
        let said = if answer.stopped { "stopped".into() } else { footnote(&answer) };
        println!("{}\n", style(said).dim());
        if !answer.text.is_empty() {
            self.messages.push(json!({"role": "assistant", "content": answer.text}));
        }
        Ok(())
    }
}

/// What was said, for its owner alone, in a file that was not there.
fn save(file: &Path, messages: &[Value]) -> Result<()> {
    let mut to = crate::files::make(file)?;
    for message in messages {
        let text = |name: &str| message[name].as_str().unwrap_or_default();
        writeln!(to, "## {}\n\n{}\n", text("role"), text("content"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_what_is_said() {
        assert_eq!(line_of(" /mtp  off "), Line::Mtp(false));
        assert_eq!(line_of("/system be brief"), Line::System("be brief"));
        assert_eq!(line_of("/save a b.md"), Line::Save("a b.md"));
        assert_eq!(line_of("/mtp maybe"), Line::Unknown("/mtp"));
        assert_eq!(line_of("/etc/passwd is what?"), Line::Say("/etc/passwd is what?"));
        assert_eq!(line_of("  "), Line::Empty);
    }

    #[test]
    fn what_was_said_is_written_once_and_never_over_something() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("talk.md");
        save(&file, &[json!({"role": "user", "content": "hi"})]).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "## user\n\nhi\n\n");
        assert!(save(&file, &[]).is_err());
    }
}
