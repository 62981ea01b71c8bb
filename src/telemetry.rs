//! Logs and metrics: set up once, before anything else.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use mtplx_actors::ingress::RenderMetrics;
use mtplx_kernels::memory::{self, Arrays};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Sends log lines to stderr; stdout belongs to commands.
///
/// # Errors
/// When the filter cannot be read.
pub fn logs(settings: &Log) -> Result<()> {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| settings.filter.clone());
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("log filter {filter:?}"))?;
    // Beyond that it would write messages between nodes out, and people's texts stand in them.
    let filter = filter.add_directive("ractor_cluster=warn".parse()?);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let installed = match settings.format {
        LogFormat::Pretty => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
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
