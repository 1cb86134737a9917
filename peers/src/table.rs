//! The Markdown table.

use crate::work::{ROWS, Work};
use serde_json::Value;

/// Values of one program in one row.
struct Figures(Vec<f64>);

impl Figures {
    fn median(&self) -> Option<f64> {
        self.0.get(self.0.len() / 2).copied()
    }

    fn text(&self) -> String {
        let (Some(median), Some(low), Some(high)) = (self.median(), self.0.first(), self.0.last())
        else {
            return "–".into();
        };
        let digits = if median < 10.0 { 2 } else { usize::from(median < 100.0) };
        let spread = format!("({low:.digits$}–{high:.digits$})");
        format!("{median:.digits$} {spread}")
    }
}

fn value(row: &Work, record: &Value) -> Option<f64> {
    match row.name {
        "first" => record["seconds"].as_f64(),
        "memory" => record["peak_resident_bytes"].as_f64().map(|b| b / 1e6),
        _ => record["rate"].as_f64(),
    }
}

fn figures(row: &Work, records: &[&Value], program: &str) -> Figures {
    let mut all: Vec<f64> = (records.iter())
        .filter(|r| r["program"] == program)
        .filter_map(|r| value(row, r))
        .collect();
    all.sort_by(f64::total_cmp);
    Figures(all)
}

/// Our share of the machine's limit, as `lapidary bench` measured it in the same run.
fn share(row: &Work, records: &[&Value]) -> String {
    let mut shares: Vec<f64> = (records.iter())
        .filter(|r| r["program"] == "lapidary")
        .filter_map(|r| {
            if row.name == "memory" {
                let held = r["file_bytes"].as_f64()? + r["cache_bytes"].as_f64()?;
                Some(r["peak_resident_bytes"].as_f64()? / held)
            } else if row.generate == 0 {
                let operations = 2.0 * r["layer_weights"].as_f64()? * r["rate"].as_f64()?;
                Some(operations / r["int8_peak_operations_per_second"].as_f64()?)
            } else {
                let rate = r["rate"].as_f64()? / row.sequences as f64;
                let read = rate * r["weight_bytes_per_step"].as_f64()?;
                Some(read / r["read_bandwidth_bytes_per_second"].as_f64()?)
            }
        })
        .collect();
    shares.sort_by(f64::total_cmp);
    let Some(share) = shares.get(shares.len() / 2) else { return String::new() };
    let of = match row.name {
        "memory" => "file + cache",
        _ if row.generate == 0 => "int8 peak",
        _ => "bandwidth",
    };
    format!("{:.0} % of {of}", 100.0 * share)
}

/// Prints a row for each file and kind of work that was measured.
pub fn print(records: &[Value]) {
    println!("| file | work | Lapidary | llama.cpp | candle | ratio | goal | limit |");
    println!("|---|---|--:|--:|--:|--:|--:|--:|");
    let mut files: Vec<&str> = Vec::new();
    for file in records.iter().filter_map(|r| r["file"].as_str()) {
        if !files.contains(&file) {
            files.push(file);
        }
    }
    for file in files {
        for row in &ROWS {
            let here = records.iter().filter(|r| r["file"] == file && r["row"] == row.name);
            let here: Vec<&Value> = here.collect();
            if here.is_empty() {
                continue;
            }
            let [ours, llama, candle] =
                ["lapidary", "llama", "candle"].map(|p| figures(row, &here, p));
            let ratio = ours.median().zip(llama.median()).map(|(a, b)| a / b);
            println!(
                "| {file} | {} | {} | {} | {} | {} | {} {:.1} | {} |",
                row.title,
                ours.text(),
                llama.text(),
                candle.text(),
                ratio.map_or("–".into(), |r| format!("{r:.2}")),
                if matches!(row.name, "first" | "memory") { "≤" } else { "≥" },
                row.goal,
                share(row, &here),
            );
        }
    }
    let mut errors: Vec<String> = (records.iter())
        .filter_map(|r| {
            Some(format!("{}, {}, {}: {}", r["file"], r["row"], r["program"], r["error"].as_str()?))
        })
        .collect();
    errors.dedup();
    errors.iter().for_each(|e| println!("\n{e}"));
}
