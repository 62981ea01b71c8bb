//! `mtplx chat` and `mtplx run`: a conversation in the terminal, or one answer for a script, from a
//! server that runs already or from one of our own.

#![allow(clippy::print_stdout, reason = "a chat is what is printed")]

use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use console::style;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::exit::Stop;
use crate::server::{Cost, Said, Server, URL};

mod markdown;
mod talk;

use self::markdown::Page;

/// Whom to ask, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct Ask {
    /// The server; http://127.0.0.1:8000 without it, or one of our own if nobody is there.
    #[arg(long, env = "MTPLX_URL", conflicts_with = "model")]
    url: Option<String>,
    /// Start a server of our own for this model, a folder or owner/name; it ends with the chat.
    #[arg(long)]
    model: Option<PathBuf>,
    /// What the model is told before everything else.
    #[arg(long)]
    system: Option<String>,
    /// Most tokens of an answer.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// 0 for the likeliest text.
    #[arg(long)]
    temperature: Option<f32>,
    /// Makes answers repeatable.
    #[arg(long)]
    seed: Option<u64>,
    /// Without drafts.
    #[arg(long)]
    no_mtp: bool,
    /// Without thinking first.
    #[arg(long)]
    no_thinking: bool,
    /// The answer as JSON; `mtplx schema run` describes it.
    #[arg(long)]
    json: bool,
}

/// A conversation.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx chat\n  mtplx chat --model owner/name\n  \
    echo 'Say hi' | mtplx chat --json\n\nWithin it, /help lists what there is. Ctrl-C stops an \
    answer, Ctrl-D leaves.")]
pub struct ChatArgs {
    #[command(flatten)]
    ask: Ask,
}

/// One answer.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  mtplx run 'Name three rivers'\n  \
    git diff | mtplx run 'Write a commit message for this'\n  mtplx run --json --seed 1 'Hi'")]
pub struct RunArgs {
    /// What to say; what comes on stdin follows it.
    prompt: Option<String>,
    #[command(flatten)]
    ask: Ask,
}

/// Talks until somebody leaves; gives one answer where stdin is no terminal.
///
/// # Errors
/// When nobody answers, or what is asked is refused.
pub fn run(args: &ChatArgs) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    if !std::io::stdin().is_terminal() {
        return runtime.block_on(once(&args.ask, read_stdin()?));
    }
    if args.ask.json {
        bail!("--json wants the message on stdin: echo 'Say hi' | mtplx chat --json");
    }
    runtime.block_on(talk::talk(&args.ask))
}

/// Talks with a server as `mtplx start` found it.
///
/// # Errors
/// As [`run`].
pub fn with(url: &str) -> Result<()> {
    let ask = Ask { url: Some(url.to_owned()), ..Ask::default() };
    run(&ChatArgs { ask })
}

/// Gives one answer.
///
/// # Errors
/// As [`run`].
pub fn run_once(args: &RunArgs) -> Result<()> {
    let piped = if std::io::stdin().is_terminal() { String::new() } else { read_stdin()? };
    let said: Vec<&str> = args.prompt.as_deref().into_iter().chain([piped.trim_end()]).collect();
    let said: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
    if said.is_empty() {
        bail!("nothing was said: mtplx run 'Name three rivers'");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(once(&args.ask, said.join("\n\n")))
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    Ok(text)
}

async fn once(ask: &Ask, text: String) -> Result<()> {
    if text.trim().is_empty() {
        bail!("nothing was said on stdin: echo 'Hi' | mtplx chat, or chat in a terminal");
    }
    let server = server(ask).await?;
    let model = server.served().await?.model;
    let mut messages = ask.opening();
    messages.push(json!({"role": "user", "content": text}));
    let live = !ask.json && std::io::stdout().is_terminal();
    let mut page = Page::new(std::io::stdout(), live && console::colors_enabled());
    let mut show = |said: &Said| match said {
        Said::Text(text) if live => page.text(text),
        // As it is: a script wants the very bytes.
        Said::Text(text) if !ask.json => print(text),
        Said::Thought(_) | Said::Text(_) | Said::Finish(_) | Said::Cost(_) => Ok(()),
    };
    let answer = answer(&server, &ask.body(&model, &messages, !ask.no_mtp), &mut show).await?;
    if answer.stopped {
        return Err(Stop::Interrupted.into());
    }
    if live {
        page.end()?;
        eprintln!("{}", style(footnote(&answer)).dim());
    } else if ask.json {
        println!("{}", serde_json::to_string_pretty(&report(&model, &answer))?);
    } else {
        println!();
    }
    Ok(())
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The one that was named or is where servers usually are, or else one of our own.
async fn server(ask: &Ask) -> Result<Server> {
    if let Some(url) = &ask.url {
        return Server::at(url);
    }
    if ask.model.is_none() {
        let usual = Server::at(URL)?;
        // A server that wants a key is a server.
        if usual.page("/livez").await.is_ok_and(|(status, _)| status == 200) {
            return Ok(usual);
        }
        eprintln!("mtplx: nobody serves at {URL}; starting the small model inside, for this chat");
    }
    let mut args: Vec<OsString> = vec!["--port".into(), "0".into()];
    if let Some(model) = &ask.model {
        args.extend(["--model".into(), model.clone().into_os_string()]);
    }
    tokio::task::spawn_blocking(move || Server::start(&args)).await?
}

impl Ask {
    fn opening(&self) -> Vec<Value> {
        let system = self.system.iter();
        system.map(|text| json!({"role": "system", "content": text})).collect()
    }

    fn body(&self, model: &str, messages: &[Value], mtp: bool) -> Value {
        let mut body = json!({"model": model, "messages": messages, "stream": true,
            "stream_options": {"include_usage": true}});
        let wishes = [
            ("max_tokens", self.max_tokens.map(Value::from)),
            // As written: a float's digits beyond what was meant would be sent, too.
            ("temperature", self.temperature.and_then(|t| t.to_string().parse().ok())),
            ("seed", self.seed.map(Value::from)),
            ("generation_mode", (!mtp).then(|| "ar".into())),
            ("enable_thinking", self.no_thinking.then(|| false.into())),
        ];
        for (name, wish) in wishes {
            if let Some(wish) = wish {
                body[name] = wish;
            }
        }
        body
    }
}

/// What came of a question.
#[derive(Debug, Default)]
struct Answer {
    thought: String,
    text: String,
    finish: String,
    cost: Cost,
    /// By Ctrl-C.
    stopped: bool,
}

/// Shows an answer while it comes; Ctrl-C stops it, and what came stands.
async fn answer(
    server: &Server,
    body: &Value,
    show: &mut impl FnMut(&Said) -> std::io::Result<()>,
) -> Result<Answer> {
    let mut answer = Answer::default();
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    let stream = tokio::select! {
        stream = server.chat(body) => stream?,
        _ = &mut stop => return Ok(Answer { stopped: true, ..answer }),
    };
    tokio::pin!(stream);
    loop {
        let said = tokio::select! {
            said = stream.next() => said,
            _ = &mut stop => {
                answer.stopped = true;
                return Ok(answer);
            }
        };
        let Some(said) = said.transpose()? else { return Ok(answer) };
        show(&said)?;
        match said {
            Said::Thought(text) => answer.thought.push_str(&text),
            Said::Text(text) => answer.text.push_str(&text),
            Said::Finish(why) => answer.finish = why,
            Said::Cost(cost) => answer.cost = cost,
        }
    }
}

/// What an answer took, in a line.
fn footnote(answer: &Answer) -> String {
    let Cost { tokens, tokens_per_second, cached, prompt, .. } = answer.cost;
    let mut parts = vec![format!("{tokens} tokens"), format!("{tokens_per_second:.1} tok/s")];
    let drafts = answer.cost.acceptance();
    parts.extend(drafts.map(|share| format!("{:.0} % of drafts accepted", 100.0 * share)));
    parts.extend((cached > 0).then(|| format!("{cached} of {prompt} warm")));
    parts.extend((answer.finish == "length").then(|| "cut off by its length".into()));
    parts.join(", ")
}

fn report(model: &str, answer: &Answer) -> Value {
    let Cost { prompt, cached, tokens, tokens_per_second, drafted, accepted } = answer.cost;
    json!({
        "model": model,
        "text": answer.text,
        "reasoning": (!answer.thought.is_empty()).then_some(&answer.thought),
        "finish_reason": answer.finish,
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "tokens": tokens,
        "tokens_per_second": tokens_per_second,
        "drafted": drafted,
        "accepted": accepted,
        "acceptance": answer.cost.acceptance(),
    })
}
