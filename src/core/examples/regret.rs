//! Runs the tuner on every machine of `tune::world` over many seeds, says what share of an oracle's
//! tokens it reached a minute after each change, and draws what was lost. The curves of the first
//! seed go into an SVG, the table to stdout; the exit code is 1 where a bar was missed.
//!
//! ```sh
//! cargo run --release -p mtplx-core --features scripted --example regret -- 20 regret.svg
//! ```

#![allow(clippy::print_stdout, reason = "an example reports on stdout")]

use std::error::Error;
use std::process::ExitCode;

use mtplx_core::tune::world::{
    CALLS, CODE, MACHINES, Machine, PROSE, Phase, STRANGE, Second, Simulation,
};
use plotters::prelude::*;

/// Seconds of a kind of text, and how many the tuner is given to learn it.
const PHASE_S: f64 = 150.0;
const GRACE: usize = 60;
const BAR: f64 = 0.98;
/// Rows that decode, phase by phase.
const ROWS: [(&str, [usize; 6]); 5] =
    [("1", [1; 6]), ("2", [2; 6]), ("4", [4; 6]), ("8", [8; 6]), ("mixed", [1, 1, 8, 8, 3, 5])];
const TEXTS: [[f64; 4]; 6] = [PROSE, CODE, CALLS, STRANGE, CODE, PROSE];
const NAMES: [&str; 6] = ["prose", "code", "tool calls", "strange", "code", "prose"];

fn phases(rows: [usize; 6]) -> Vec<Phase> {
    rows.iter().zip(TEXTS).map(|(&rows, rates)| Phase::new(PHASE_S, rows, rates)).collect()
}

fn run(machine: Machine, seed: u64, rows: [usize; 6]) -> (Simulation, Vec<Vec<Second>>) {
    let mut simulation = Simulation::new(machine, seed, f64::INFINITY);
    let seconds = phases(rows).iter().map(|phase| simulation.run(phase)).collect();
    (simulation, seconds)
}

fn share(seconds: &[Second]) -> f64 {
    let sum = |of: fn(&Second) -> f64| seconds.iter().map(of).sum::<f64>();
    sum(|s| s.tokens) / sum(|s| s.oracle)
}

/// Worst, mean and lowest tenth of the shares after the grace, all shares, and switches a phase.
fn judge(machine: Machine, seeds: u64, rows: [usize; 6]) -> (Vec<f64>, f64, f64) {
    let (mut after, mut all, mut switches) = (Vec::new(), 0.0, 0);
    for seed in 0..seeds {
        let (simulation, seconds) = run(machine, seed * 7919 + rows[2] as u64, rows);
        for (i, (phase, of)) in seconds.iter().zip(phases(rows)).enumerate() {
            let got = share(&phase[GRACE..]);
            if got < BAR {
                let depths: Vec<u8> = phase.iter().map(|s| s.depth).collect();
                let best = simulation.best(&of);
                eprintln!(
                    "{}, {} rows, seed {seed}, {}: {got:.3}, best {best}, was {depths:?}",
                    machine.name, of.rows, NAMES[i]
                );
            }
            after.push(got);
        }
        all += share(&seconds.concat()) / seeds as f64;
        switches += simulation.tuner.counts().1;
    }
    after.sort_by(f64::total_cmp);
    (after, all, switches as f64 / (6 * seeds) as f64)
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let seeds: u64 = args.next().map_or(Ok(5), |text| text.parse())?;
    let path = args.next().unwrap_or_else(|| "regret.svg".into());
    println!("| machine | rows | worst | 1 % | mean | whole | depth changes a phase |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let (mut missed, mut count) = (0, 0);
    // Part of a machine's name keeps to it.
    let only = args.next().unwrap_or_default();
    for machine in MACHINES.into_iter().filter(|machine| machine.name.contains(&only)) {
        for (name, rows) in ROWS {
            let (after, whole, switches) = judge(machine, seeds, rows);
            let mean = after.iter().sum::<f64>() / after.len() as f64;
            let (worst, hundredth) = (after[0], after[after.len() / 100]);
            missed += after.iter().filter(|&&share| share < BAR).count();
            count += after.len();
            println!(
                "| {} | {name} | {worst:.3} | {hundredth:.3} | {mean:.3} | {whole:.3} | \
                 {switches:.1} |",
                machine.name
            );
        }
    }
    println!("\n{missed} of {count} phases below {BAR}");
    draw(&path)?;
    Ok(ExitCode::from(u8::from(missed > 0)))
}

/// Tokens behind the oracle, in seconds of the oracle's speed, over the course, for one row and
/// eight; the depth in use below.
fn draw(path: &str) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (900, 1100)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, (machine, panel)) in
        root.split_evenly((5, 2)).iter().zip(MACHINES.iter().flat_map(|m| [(m, 0), (m, 3)]))
    {
        let (_, seconds) = run(*machine, 1, ROWS[panel].1);
        let seconds = seconds.concat();
        let mut lost = 0.0;
        let curve: Vec<(f64, f64)> = seconds
            .iter()
            .map(|s| {
                lost += 1.0 - s.tokens / s.oracle;
                (s.at, lost)
            })
            .collect();
        let plain: Vec<(f64, f64)> = seconds
            .iter()
            .scan(0.0, |sum, s| {
                *sum += 1.0 - s.plain / s.oracle;
                Some((s.at, *sum))
            })
            .collect();
        let most = (lost * 1.3).max(6.0);
        let title = format!("{}, {} row(s)", machine.name, ROWS[panel].0);
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 13))
            .margin(6)
            .x_label_area_size(22)
            .y_label_area_size(34)
            .build_cartesian_2d(0.0..PHASE_S * 6.0, 0.0..most)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(7)
            .y_labels(5)
            .light_line_style(WHITE)
            .y_desc("seconds lost")
            .label_style(("sans-serif", 10))
            .draw()?;
        for (i, name) in NAMES.iter().enumerate() {
            let x = PHASE_S * i as f64;
            chart.draw_series(LineSeries::new([(x, 0.0), (x, most)], RGBColor(200, 200, 200)))?;
            let style = ("sans-serif", 9).into_font().color(&RGBColor(110, 110, 110));
            chart.draw_series([Text::new((*name).to_owned(), (x + 6.0, most * 0.98), style)])?;
        }
        let depth = |s: &Second| (s.at, f64::from(s.depth) * most / 20.0);
        let every = |n: usize| move |(i, _): &(usize, (f64, f64))| i.is_multiple_of(n);
        let thin = |points: Vec<(f64, f64)>, n: usize| -> Vec<(f64, f64)> {
            points.into_iter().enumerate().filter(every(n)).map(|(_, p)| p).collect()
        };
        let plain = thin(plain, 5).into_iter().filter(move |p| p.1 <= most);
        chart.draw_series(LineSeries::new(plain, RGBColor(190, 120, 40)))?;
        let depths = thin(seconds.iter().map(depth).collect(), 3);
        chart.draw_series(LineSeries::new(depths, RGBColor(150, 190, 150)))?;
        chart
            .draw_series(LineSeries::new(thin(curve, 3), RGBColor(30, 70, 160).stroke_width(2)))?;
    }
    root.present()?;
    Ok(())
}
