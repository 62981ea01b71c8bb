//! Logs and metrics: set up once, before anything else.

use std::io::IsTerminal;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use mtplx_actors::ingress::RenderMetrics;
use mtplx_kernels::memory::{self, Arrays};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Log, LogFormat};

/// Sets what is logged from now on; the recorder of the process is one, too.
static REFILTER: OnceLock<Box<dyn Fn(EnvFilter) -> Result<()> + Send + Sync>> = OnceLock::new();

/// A filter from its text.
///
/// # Errors
/// When it cannot be read.
pub fn filter(text: &str) -> Result<EnvFilter> {
    EnvFilter::try_new(text).with_context(|| format!("log filter {text:?}"))
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
    let (filter, handle) = reload::Layer::new(filter_now(settings)?);
    // Once in a process, as the subscriber.
    let _ = REFILTER.set(Box::new(move |filter| Ok(handle.reload(filter)?)));
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    let installed = match settings.format {
        LogFormat::Pretty => registry.with(lines).try_init(),
        LogFormat::Json => registry.with(lines.json()).try_init(),
    };
    installed.map_err(|e| anyhow::anyhow!("cannot install the logger: {e}"))
}

/// Installs the recorder of the process and describes every metric.
///
/// # Errors
/// When there is a recorder already.
pub fn metrics() -> Result<PrometheusHandle> {
    Ok(mtplx_actors::metrics::install(PrometheusBuilder::new())?)
}

/// Renders all metrics; the engine's memory is looked up at that moment.
#[must_use]
pub fn render(metrics: PrometheusHandle) -> RenderMetrics {
    Arc::new(move || {
        match memory::arrays() {
            Ok(Arrays { active, cached, peak }) => {
                let wide = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
                mtplx_actors::metrics::engine_memory(wide(active), wide(cached), wide(peak));
            }
            Err(error) => tracing::debug!(%error, "MLX does not tell its memory"),
        }
        metrics.render()
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
