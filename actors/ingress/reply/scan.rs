//! Looking for markup in text whose end has not come yet.

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The first marker, by its position and index.
    Marker { at: usize, which: usize },
    /// None; so many bytes can not be the beginning of one.
    Safe(usize),
}

/// The first of `markers` in `text`; at the same place, the first in their list.
pub(super) fn find(text: &str, markers: &[&str]) -> Found {
    let places = markers.iter().enumerate();
    let places = places.filter_map(|(which, marker)| text.find(marker).map(|at| (at, which)));
    if let Some((at, which)) = places.min() {
        return Found::Marker { at, which };
    }
    let held = markers.iter().map(|marker| overlap(text, marker)).max().unwrap_or(0);
    Found::Safe(text.len() - held)
}

/// Whether `text` may become something that begins with `marker`.
pub(super) fn is_beginning(text: &str, marker: &str) -> bool {
    text.len() < marker.len() && marker.starts_with(text)
}

/// Bytes at the end of `text` with which `marker` begins.
fn overlap(text: &str, marker: &str) -> usize {
    let most = text.len().min(marker.len() - 1);
    let ends = |n: &usize| text.as_bytes().ends_with(&marker.as_bytes()[..*n]);
    (1..=most).rev().find(ends).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_marker_is_found_and_beginnings_are_held_back() {
        let markers = ["<a>", "</a>"];
        assert_eq!(find("x<a></a>", &markers), Found::Marker { at: 1, which: 0 });
        assert_eq!(find("x</a><a>", &markers), Found::Marker { at: 1, which: 1 });
        assert_eq!(find("ä</", &markers), Found::Safe(2));
        assert_eq!(find("<<", &markers), Found::Safe(1));
        assert_eq!(find("<b", &markers), Found::Safe(2));
        assert_eq!(find("x", &[]), Found::Safe(1));
    }
}
