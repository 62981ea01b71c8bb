//! Stop strings across token edges: text is held back only while it might be the beginning of one.

/// Watches generated text for the first occurrence of any stop string.
#[derive(Clone, Debug)]
pub struct StopScan {
    stops: Vec<String>,
    held: String,
}

/// What a piece of text came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scanned {
    /// Text that can be shown now.
    pub text: String,
    /// The stop string that ended the text, if one was met; the string itself is not in the text.
    pub stopped_by: Option<String>,
}

impl StopScan {
    /// Empty strings are ignored: they would stop before the first character.
    #[must_use]
    pub fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Adds text and returns what is safe to show. After a stop, call no more.
    pub fn push(&mut self, text: &str) -> Scanned {
        self.held.push_str(text);
        if let Some((at, stop)) = self.first_match() {
            let stopped_by = Some(stop.to_owned());
            self.held.truncate(at);
            return Scanned { text: std::mem::take(&mut self.held), stopped_by };
        }
        let keep = self.beginning_at_end();
        let rest = self.held.split_off(self.held.len() - keep);
        Scanned { text: std::mem::replace(&mut self.held, rest), stopped_by: None }
    }

    /// The text still held back when the sequence ended otherwise.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The match that is complete first: the earliest end, then the earliest beginning.
    fn first_match(&self) -> Option<(usize, &str)> {
        let found = self.stops.iter().filter_map(|s| self.held.find(s).map(|at| (at, s.as_str())));
        found.min_by_key(|(at, s)| (at + s.len(), *at))
    }

    /// Bytes at the end of the held text that begin a stop string.
    fn beginning_at_end(&self) -> usize {
        let longest = |s: &String| {
            let most = s.len().saturating_sub(1).min(self.held.len());
            (1..=most).rev().find(|&n| {
                s.is_char_boundary(n) && self.held.as_bytes().ends_with(&s.as_bytes()[..n])
            })
        };
        self.stops.iter().filter_map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(list: &[&str]) -> Vec<String> {
        list.iter().map(|s| (*s).to_owned()).collect()
    }

    /// The oracle: the whole text at once, read character by character.
    fn whole(text: &str, stops: &[String]) -> String {
        for end in text.char_indices().map(|(i, c)| i + c.len_utf8()) {
            let longest = stops.iter().filter(|s| text[..end].ends_with(*s)).map(String::len).max();
            if let Some(n) = longest {
                return text[..end - n].to_owned();
            }
        }
        text.to_owned()
    }

    #[test]
    fn any_split_gives_the_same_text() {
        let text = "abcab</s>cäöü</stop>END tail";
        for list in [&["</stop>"][..], &["END", "äö"], &["cab</", "</s>"], &["tail", "zz"], &["ü"]]
        {
            let list = stops(list);
            let want = whole(text, &list);
            let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            for &a in &cuts {
                for &b in cuts.iter().filter(|&&b| b >= a) {
                    let mut scan = StopScan::new(&list);
                    let mut out = String::new();
                    let mut stopped = false;
                    for piece in [&text[..a], &text[a..b], &text[b..]] {
                        let got = scan.push(piece);
                        out.push_str(&got.text);
                        if got.stopped_by.is_some() {
                            stopped = true;
                            break;
                        }
                    }
                    if !stopped {
                        out.push_str(&scan.finish());
                    }
                    assert_eq!(out, want, "split at {a}, {b}, stops {list:?}");
                }
            }
        }
    }

    #[test]
    fn text_that_cannot_begin_a_stop_is_shown_at_once() {
        let mut scan = StopScan::new(&stops(&["###"]));
        assert_eq!(scan.push("hello #").text, "hello ");
        assert_eq!(scan.push("1").text, "#1");
    }
}
