//! The whole of it, tried: the small model is served, and its greedy text must be the same with and
//! without drafts.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
#[cfg(target_os = "linux")]
use mtplx_kernels::place::{Dtype, Place};
use serde_json::json;

use super::Check;
use crate::server::{Cost, Said, Server};

/// Serves the small model for as long as it takes.
pub(super) async fn texts() -> Check {
    match tried().await {
        Ok(found) => Check::pass("self-test", found),
        Err(error) => Check::fail(
            "self-test",
            format!("{error:#}"),
            "mtplx serve --mode safe tells drafts from the rest; please report this with --bundle",
        ),
    }
}

async fn tried() -> Result<String> {
    let start = Instant::now();
    let server = tokio::task::spawn_blocking(|| Server::start(&["--port".into(), "0".into()]));
    let server = server.await?.context("it did not start")?;
    let opened = start.elapsed().as_secs_f64();
    let (plain, _) = said(&server, "ar").await?;
    let (drafted, cost) = said(&server, "mtp").await?;
    if plain.is_empty() {
        bail!("the model said nothing");
    }
    // On GPUs near-ties may part texts; a beginning in common shows more than a text does.
    let equal = plain.chars().zip(drafted.chars()).take_while(|(a, b)| a == b).count();
    let whole = plain.chars().count();
    if plain != drafted && (exact() || equal * 4 < whole) {
        bail!("with drafts the text is another one after {equal} of {whole} characters");
    }
    let share = cost.acceptance().context("nothing was drafted")?;
    Ok(format!(
        "opened in {opened:.1} s; same text with and without drafts, {:.0} % of them accepted",
        100.0 * share
    ))
}

/// Whether kernels compute here whose results are equal to the bit, whatever travels with a row.
fn exact() -> bool {
    #[cfg(target_os = "linux")]
    return matches!(Place::detect(Dtype::Float32), Ok(Place::Host));
    #[cfg(not(target_os = "linux"))]
    return false;
}

async fn said(server: &Server, mode: &str) -> Result<(String, Cost)> {
    let body = json!({
        "messages": [{"role": "user", "content": "Tell me a short story about a dragon."}],
        "temperature": 0, "max_tokens": 64, "generation_mode": mode, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let stream = server.chat(&body).await?;
    tokio::pin!(stream);
    let (mut text, mut cost) = (String::new(), Cost::default());
    while let Some(part) = stream.next().await {
        match part? {
            Said::Text(more) | Said::Thought(more) => text.push_str(&more),
            Said::Cost(told) => cost = told,
            Said::Finish(_) => {}
        }
    }
    Ok((text, cost))
}
