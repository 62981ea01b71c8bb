//! The same numbers under vLLM's names, for dashboards and tools that were made for it.
//!
//! They are written when metrics are asked for, from the text that Prometheus gets: recording
//! costs nothing more. Names are those of vLLM's V1 engine; where it splits a metric by nothing,
//! our labels stay beside its own, so sums are right and `by (le)` is, too.

use std::fmt::Write;

/// Ours, vLLM's, and what it says.
struct Alias {
    ours: &'static str,
    name: &'static str,
    help: &'static str,
}

const fn alias(ours: &'static str, name: &'static str, help: &'static str) -> Alias {
    Alias { ours, name, help }
}

#[rustfmt::skip]
const ALIASES: [Alias; 20] = [
    alias("mtplx_rows_running", "vllm:num_requests_running", "Requests that run."),
    alias("mtplx_rows_waiting", "vllm:num_requests_waiting", "Requests that wait."),
    alias("mtplx_rows_stepped_back_total", "vllm:num_preemptions_total", "Requests set back."),
    alias("mtplx_prompt_seated_tokens_total", "vllm:prompt_tokens_total", "Prompt tokens."),
    alias("mtplx_generated_tokens_total", "vllm:generation_tokens_total", "Tokens generated."),
    alias("mtplx_requests_total", "vllm:request_success_total", "Requests by how they ended."),
    alias("mtplx_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", "TTFT."),
    alias("mtplx_inter_token_seconds", "vllm:inter_token_latency_seconds", "ITL."),
    alias("mtplx_inter_token_seconds", "vllm:time_per_output_token_seconds", "ITL, its old name."),
    alias("mtplx_request_duration_seconds", "vllm:e2e_request_latency_seconds", "End to end."),
    alias("mtplx_queue_seconds", "vllm:request_queue_time_seconds", "Time in the queue."),
    alias("mtplx_prefill_seconds", "vllm:request_prefill_time_seconds", "Time of prefill."),
    alias("mtplx_decode_seconds", "vllm:request_decode_time_seconds", "Time of decode."),
    alias("mtplx_request_prompt_tokens", "vllm:request_prompt_tokens", "Tokens of prompts."),
    alias("mtplx_request_generated_tokens", "vllm:request_generation_tokens", "Tokens of answers."),
    alias("mtplx_drafted_tokens_total", "vllm:spec_decode_num_draft_tokens_total", "Drafted."),
    alias("mtplx_draft_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total",
        "Accepted."),
    // Prompt tokens looked up and found, as vLLM counts its prefix cache.
    alias("mtplx_prompt_seated_tokens_total", "vllm:prefix_cache_queries_total", "Looked up."),
    alias("mtplx_prompt_tokens_total", "vllm:prefix_cache_hits_total", "Found warm."),
    alias("mtplx_pages_free", "vllm:kv_cache_usage_perc", "Share of KV pages in use."),
];

/// `text` and, behind it, what vLLM would say of `model`.
#[must_use]
pub fn with_aliases(text: &str, model: &str) -> String {
    let model: String = model.chars().filter(|c| !matches!(c, '"' | '\\' | '\n')).collect();
    let own = format!("model_name=\"{model}\",engine=\"0\"");
    let mut out = text.to_owned();
    for alias in &ALIASES {
        say(&mut out, text, alias, &own);
    }
    out
}

fn say(out: &mut String, text: &str, alias: &Alias, own: &str) {
    let kind = text
        .lines()
        .find_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(alias.ours)?.strip_prefix(' '));
    let Some(kind) = kind else { return };
    let Alias { name, help, .. } = alias;
    // Writing to a string cannot fail.
    let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(alias.ours) else { continue };
        let Some(at) = rest.find(['{', ' ']) else { continue };
        let (suffix, rest) = rest.split_at(at);
        let histogram = kind == "histogram" && ["_bucket", "_sum", "_count"].contains(&suffix);
        if !(suffix.is_empty() || histogram) {
            continue;
        }
        let Some((labels, value)) = rest.rsplit_once(' ') else { continue };
        let labels = labels.trim_matches(['{', '}']);
        let Some((labels, value)) = translated(alias, labels, value, text) else { continue };
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(out, "{name}{suffix}{{{own}{comma}{labels}}} {value}");
    }
}

/// What vLLM would say instead, if it would say that at all.
fn translated(alias: &Alias, labels: &str, value: &str, text: &str) -> Option<(String, String)> {
    let as_it_is = Some((labels.to_owned(), value.to_owned()));
    match alias.name {
        "vllm:request_success_total" => {
            let fine = ["finish=\"stop\"", "finish=\"length\""].iter().any(|f| labels.contains(f));
            fine.then(|| (labels.replace("finish=", "finished_reason="), value.to_owned()))
        }
        "vllm:prefix_cache_hits_total" => {
            (labels == "source=\"restored\"").then(|| (String::new(), value.to_owned()))
        }
        "vllm:kv_cache_usage_perc" => {
            let most = text.lines().find_map(|line| line.strip_prefix("mtplx_pages_max "))?;
            let (free, most): (f64, f64) = (value.parse().ok()?, most.parse().ok()?);
            (most > 0.0).then(|| (String::new(), (1.0 - free / most).to_string()))
        }
        _ => as_it_is,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE mtplx_requests_total counter\n\
        mtplx_requests_total{route=\"/v1/completions\",class=\"interactive\",finish=\"stop\"} 3\n\
        mtplx_requests_total{route=\"/v1/completions\",class=\"interactive\",finish=\"fault\"} 1\n\
        # TYPE mtplx_pages_free gauge\nmtplx_pages_free 75\n\
        # TYPE mtplx_pages_max gauge\nmtplx_pages_max 100\n\
        # TYPE mtplx_prompt_tokens_total counter\n\
        mtplx_prompt_tokens_total{source=\"forwarded\"} 10\n\
        mtplx_prompt_tokens_total{source=\"restored\"} 4\n\
        # TYPE mtplx_queue_seconds histogram\nmtplx_queue_seconds_bucket{le=\"1\"} 2\n\
        mtplx_queue_seconds_sum 0.5\nmtplx_queue_seconds_count 2\n";

    #[test]
    fn vllms_names_say_the_same_beside_our_own() {
        let text = with_aliases(TEXT, "qwen \"3\"");
        assert!(text.starts_with(TEXT));
        let own = "model_name=\"qwen 3\",engine=\"0\"";
        for line in [
            format!(
                "vllm:request_success_total{{{own},route=\"/v1/completions\",\
                 class=\"interactive\",finished_reason=\"stop\"}} 3"
            ),
            format!("vllm:kv_cache_usage_perc{{{own}}} 0.25"),
            format!("vllm:prefix_cache_hits_total{{{own}}} 4"),
            format!("vllm:request_queue_time_seconds_bucket{{{own},le=\"1\"}} 2"),
            format!("vllm:request_queue_time_seconds_sum{{{own}}} 0.5"),
            "# TYPE vllm:request_queue_time_seconds histogram".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("finished_reason=\"fault\""), "{text}");
    }

    #[test]
    fn every_alias_is_of_a_metric_that_there_is() {
        for alias in &ALIASES {
            assert!(crate::metrics::ALL.iter().any(|m| m.name == alias.ours), "{}", alias.ours);
        }
    }
}
