//! What a server tells about itself in Prometheus' text format, as far as a load test reads it.

use std::collections::BTreeMap;

/// Values by series: a name, with its labels if it has any.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Gauges(BTreeMap<String, f64>);

impl Gauges {
    /// Lines that are no sample are passed over.
    pub(crate) fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(sample);
        Self(samples.collect())
    }

    /// The sum over all series of a name; `None` if there is none.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        self.with(name, "")
    }

    /// The same of the series whose labels contain `label`.
    pub(crate) fn with(&self, name: &str, label: &str) -> Option<f64> {
        let of = |series: &str| series.split('{').next() == Some(name) && series.contains(label);
        let values = self.0.iter().filter(|(series, _)| of(series)).map(|(_, value)| *value);
        values.reduce(|a, b| a + b)
    }

    /// The value of a label of some series of this name.
    pub(crate) fn label(&self, name: &str, label: &str) -> Option<String> {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let labels = self.0.keys().find(of)?;
        let (_, after) = labels.split_once(&format!("{label}=\""))?;
        Some(after.split('"').next()?.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_name_and_label_and_summed() {
        let text = "# HELP a_total Things.\n# TYPE a_total counter\na_total{k=\"x y\"} 2\n\
                    a_total{k=\"z\"} 3\na_total_more 100\nb 1.5e3\n\n";
        let gauges = Gauges::parse(text);
        assert_eq!(gauges.get("a_total"), Some(5.0));
        assert_eq!(gauges.with("a_total", "k=\"x y\""), Some(2.0));
        assert_eq!(gauges.get("b"), Some(1500.0));
        assert_eq!(gauges.get("absent"), None);
        assert_eq!(gauges.label("a_total", "k").as_deref(), Some("x y"));
        assert_eq!(gauges.label("b", "k"), None);
    }
}
