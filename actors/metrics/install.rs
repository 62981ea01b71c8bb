//! How metrics come into the process's recorder, and values into metrics.

use metrics::{Key, Label, Level, Metadata, Recorder, SharedString};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{ALL, Kind, Metric};

/// Makes the recorder the process's own, described and with every known series at zero. Whoever
/// calls this calls the handle's `run_upkeep` every few seconds too.
///
/// # Errors
/// If a recorder was installed before.
pub fn install(builder: PrometheusBuilder) -> Result<PrometheusHandle, BuildError> {
    let handle = with_buckets(builder)?.install_recorder()?;
    metrics::with_recorder(prepare);
    Ok(handle)
}

/// Gives each histogram its buckets.
///
/// # Errors
/// Never with the buckets above: none is empty.
pub fn with_buckets(mut builder: PrometheusBuilder) -> Result<PrometheusBuilder, BuildError> {
    for metric in ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            let name = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(name, bounds)?;
        }
    }
    Ok(builder)
}

/// Describes every metric and registers each series that is known beforehand.
pub fn prepare(recorder: &dyn Recorder) {
    for metric in ALL {
        let (name, help) = (metric.name.into(), metric.help.into());
        match metric.kind {
            Kind::Counter => recorder.describe_counter(name, metric.unit.of_prometheus(), help),
            Kind::Gauge => recorder.describe_gauge(name, metric.unit.of_prometheus(), help),
            Kind::Histogram(_) => {
                recorder.describe_histogram(name, metric.unit.of_prometheus(), help);
            }
        }
        metric.register(recorder);
    }
}

impl Metric {
    fn register(&self, recorder: &dyn Recorder) {
        let mut series: Vec<Vec<Label>> = vec![Vec::new()];
        for axis in self.axes {
            let longer = |known: &Vec<Label>| {
                let known = known.clone();
                axis.values.iter().map(move |&value| {
                    let mut labels = known.clone();
                    labels.push(Label::new(axis.name, value));
                    labels
                })
            };
            series = series.iter().flat_map(longer).collect();
        }
        for labels in series {
            let key = Key::from_parts(self.name, labels);
            match self.kind {
                Kind::Counter => drop(recorder.register_counter(&key, &METADATA)),
                Kind::Histogram(_) => drop(recorder.register_histogram(&key, &METADATA)),
                // A gauge that nobody has set yet has no value, not the value zero.
                Kind::Gauge => {}
            }
        }
    }

    fn key<const N: usize>(&self, values: [SharedString; N]) -> Key {
        debug_assert_eq!(N, self.axes.len(), "{} has a value for each label", self.name);
        let labels = self.axes.iter().zip(values);
        Key::from_parts(self.name, labels.map(|(a, v)| Label::new(a.name, v)).collect::<Vec<_>>())
    }

    pub(super) fn add<const N: usize>(&self, n: u64, labels: [SharedString; N]) {
        let key = self.key(labels);
        metrics::with_recorder(|r| r.register_counter(&key, &METADATA).increment(n));
    }

    pub(super) fn set<const N: usize>(&self, value: f64, labels: [SharedString; N]) {
        let key = self.key(labels);
        metrics::with_recorder(|r| r.register_gauge(&key, &METADATA).set(value));
    }

    pub(super) fn observe<const N: usize>(
        &self,
        value: f64,
        times: usize,
        labels: [SharedString; N],
    ) {
        let key = self.key(labels);
        metrics::with_recorder(|r| {
            r.register_histogram(&key, &METADATA).record_many(value, times);
        });
    }
}

const METADATA: Metadata<'static> = Metadata::new("mtplx", Level::INFO, None);
