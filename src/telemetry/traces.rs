//! Traces: spans of requests to a collector, by OTLP over HTTP.

use anyhow::{Context, Result};
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};
use serde::Deserialize;

/// Where traces go.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    /// Of a collector; empty for none.
    pub endpoint: String,
    /// Share of requests that are traced, of those that bring no decision of their own.
    pub ratio: f64,
}

/// The way of spans to the collector. Dropping it sends what is left.
#[derive(Debug, Default)]
pub struct Spans(Option<SdkTracerProvider>);

impl Traces {
    /// Proves that a collector can be reached by what is written.
    ///
    /// # Errors
    /// What is wrong, in words that name the setting.
    pub fn check(&self) -> Result<(), String> {
        let Self { endpoint, ratio } = self;
        if !endpoint.is_empty() && !endpoint.starts_with("http://") {
            return Err(format!(
                "traces.endpoint = {endpoint:?}: must be empty or begin with http://; a collector \
                 on this machine can pass traces on by TLS"
            ));
        }
        if !(0.0..=1.0).contains(ratio) {
            return Err(format!("traces.ratio must be between 0 and 1, got {ratio}"));
        }
        Ok(())
    }

    /// The way to the collector, if there is one. Not to be called within an async runtime.
    pub(super) fn open(&self) -> Result<Spans> {
        if self.endpoint.is_empty() {
            return Ok(Spans(None));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&self.endpoint)
            .build()
            .with_context(|| format!("traces.endpoint {:?}", self.endpoint))?;
        let resource = Resource::builder()
            .with_service_name("mtplx")
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                env!("CARGO_PKG_VERSION"),
            ))
            .build();
        let by_ratio = Sampler::TraceIdRatioBased(self.ratio);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(by_ratio)))
            .with_resource(resource)
            .build();
        Ok(Spans(Some(provider)))
    }
}

impl Spans {
    pub(super) fn tracer(&self) -> Option<SdkTracer> {
        self.0.as_ref().map(|provider| provider.tracer("mtplx"))
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        if let Some(provider) = &self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}
