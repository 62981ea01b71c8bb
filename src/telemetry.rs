//! Logs, metrics and traces: set up once, before anything else.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use mtplx_actors::ingress::RenderMetrics;
use mtplx_actors::metrics::vllm;
use mtplx_kernels::memory::{self, Arrays};
use serde::Deserialize;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::config::{Log, LogFormat};

mod traces;
pub use traces::{Spans, Traces};

/// By which names metrics are shown.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Whether vLLM's names stand beside our own.
    pub vllm_names: bool,
}

/// Sets what is logged from now on; the recorder of the process is one, too.
static REFILTER: OnceLock<Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>> = OnceLock::new();

/// A filter from its text.
///
/// # Errors
/// When it cannot be read.
pub fn filter(text: &str) -> Result<EnvFilter> {
    let filter = EnvFilter::try_new(text).with_context(|| format!("log filter {text:?}"))?;
    // Beyond that it would write messages between nodes out, and people's texts stand in them.
    Ok(filter.add_directive("ractor_cluster=warn".parse()?))
}

/// What is logged: by the environment, or else by the settings.
fn filter_now(settings: &Log) -> Result<EnvFilter> {
    filter(by_environment().as_ref().unwrap_or(&settings.filter))
}

/// What goes before the settings.
#[must_use]
pub fn by_environment() -> Option<String> {
    std::env::var("RUST_LOG").ok()
}

/// From now on these settings say what is logged; in which shape stays.
///
/// # Errors
/// When the filter cannot be read.
pub fn refilter(settings: &Log) -> Result<()> {
    let filter = filter_now(settings)?;
    // Without logs there is nothing to filter.
    REFILTER.get().map_or(Ok(()), |refilter| refilter(filter))
}

/// Sends log lines to stderr; stdout belongs to commands.
///
/// # Errors
/// When the filter cannot be read.
pub fn logs(settings: &Log) -> Result<()> {
    install(settings, &Spans::default())
}

/// The same, and spans of requests to a collector where there is one, until what is returned is
/// dropped. Neither that nor this may happen within an async runtime.
///
/// # Errors
/// When the filter cannot be read, or the collector's address.
pub fn logs_and_traces(settings: &Log, traces: &Traces) -> Result<Spans> {
    let spans = traces.open()?;
    install(settings, &spans)?;
    Ok(spans)
}

fn install(settings: &Log, spans: &Spans) -> Result<()> {
    let (filter, handle) = reload::Layer::new(filter_now(settings)?);
    // Once in a process, as the subscriber.
    let _ = REFILTER.set(Box::new(move |filter| Ok(handle.reload(filter)?)));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match settings.format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // Spans hold numbers and names of ours; log lines may hold what clients wrote, and stay here.
    let ours = filter_fn(|seen| seen.is_span() && seen.target().starts_with("mtplx"));
    let sent = spans.tracer().map(|tracer| {
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(ours)
    });
    let all = tracing_subscriber::registry().with(sent).with(lines.with_filter(filter));
    all.try_init().map_err(|e| anyhow::anyhow!("cannot install the logger: {e}"))
}

/// Installs the recorder of the process and describes every metric.
///
/// # Errors
/// When there is a recorder already.
pub fn metrics() -> Result<PrometheusHandle> {
    Ok(mtplx_actors::metrics::install(PrometheusBuilder::new())?)
}

/// Renders all metrics; memory is looked up at that moment. `model` is what vLLM's names say.
#[must_use]
pub fn render(metrics: PrometheusHandle, shown: Metrics, model: &str) -> RenderMetrics {
    let model = model.to_owned();
    Arc::new(move || {
        match memory::arrays() {
            Ok(Arrays { active, cached, peak, limit }) => {
                let wide = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
                let all = [active, cached, peak, limit].map(wide);
                mtplx_actors::metrics::engine_memory(all);
            }
            Err(error) => tracing::debug!(%error, "MLX does not tell its memory"),
        }
        memory::shown().into_iter().for_each(mtplx_actors::metrics::footprint);
        let text = metrics.render();
        if shown.vllm_names { vllm::with_aliases(&text, &model) } else { text }
    })
}

/// Folds what was recorded into the histograms, so that they do not grow between two scrapes.
pub async fn upkeep(metrics: PrometheusHandle) {
    let mut beat = tokio::time::interval(Duration::from_secs(5));
    loop {
        beat.tick().await;
        metrics.run_upkeep();
    }
}
