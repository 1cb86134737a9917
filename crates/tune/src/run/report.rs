//! `report.html`: a run on one page that needs no network.

use super::log::Entry;
use lapidary_formats::Result;
use lapidary_formats::atomic::write_file;
use plotters::prelude::*;
use std::path::Path;

/// A line of a chart.
struct Line {
    points: Vec<(f64, f64)>,
    color: RGBColor,
    width: u32,
    /// Shown in the legend; empty: not.
    label: String,
}

const STRONG: RGBColor = RGBColor(37, 99, 176);
const PALE: RGBColor = RGBColor(178, 202, 232);
const ORANGE: RGBColor = RGBColor(214, 110, 30);
const INK: RGBColor = RGBColor(70, 74, 82);
const GRID: RGBColor = RGBColor(232, 234, 238);
/// Colours of held-out sources.
const HELD: [RGBColor; 6] = [
    ORANGE,
    RGBColor(40, 140, 90),
    RGBColor(160, 70, 160),
    RGBColor(180, 50, 60),
    RGBColor(20, 150, 160),
    RGBColor(120, 110, 40),
];

/// Points that a line of a chart has at most: more can't be seen, and would make the page large.
const MOST_POINTS: usize = 1200;

/// Writes the page.
///
/// # Errors
/// If it can't be written.
pub fn write_report(path: &Path, title: &str, config: &str, entries: &[Entry]) -> Result<()> {
    write_file(path, page(title, config, entries).as_bytes())
}

fn page(title: &str, config: &str, entries: &[Entry]) -> String {
    let title = escape(title);
    let mut body = format!("<h1>{title}</h1>\n{}", summary(entries));
    for (name, unit, lines, log) in charts(entries) {
        if lines.iter().any(|l| l.points.len() > 1) {
            body += &format!("<figure>\n<figcaption>{name} <span>{unit}</span></figcaption>\n");
            body += &chart(&lines, log);
            body += "</figure>\n";
        }
    }
    body += &evaluations(entries);
    body += &samples(entries);
    body += &format!("<h2>Configuration</h2>\n<pre>{}</pre>\n", escape(config));
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

const STYLE: &str = "\
body { font: 15px/1.5 system-ui, sans-serif; color: #24272d; background: #f6f7f9; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
dl { display: flex; flex-wrap: wrap; gap: .75rem; margin: 0 0 1rem; }
dl div { background: #fff; border: 1px solid #e2e5ea; border-radius: 8px; padding: .5rem .9rem; }
dt { color: #6b717c; font-size: .8rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
figure { background: #fff; border: 1px solid #e2e5ea; border-radius: 8px; margin: 0 0 1rem; padding: .75rem; }
figcaption { font-weight: 600; }
figcaption span { font-weight: 400; color: #6b717c; }
svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; background: #fff; width: 100%; }
td, th { border: 1px solid #e2e5ea; padding: .35rem .6rem; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: #fff; border: 1px solid #e2e5ea; border-radius: 8px; padding: .75rem; overflow-x: auto; font-size: .85rem; }
";

/// The charts: title, unit, lines, whether the axis is logarithmic.
fn charts(entries: &[Entry]) -> Vec<(&'static str, &'static str, Vec<Line>, bool)> {
    let (mut loss, mut rate, mut norm, mut speed) = (vec![], vec![], vec![], vec![]);
    let mut preferred_points = vec![];
    for e in entries {
        if let Entry::Step { step, loss: l, lr, grad_norm, tokens, seconds, preferred, .. } = e {
            let at = *step as f64;
            loss.push((at, *l));
            rate.push((at, *lr));
            norm.push((at, *grad_norm));
            speed.push((at, *tokens as f64 / seconds.max(1e-9)));
            preferred_points.extend(preferred.map(|p| (at, 100.0 * p)));
        }
    }
    let mut losses = raw_and_smooth(loss, "training");
    for (i, (source, points)) in held_out(entries).into_iter().enumerate() {
        let color = HELD[i % HELD.len()];
        losses.push(Line { points, color, width: 2, label: format!("held out: {source}") });
    }
    let plain = |points: Vec<(f64, f64)>| {
        vec![Line { points: thin(&points), color: STRONG, width: 2, label: String::new() }]
    };
    vec![
        ("Loss", "nats per learnt token", losses, false),
        ("Preferred", "% of pairs", raw_and_smooth(preferred_points, ""), false),
        ("Learning rate", "", plain(rate), false),
        ("Gradient norm", "before clipping", raw_and_smooth(norm, ""), true),
        ("Speed", "tokens/s", raw_and_smooth(speed, ""), false),
    ]
}

/// The held-out losses of each source.
fn held_out(entries: &[Entry]) -> Vec<(String, Vec<(f64, f64)>)> {
    let mut all: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for e in entries {
        if let Entry::Evaluation { step, source, loss, .. } = e {
            let point = (*step as f64, *loss);
            match all.iter_mut().find(|(name, _)| name == source) {
                Some((_, points)) => points.push(point),
                None => all.push((source.clone(), vec![point])),
            }
        }
    }
    all
}

/// The values themselves, pale, and their running mean over a fiftieth of the run.
fn raw_and_smooth(points: Vec<(f64, f64)>, label: &str) -> Vec<Line> {
    let memory = 1.0 - 1.0 / (points.len() as f64 / 50.0).max(1.0);
    let (mut mean, mut weight) = (0.0, 0.0);
    let smooth: Vec<(f64, f64)> = (points.iter())
        .map(|(x, y)| {
            mean = memory * mean + (1.0 - memory) * y;
            weight = memory * weight + (1.0 - memory);
            (*x, mean / weight)
        })
        .collect();
    vec![
        Line { points: thin(&points), color: PALE, width: 1, label: String::new() },
        Line { points: thin(&smooth), color: STRONG, width: 2, label: label.to_owned() },
    ]
}

/// At most [`MOST_POINTS`] of the points, the last one among them.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let every = points.len().div_ceil(MOST_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    let kept = points.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
    kept.map(|(_, p)| *p).filter(|(_, y)| y.is_finite()).collect()
}

/// The lines as SVG. A chart that can't be drawn leaves its place empty.
fn chart(lines: &[Line], log: bool) -> String {
    let mut svg = String::new();
    let drawn = draw(&mut svg, lines, log);
    if drawn.is_err() { "<p>cannot be drawn</p>".into() } else { svg }
}

fn draw(
    svg: &mut String,
    lines: &[Line],
    log: bool,
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let points = || lines.iter().flat_map(|l| l.points.iter().copied());
    let (mut left, mut right, mut low, mut high) = (f64::MAX, f64::MIN, f64::MAX, f64::MIN);
    for (x, y) in points() {
        (left, right) = (left.min(x), right.max(x));
        (low, high) = (low.min(y), high.max(y));
    }
    let log = log && low > 0.0;
    let scaled = |y: f64| if log { y.log10() } else { y };
    let (bottom, top) = (scaled(low), scaled(high));
    let margin = ((top - bottom) * 0.05).max(top.abs() * 1e-3).max(1e-9);
    let root = SVGBackend::with_string(svg, (1040, 300)).into_drawing_area();
    let mut chart =
        ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(28)
            .y_label_area_size(72)
            .build_cartesian_2d(left..right.max(left + 1.0), bottom - margin..top + margin)?;
    let show = |y: &f64| number(if log { 10f64.powf(*y) } else { *y });
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .x_labels(10)
        .y_labels(6)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&show)
        .draw()?;
    for line in lines.iter().filter(|l| !l.points.is_empty()) {
        let style = ShapeStyle::from(&line.color).stroke_width(line.width);
        let series = LineSeries::new(line.points.iter().map(|(x, y)| (*x, scaled(*y))), style);
        let drawn = chart.draw_series(series)?;
        if !line.label.is_empty() {
            let legend = move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style);
            drawn.label(line.label.clone()).legend(legend);
        }
    }
    if lines.iter().any(|l| !l.label.is_empty()) {
        chart
            .configure_series_labels()
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font(("sans-serif", 13).into_font().color(&INK))
            .draw()?;
    }
    root.present()?;
    drop(chart);
    Ok(())
}

/// A number with as many digits as a label needs.
fn number(x: f64) -> String {
    let size = x.abs();
    match size {
        _ if size == 0.0 => "0".into(),
        _ if size >= 1e5 => format!("{x:.1e}"),
        _ if size >= 100.0 => format!("{x:.0}"),
        _ if size >= 0.1 => format!("{x:.2}"),
        _ => format!("{x:.1e}"),
    }
}

fn summary(entries: &[Entry]) -> String {
    let steps: Vec<_> = (entries.iter())
        .filter_map(|e| match e {
            Entry::Step { step, loss, tokens, tokens_seen, seconds, .. } => {
                Some((*step, *loss, *tokens, *tokens_seen, *seconds))
            }
            _ => None,
        })
        .collect();
    let Some(&(step, _, _, seen, _)) = steps.last() else { return String::new() };
    let recent = &steps[steps.len().saturating_sub(20)..];
    let loss = recent.iter().map(|s| s.1).sum::<f64>() / recent.len() as f64;
    let time: f64 = steps.iter().map(|s| s.4).sum();
    let speed = steps.iter().map(|s| s.2 as f64).sum::<f64>() / time.max(1e-9);
    let mut items = vec![
        ("steps", step.to_string()),
        ("loss, last 20 steps", format!("{loss:.4}")),
        ("tokens", grouped(seen)),
        ("tokens/s", format!("{speed:.0}")),
        ("time in steps", duration(time)),
    ];
    let held = |e: &&Entry| matches!(e, Entry::Evaluation { .. });
    if let Some(Entry::Evaluation { step, .. }) = entries.iter().rev().find(held) {
        let (mut bits, mut count) = (0.0, 0.0);
        for e in entries {
            if let Entry::Evaluation { step: s, bits_per_byte, .. } = e
                && s == step
            {
                bits += bits_per_byte;
                count += 1.0;
            }
        }
        items.push(("held out, bits per byte", format!("{:.4}", bits / count)));
    }
    let item =
        |(name, value): &(&str, String)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    format!("<dl>\n{}</dl>\n", items.iter().map(item).collect::<String>())
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let group = |(i, c): (usize, char)| {
        let gap = i > 0 && (digits.len() - i).is_multiple_of(3);
        if gap { format!(",{c}") } else { c.to_string() }
    };
    digits.chars().enumerate().map(group).collect()
}

/// Seconds, as people read them.
pub fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// The last measurement of each source.
fn evaluations(entries: &[Entry]) -> String {
    let mut rows: Vec<(&str, String)> = Vec::new();
    for e in entries {
        let Entry::Evaluation { step, source, loss, bits_per_byte, tokens } = e else { continue };
        let row = format!(
            "<tr><td>{}</td><td class=n>{step}</td><td class=n>{loss:.4}</td>\
             <td class=n>{bits_per_byte:.4}</td><td class=n>{tokens}</td></tr>\n",
            escape(source)
        );
        rows.retain(|(name, _)| name != source);
        rows.push((source, row));
    }
    if rows.is_empty() {
        return String::new();
    }
    let rows: String = rows.into_iter().map(|(_, row)| row).collect();
    format!(
        "<h2>Held out, last measurement</h2>\n<table>\n<tr><th>source</th><th class=n>step</th>\
         <th class=n>nats per token</th><th class=n>bits per byte</th><th class=n>tokens</th></tr>\n\
         {rows}</table>\n"
    )
}

fn samples(entries: &[Entry]) -> String {
    let row = |e: &Entry| match e {
        Entry::Sample { step, prompt, text } => Some(format!(
            "<tr><td class=n>{step}</td><td class=t>{}</td><td class=t>{}</td></tr>\n",
            escape(prompt),
            escape(text)
        )),
        _ => None,
    };
    let rows: String = entries.iter().filter_map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    format!(
        "<h2>What the model said</h2>\n<table>\n<tr><th class=n>step</th><th>prompt</th>\
         <th>answer</th></tr>\n{rows}</table>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_stands_alone_and_escapes_what_models_say() {
        let mut entries: Vec<Entry> = (1..=3000)
            .map(|step| Entry::Step {
                step,
                loss: 5.0 / (step as f64).sqrt(),
                lr: 1e-3,
                grad_norm: 1.0 + (step % 7) as f64,
                tokens: 100,
                tokens_seen: 100 * step,
                seconds: 0.5,
                preferred: None,
            })
            .collect();
        let evaluation = |step| Entry::Evaluation {
            step,
            source: "a<b".into(),
            loss: 2.0,
            bits_per_byte: 1.25,
            tokens: 7,
        };
        entries.extend([evaluation(1), evaluation(3000)]);
        let (prompt, text) = ("Hi".into(), "<script>alert(1)</script>".into());
        entries.push(Entry::Sample { step: 3000, prompt, text });
        let page = page("run & co", "lr = 1", &entries);
        assert!(page.contains("run &amp; co") && !page.contains("<script"));
        assert_eq!(page.matches("<svg").count(), 4, "loss, rate, norm, speed");
        assert!(
            page.contains("1.2500") && page.contains("300,000") && page.contains("25 min 00 s")
        );
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.len() < 400_000, "{}", page.len());
    }

    #[test]
    fn few_or_odd_values_draw_too() {
        let line = |points| Line { points, color: STRONG, width: 1, label: "x".into() };
        for points in
            [vec![(1.0, 0.0), (2.0, 0.0)], vec![(1.0, 3.0)], vec![(5.0, -1.0), (6.0, 1e9)]]
        {
            for log in [false, true] {
                assert!(chart(&[line(points.clone())], log).contains("<svg"));
            }
        }
    }
}
