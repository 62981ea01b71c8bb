//! The table of us and our peers, for people, for programs and for the docs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::cell::{Cells, Work};
use super::peer::Form;
use crate::report::Report;

/// How many times mlx_lm's tokens a second ours are to be …
const TIMES: f64 = 3.0;
/// … at this width.
const AT: usize = 8;

/// Widths that the bars are of.
const WIDTHS: [usize; 4] = [2, 4, 8, 16];
/// Who must be measured before anybody may say that all bars are met.
const DUE: [Form; 5] = [Form::Ours, Form::MlxLm, Form::MlxLmBlas, Form::Mtplx, Form::MtplxBlas];

/// One bar, and whether it is met.
struct Bar {
    word: String,
    met: bool,
}

pub(super) fn report(cells: &Cells) -> Report {
    let bars = bars(cells);
    let missing = missing(cells);
    let held = missing.is_empty() && bars.iter().all(|bar| bar.met);
    let json = json!({"scenario": "peers", "cells": cells, "bars": bars_json(&bars),
        "not_measured": missing, "met": held});
    Report { text: body(cells, &bars), json, held }
}

/// A page that stands by itself.
pub(super) fn markdown(cells: &Cells) -> String {
    let bars = bars(cells);
    format!(
        "# Ours beside its peers\n\nWritten by `mtplx-loadtests peers`; do not edit. All \
         servers on the same 8-bit checkpoint, one after the other, on a CPU, each warm. \
         Clients ask at once, with prompts of some two dozen tokens, at temperature 0.6, and \
         all answers have as many tokens, a few: a rate holds the prefill too. Peers run on \
         MLX's operations for CPUs and so far from their home, a Mac's GPU: this compares \
         serving, not kernels. MTPLX serves one request at a time, so its clients queue. A gap \
         is the time between texts of one stream, each of which may carry several tokens; where \
         all came as one text it is 0. “Times” is how many times a peer's tokens a second ours \
         are.\n\n{}",
        body(cells, &bars)
    )
}

fn body(cells: &Cells, bars: &[Bar]) -> String {
    let mut out = widths(cells) + "\n" + &prefills(cells) + "\n";
    for bar in bars {
        // Writing to a string cannot fail.
        let _ = writeln!(out, "* {}: {}", if bar.met { "met" } else { "NOT MET" }, bar.word);
    }
    missing(cells).iter().for_each(|one| out.push_str(&format!("* NOT MEASURED: {one}\n")));
    out += "\nConditions of each row, oldest first:\n\n";
    for cell in &cells.0 {
        let what = match cell.work {
            Work::Width { clients, .. } => format!("{clients} clients"),
            Work::Prefill { .. } => "long prompt".to_owned(),
        };
        let _ = writeln!(out, "* {:?}, {what}: {}", cell.form, cell.made);
    }
    out
}

fn widths(cells: &Cells) -> String {
    let mut out = String::from(
        "| clients | server | tokens/s | ours is times | TTFT p50 / p95 ms | gap p50 / max ms | \
         tokens × rounds |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for at in all_widths(cells) {
        for form in cells.forms() {
            let of_width =
                |work: &&Work| matches!(work, Work::Width { clients, .. } if *clients == at);
            let Some(Work::Width {
                clients,
                tokens,
                rounds,
                tokens_per_s,
                ttft_p50,
                ttft_p95,
                gap_p50,
                gap_max,
                odd,
                ..
            }) = cells.of(form).find(of_width)
            else {
                continue;
            };
            let times = times(cells, form, at).map_or("".into(), |times| format!("{times:.1} ×"));
            let odd = if *odd > 0 { format!(", {odd} odd") } else { String::new() };
            let _ = writeln!(
                out,
                "| {clients} | {} | {tokens_per_s:.1} | {times} | {ttft_p50:.0} / {ttft_p95:.0} | \
                 {gap_p50:.0} / {gap_max:.0} | {tokens} × {rounds}{odd} |",
                name(form)
            );
        }
    }
    out
}

fn prefills(cells: &Cells) -> String {
    let mut out = String::from(
        "| a long prompt while others read | readers | its tokens | its TTFT ms | longest gap of a \
         reader ms | usual gap ms | longest wait of a reader ms |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for form in cells.forms() {
        for work in cells.of(form) {
            if let Work::Prefill { readers, prompt, ttft, gap_p50, gap_max, wait_max } = work {
                let _ = writeln!(
                    out,
                    "| {} | {readers} | {prompt} | {ttft:.0} | {gap_max:.0} | {gap_p50:.0} | \
                     {wait_max:.0} |",
                    name(form)
                );
            }
        }
    }
    out
}

fn name(form: Form) -> String {
    match form {
        Form::MlxLmBlas | Form::MlxLmFp32 => form.name().replace('…', Form::MlxLm.name()),
        Form::MtplxBlas => form.name().replace('…', Form::Mtplx.name()),
        Form::Ours | Form::MlxLm | Form::Mtplx => form.name().to_owned(),
    }
}

fn all_widths(cells: &Cells) -> Vec<usize> {
    let width = |work: &Work| match work {
        Work::Width { clients, .. } => Some(*clients),
        Work::Prefill { .. } => None,
    };
    let mut all: Vec<usize> = cells.0.iter().filter_map(|cell| width(&cell.work)).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// How many times a peer's tokens a second ours are.
fn times(cells: &Cells, form: Form, clients: usize) -> Option<f64> {
    let peer = cells.rate(form, clients).filter(|_| form != Form::Ours)?;
    Some(cells.rate(Form::Ours, clients)? / peer)
}

/// Ahead of every peer at every width from two on, and in the longest gap; three times mlx_lm at
/// eight. What was not measured is not judged.
fn bars(cells: &Cells) -> Vec<Bar> {
    let mut bars = Vec::new();
    let peers: Vec<Form> = cells.forms().into_iter().filter(|form| form.is_judged()).collect();
    for &form in &peers {
        for clients in all_widths(cells).into_iter().filter(|&clients| clients >= 2) {
            if let Some(times) = times(cells, form, clients) {
                let word = format!("{} at {clients} clients: ours is {times:.1} ×", name(form));
                bars.push(Bar { word, met: times > 1.0 });
            }
        }
        if let Some(times) = times(cells, form, AT).filter(|_| !form.is_mtplx()) {
            let word = format!("{} at {AT} clients: {TIMES} × is due, {times:.1} × is", name(form));
            bars.push(Bar { word, met: times >= TIMES });
        }
        if let (Some(ours), Some(peer)) = (cells.gap(Form::Ours), cells.gap(form)) {
            let word = format!(
                "longest gap of a reader while a long prompt is fed: ours {ours:.0} ms, {} \
                 {peer:.0} ms",
                name(form)
            );
            bars.push(Bar { word, met: ours < peer });
        }
    }
    bars
}

/// What is due for the bars and was not measured, in words.
fn missing(cells: &Cells) -> Vec<String> {
    let mut missing = Vec::new();
    for form in DUE {
        let widths = WIDTHS.iter().filter(|&&clients| cells.rate(form, clients).is_none());
        missing.extend(widths.map(|clients| format!("{} at {clients} clients", name(form))));
        if cells.gap(form).is_none() {
            missing.push(format!("{} with a long prompt", name(form)));
        }
    }
    missing
}

fn bars_json(bars: &[Bar]) -> Value {
    bars.iter().map(|bar| json!({"bar": bar.word, "met": bar.met})).collect()
}

#[cfg(test)]
mod tests {
    use super::super::cell::Cell;
    use super::*;

    fn cell(form: Form, clients: usize, tokens_per_s: f64) -> Cell {
        let (made, [ttft_p50, ttft_p95, gap_p50, gap_max]) = ("here".into(), [1.0; 4]);
        let (tokens, rounds, odd) = (16, 2, 0);
        let work = Work::Width {
            clients,
            tokens,
            rounds,
            tokens_per_s,
            ttft_p50,
            ttft_p95,
            gap_p50,
            gap_max,
            odd,
        };
        Cell { form, made, work }
    }

    fn prefill(form: Form, gap_max: f64) -> Cell {
        let (readers, prompt, ttft, gap_p50, wait_max) = (2, 900, 5.0, 1.0, 3.0);
        let work = Work::Prefill { readers, prompt, ttft, gap_p50, gap_max, wait_max };
        Cell { form, made: "here".into(), work }
    }

    fn held(cells: &[Cell]) -> bool {
        let bars = bars(&Cells(cells.to_vec()));
        !bars.is_empty() && bars.iter().all(|bar| bar.met)
    }

    #[test]
    fn nothing_is_met_until_all_was_measured() {
        let mut cells = Cells::default();
        for form in DUE {
            let ours = form == Form::Ours;
            for clients in WIDTHS {
                assert!(!report(&cells).held);
                cells.put(cell(form, clients, if ours { 30.0 } else { 1.0 }));
            }
            cells.put(prefill(form, if ours { 1.0 } else { 2.0 }));
        }
        assert!(report(&cells).held, "{}", report(&cells).text);
    }

    #[test]
    fn ours_is_to_be_ahead_from_two_clients_on_and_three_times_mlx_lm_at_eight() {
        let ours = |clients| cell(Form::Ours, clients, 30.0);
        assert!(!held(&[ours(2)]), "nobody to be ahead of");
        assert!(held(&[ours(2), cell(Form::MlxLm, 2, 29.0), cell(Form::MtplxBlas, 2, 1.0)]));
        assert!(!held(&[ours(2), cell(Form::MlxLm, 2, 1.0), cell(Form::MtplxBlas, 2, 30.0)]));
        assert!(held(&[ours(8), cell(Form::MlxLmBlas, 8, 10.0)]));
        assert!(!held(&[ours(8), cell(Form::MlxLmBlas, 8, 10.1)]));
        let two = [ours(2), cell(Form::MlxLm, 2, 1.0)];
        // One client, and another checkpoint, are told and not judged.
        let alone = [ours(1), cell(Form::Mtplx, 1, 90.0), cell(Form::MlxLmFp32, 2, 90.0)];
        assert!(held(&[&two[..], &alone].concat()));
        let gaps = |peer| [prefill(Form::Ours, 20.0), prefill(Form::Mtplx, peer)];
        assert!(held(&gaps(21.0)) && !held(&gaps(20.0)));
    }

    #[test]
    fn a_later_measurement_takes_the_earlier_ones_place() {
        let mut cells = Cells::default();
        for rate in [1.0, 2.0] {
            cells.put(cell(Form::Ours, 8, rate));
            cells.put(cell(Form::Ours, 4, rate));
            cells.put(prefill(Form::Ours, rate));
        }
        assert_eq!((cells.0.len(), cells.rate(Form::Ours, 8)), (3, Some(2.0)));
        let text = serde_json::to_string(&cells).unwrap();
        let again: Cells = serde_json::from_str(&text).unwrap();
        assert_eq!(again.gap(Form::Ours), Some(2.0));
    }

    #[test]
    fn the_page_tells_ratios_bars_and_conditions() {
        let cells = Cells(vec![cell(Form::Ours, 8, 30.0), cell(Form::MlxLmBlas, 8, 5.0)]);
        let page = markdown(&cells);
        for word in ["| 8 | mlx_lm.server 0.32.2 with BLAS | 5.0 | 6.0 × |", "* met:", ": here"] {
            assert!(page.contains(word), "{word} is not in {page}");
        }
    }
}
