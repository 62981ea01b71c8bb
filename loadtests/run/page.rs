//! One page with the figures and their plots, which needs nothing beside itself.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;

use super::findings::Findings;
use super::tally::COLUMNS;
use super::times::Times;
use crate::report::Report;

/// Pixels of a plot, which scale with the page.
const SIZE: (u32, u32) = (960, 300);
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 96, 168), RGBColor(204, 102, 16), RGBColor(30, 130, 76), RGBColor(150, 60, 140)];

/// A line of a plot.
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// The page.
pub(super) fn page(found: &Findings, report: &Report) -> Result<String> {
    let mut rows = String::new();
    for (name, row) in found.rows() {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", safe(cell))).collect();
        rows += &format!("<tr><th>{}</th>{cells}</tr>\n", safe(&name));
    }
    let head: String = COLUMNS.iter().map(|name| format!("<th>{name}</th>")).collect();
    let remarks: String =
        found.remarks().iter().map(|line| format!("<li>{}</li>\n", safe(line))).collect();
    let verdict = if report.held { "met" } else { "NOT MET" };
    let broken = report.json["not_met"].as_array().into_iter().flatten();
    let broken: String =
        broken.filter_map(|b| b.as_str()).map(|b| format!("<li>{}</li>", safe(b))).collect();
    let mut plots = String::new();
    for (title, plot) in plots_of(found)? {
        plots += &format!("<h2>{title}</h2>\n{plot}\n");
    }
    let (name, about) = (safe(&found.scenario.name), safe(&found.scenario.about));
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{name}</title>\n\
         <style>body{{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;\
         color:#222;background:#fff}}table{{border-collapse:collapse;display:block;\
         overflow-x:auto}}th,td{{border:1px solid #ccc;padding:.3em .6em;text-align:right;\
         font-size:13px}}svg{{width:100%;height:auto}}li{{overflow-wrap:anywhere}}</style></head>\n\
         <body><h1>{name}: {verdict}</h1><p>{about}</p>\n<ul>{broken}</ul>\n\
         <table><tr><th></th>{head}</tr>\n{rows}</table>\n<ul>{remarks}</ul>\n{plots}\
         </body></html>\n"
    ))
}

/// As text of a page.
fn safe(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn plots_of(found: &Findings) -> Result<Vec<(&'static str, String)>> {
    let (all, slices) = (&found.tally.all, &found.tally.slices);
    let mut plots = Vec::new();
    let times = [("TTFT", &all.ttft), ("ITL", &all.itl), ("E2E", &all.e2e)];
    let lines = times.map(|(name, times)| Line { name, points: quantiles(times) });
    plots.push(("Distribution: milliseconds by percentile", distribution(&lines)?));
    let over = |of: &dyn Fn(&super::tally::Slice) -> Option<f64>| {
        let at = |i: usize| (i as f64 + 0.5) * found.tally.width;
        let points = slices.iter().enumerate().filter_map(|(i, slice)| Some((at(i), of(slice)?)));
        points.collect::<Vec<_>>()
    };
    let width = found.tally.width;
    let tokens = Line { name: "tokens/s", points: over(&|s| Some(s.tokens / width)) };
    plots.push(("Timeline: tokens a second", timeline(&[tokens])?));
    let median = Line { name: "median", points: over(&|s| s.ttft(0.5)) };
    let worst = Line { name: "worst", points: over(&|s| s.ttft(1.0)) };
    plots.push((
        "Timeline: first text, in milliseconds by when it was due",
        timeline(&[median, worst])?,
    ));
    let served = Line { name: "served", points: over(&|s| Some(s.served as f64 / width)) };
    let refused = Line { name: "refused", points: over(&|s| Some(s.refused as f64 / width)) };
    plots.push(("Timeline: answers a second", timeline(&[served, refused])?));
    let memory = Line { name: "MiB", points: found.memory.mib() };
    if !memory.points.is_empty() {
        plots.push(("Timeline: the server's memory, in MiB", timeline(&[memory])?));
    }
    Ok(plots)
}

/// Milliseconds by how many nines the percentile has: 1 is p90, 2 is p99.
fn quantiles(times: &Times) -> Vec<(f64, f64)> {
    let most = (times.len().max(1) as f64).log10();
    let nines = (0..=80).map(|i| f64::from(i) / 20.0).filter(|&nines| nines <= most);
    nines.map(|nines| (nines, times.quantile(1.0 - 10_f64.powf(-nines)).max(0.001))).collect()
}

/// Where the points of all lines lie; something for none.
fn bounds(lines: &[Line]) -> ((f64, f64), (f64, f64)) {
    let points = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let (low, high) = points()
            .map(of)
            .fold((f64::INFINITY, 0.0), |(low, high): (f64, f64), v| (low.min(v), high.max(v)));
        if low > high { (0.0, 1.0) } else { (low, high) }
    };
    (range(|p| p.0), range(|p| p.1))
}

fn distribution(lines: &[Line]) -> Result<String> {
    let (_, (low, high)) = bounds(lines);
    let (low, high) = (low.max(0.1) * 0.8, high.max(1.0) * 1.2);
    draw(|root| {
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..4.0, (low..high).log_scale())
            .map_err(|error| anyhow!("{error}"))?;
        let percent = |nines: &f64| format!("p{}", 100.0 - 100.0 * 10_f64.powf(-nines));
        let mut mesh = chart.configure_mesh();
        mesh.x_labels(5).x_label_formatter(&percent).light_line_style(WHITE);
        mesh.draw().map_err(|error| anyhow!("{error}"))?;
        draw_lines(&mut chart, lines, SeriesLabelPosition::UpperLeft)
    })
}

fn timeline(lines: &[Line]) -> Result<String> {
    let ((from, until), (_, high)) = bounds(lines);
    let (until, high) = (until.max(from + 1.0), (high * 1.1).max(1.0));
    draw(|root| {
        let mut chart = ChartBuilder::on(root)
            .margin(10)
            .x_label_area_size(28)
            .y_label_area_size(64)
            .build_cartesian_2d(from..until, 0.0..high)
            .map_err(|error| anyhow!("{error}"))?;
        let seconds = |s: &f64| format!("{s:.0} s");
        let mut mesh = chart.configure_mesh();
        mesh.x_label_formatter(&seconds).light_line_style(WHITE);
        mesh.draw().map_err(|error| anyhow!("{error}"))?;
        draw_lines(&mut chart, lines, SeriesLabelPosition::UpperRight)
    })
}

/// Lines, with their names in a corner.
fn draw_lines<'a, 'b: 'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    lines: &[Line],
    corner: SeriesLabelPosition,
) -> Result<()>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    for (line, colour) in lines.iter().zip(COLOURS) {
        let series = LineSeries::new(line.points.iter().copied(), colour.stroke_width(2));
        let drawn = chart.draw_series(series).map_err(|error| anyhow!("{error}"))?;
        drawn.label(line.name).legend(move |at| key(at, colour));
    }
    let mut labels = chart.configure_series_labels();
    labels.border_style(BLACK).background_style(WHITE).position(corner);
    labels.draw().map_err(|error| anyhow!("{error}"))
}

/// A line's colour beside its name.
fn key((x, y): (i32, i32), colour: RGBColor) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 18, y)], colour.stroke_width(2))
}

type Root<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// An SVG, whose size gives way to the page's.
fn draw(paint: impl FnOnce(&Root) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
        paint(&root)?;
        root.present().map_err(|error| anyhow!("{error}"))?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::super::findings::tests::findings;
    use super::*;

    #[test]
    fn the_page_has_its_plots_and_figures_and_asks_nobody_for_anything() {
        let mut found = findings();
        found.scenario.about = "<script>alert(1)</script> & more".into();
        let page = page(&found, &found.report()).unwrap();
        assert_eq!(page.matches("<svg").count(), 5);
        assert!(page.contains("<polyline") && page.contains("p99"), "{page}");
        assert!(!page.contains("<script"), "what a file says is text");
        let asks = ["src=", "href=", "@import", "url("];
        assert!(asks.iter().all(|word| !page.contains(word)));
        let away = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!away.contains("http://") && !away.contains("https://"));
    }

    #[test]
    fn a_run_without_a_single_text_still_has_a_page() {
        let mut found = findings();
        found.tally = super::super::tally::Tally::new(&found.scenario);
        assert!(page(&found, &found.report()).is_ok());
    }
}
