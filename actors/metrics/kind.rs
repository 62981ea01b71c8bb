//! What a metric is.

use metrics::Unit as PrometheusUnit;

/// A metric as it is known outside.
#[derive(Debug)]
pub struct Metric {
    /// Its name at `/metrics`.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// What it counts or measures.
    pub unit: Unit,
    /// One sentence for people.
    pub help: &'static str,
    /// By what it is split.
    pub axes: &'static [Axis],
}

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by these upper bounds.
    Histogram(&'static [f64]),
}

/// What a metric measures, always in the base unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Things: requests, rows, pages.
    Count,
    /// Tokens.
    Tokens,
    /// Seconds, also those since 1970.
    Seconds,
    /// Bytes.
    Bytes,
    /// Degrees Celsius.
    Celsius,
    /// A share from 0 to 1.
    Ratio,
    /// Always 1; what matters are the labels.
    Info,
}

/// A label and the values it can take; no values where they are known only at run time.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// The label.
    pub name: &'static str,
    /// Its values.
    pub values: &'static [&'static str],
}

pub(super) const fn axis(name: &'static str, values: &'static [&'static str]) -> Axis {
    Axis { name, values }
}

pub(super) const fn metric(
    kind: Kind,
    unit: Unit,
    name: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, help, axes: &[] }
}

impl Metric {
    pub(super) const fn by(self, axes: &'static [Axis]) -> Self {
        Self { axes, ..self }
    }
}

impl Unit {
    pub(super) fn of_prometheus(self) -> Option<PrometheusUnit> {
        match self {
            Self::Count | Self::Tokens => Some(PrometheusUnit::Count),
            Self::Seconds => Some(PrometheusUnit::Seconds),
            Self::Bytes => Some(PrometheusUnit::Bytes),
            Self::Celsius | Self::Ratio | Self::Info => None,
        }
    }
}
