//! From when text came to what a stream noticed.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use super::RATIO_MAX;
use crate::statistics::{Spread, ms};

/// Gaps at the beginning of a stream, which others' prompts lengthen.
const SETTLING: usize = 8;

/// Fewer gaps before the prompt have no median worth the name.
const GAPS_MIN: usize = 20;

/// What a stream says, as time since the scene began.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beat {
    /// Text came.
    Text(Duration),
    /// The answer ended and another begins: what lies between is no gap.
    Anew,
}

/// All that a stream said.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    beats: Vec<Beat>,
    texts: usize,
}

impl Timeline {
    pub(super) fn push(&mut self, beat: Beat) {
        self.texts += usize::from(matches!(beat, Beat::Text(_)));
        self.beats.push(beat);
    }

    /// Events with text so far.
    pub(super) fn len(&self) -> usize {
        self.texts
    }

    /// When text came for the `n`-th time.
    fn nth(&self, n: usize) -> Option<Duration> {
        let text = |beat: &Beat| match beat {
            Beat::Text(at) => Some(*at),
            Beat::Anew => None,
        };
        self.beats.iter().filter_map(text).nth(n)
    }

    /// From when to when nothing came.
    fn gaps(&self) -> impl Iterator<Item = (Duration, Duration)> {
        self.beats.windows(2).filter_map(|pair| match pair {
            [Beat::Text(from), Beat::Text(to)] => Some((*from, *to)),
            _ => None,
        })
    }
}

/// What one stream noticed.
#[derive(Debug)]
struct Stream {
    before: Spread,
    during: Spread,
}

impl Stream {
    /// Gaps count as before within the steady time, as during if any of them fell into `prefill`.
    fn new(line: &Timeline, steady: Duration, prefill: (Duration, Duration)) -> Self {
        let long = |(from, to): (Duration, Duration)| to - from;
        let before = line.gaps().filter(|&(from, to)| from >= steady && to <= prefill.0);
        let during = line.gaps().filter(|&(from, to)| to > prefill.0 && from < prefill.1);
        Self { before: before.map(long).collect(), during: during.map(long).collect() }
    }

    /// The longest gap during the prefill in medians of the gaps before.
    fn ratio(&self) -> f64 {
        self.during.max().as_secs_f64() / self.before.median().as_secs_f64()
    }

    /// The same of the gaps before: what this machine does to a stream that nobody disturbs.
    fn undisturbed(&self) -> f64 {
        self.before.max().as_secs_f64() / self.before.median().as_secs_f64()
    }

    /// Gaps beyond the bar, of those before and of those during the prefill.
    fn beyond(&self) -> (usize, usize) {
        let bar = self.before.median().mul_f64(RATIO_MAX);
        (self.before.above(bar), self.during.above(bar))
    }
}

/// A prompt of `tokens` among streams.
pub(super) struct Scene {
    tokens: usize,
    first: Duration,
    /// Time to first token of such a prompt with nobody around.
    pub(super) alone: Duration,
    streams: Vec<Stream>,
}

impl Scene {
    /// `sent` and the time to `first` text bound the prefill.
    pub(super) fn new(
        tokens: usize,
        (sent, first): (Duration, Duration),
        lines: &[Timeline],
    ) -> Self {
        let steady = lines.iter().filter_map(|line| line.nth(SETTLING)).max().unwrap_or_default();
        let stream = |line| Stream::new(line, steady, (sent, sent + first));
        let streams = lines.iter().map(stream).collect();
        Self { tokens, first, alone: Duration::ZERO, streams }
    }

    /// Whether every stream has gaps enough on both sides.
    pub(super) fn is_measured(&self) -> bool {
        self.streams.iter().all(|s| s.before.len() >= GAPS_MIN && s.during.len() > 0)
    }

    /// The ratio of the stream that waited longest.
    pub(super) fn worst(&self) -> f64 {
        self.streams.iter().map(Stream::ratio).fold(0.0, f64::max)
    }

    /// The largest ratio without a prompt.
    fn undisturbed(&self) -> f64 {
        self.streams.iter().map(Stream::undisturbed).fold(0.0, f64::max)
    }
}

pub(super) fn table(scenes: &[Scene]) -> String {
    let mut out = String::new();
    for scene in scenes {
        let met = if scene.worst() <= RATIO_MAX { "met" } else { "NOT MET" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} streams, a prompt of {} tokens: TTFT {:.0} ms (alone {:.0} ms); worst ratio \
             {:.2} (before the prompt {:.2}), bar {RATIO_MAX}: {met}",
            scene.streams.len(),
            scene.tokens,
            ms(scene.first),
            ms(scene.alone),
            scene.worst(),
            scene.undisturbed(),
        );
        out += "  stream  before: n  beyond  median     max  during: n  beyond  median     max  \
                ratio   (ms)\n";
        for (i, stream) in scene.streams.iter().enumerate() {
            let Stream { before, during } = stream;
            let beyond = stream.beyond();
            let _ = writeln!(
                out,
                "  {:>6} {:>10} {:>7} {:>7.1} {:>7.1} {:>10} {:>7} {:>7.1} {:>7.1} {:>6.2}",
                i + 1,
                before.len(),
                beyond.0,
                ms(before.median()),
                ms(before.max()),
                during.len(),
                beyond.1,
                ms(during.median()),
                ms(during.max()),
                stream.ratio(),
            );
        }
    }
    out += "A gap is the time between events that carry text; one may carry several tokens. The \
            ratio is the longest gap during the prefill over the median gap before it; beyond the \
            bar are gaps of more than that many medians. Where they come without a prompt, too, \
            the machine pauses.\n";
    out
}

pub(super) fn json(scenes: &[Scene]) -> Value {
    let stream = |s: &Stream| {
        let (before, during) = (s.before.json(), s.during.json());
        let (calm, fed) = s.beyond();
        json!({"before": before, "during": during, "ratio": s.ratio(),
               "beyond_before": calm, "beyond_during": fed})
    };
    let scene = |s: &Scene| {
        json!({
            "prompt_tokens": s.tokens,
            "ttft_ms": ms(s.first),
            "ttft_alone_ms": ms(s.alone),
            "worst_ratio": s.worst(),
            "undisturbed_ratio": s.undisturbed(),
            "met": s.worst() <= RATIO_MAX,
            "streams": s.streams.iter().map(stream).collect::<Vec<_>>(),
        })
    };
    let scenes: Vec<Value> = scenes.iter().map(scene).collect();
    json!({"scenario": "stall", "ratio_max": RATIO_MAX, "scenes": scenes})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn line(texts: impl IntoIterator<Item = u64>) -> Timeline {
        let mut line = Timeline::default();
        texts.into_iter().for_each(|ms| line.push(Beat::Text(at(ms))));
        line
    }

    #[test]
    fn gaps_that_touch_the_prefill_count_and_those_of_the_start_do_not() {
        // Slow at first, then every 10 ms; the prompt is sent at 205 and answered at 300.
        let mut texts: Vec<u64> = (0..=SETTLING as u64).map(|i| i * 12).collect();
        texts.extend([106, 116, 126, 136, 200, 230, 299, 330, 1000]);
        let scene = Scene::new(7, (at(205), at(95)), &[line(texts)]);
        let stream = &scene.streams[0];
        assert_eq!(stream.before, [10, 10, 10, 10, 64].map(at).into_iter().collect());
        assert_eq!(stream.during, [30, 69, 31].map(at).into_iter().collect());
        assert!((scene.worst() - 6.9).abs() < 1e-9);
    }

    #[test]
    fn a_new_answer_is_no_gap() {
        let mut line = line([0, 10]);
        line.push(Beat::Anew);
        line.push(Beat::Text(at(500)));
        line.push(Beat::Text(at(510)));
        let gaps: Vec<Duration> = line.gaps().map(|(from, to)| to - from).collect();
        assert_eq!(gaps, [at(10), at(10)]);
        assert_eq!(line.len(), 4);
    }

    #[test]
    fn the_time_is_steady_when_the_last_stream_is() {
        let early = line((0..100).map(|i| i * 10));
        let late = line((0..60).map(|i| 400 + i * 10));
        let scene = Scene::new(7, (at(800), at(100)), &[early, late]);
        assert_eq!(scene.streams[0].before.len(), (800 - 480) / 10);
    }
}
