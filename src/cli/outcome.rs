//! What is told when a run is over: the table, remarks, timing, statistics.

use super::args::{DebugArgs, RemarkKind as Wanted, StatsForm, TimingForm};
use super::opt::write_text;
use super::table::Table;
use super::{Exit, Failure};
use crate::pass::manager::StepTotals;
use crate::pass::{Remark, RemarkKind};
use crate::report::progress::Progress;
use crate::report::{ModelReport, Totals, human};
use std::fmt::Write;
use std::time::Duration;

/// The totals of a report as a table.
pub fn table(report: &ModelReport) -> String {
    let mut table = Table::new(&[
        "",
        "parameters>",
        "after>",
        "size>",
        "after>",
        "ratio>",
        "saved>",
        "bits/weight>",
        "FLOPs/token>",
        "after>",
    ]);
    let ends = format!(
        "embeddings, head ({:.1}% of output)",
        report.embeddings_and_head_percent
    );
    for (name, totals) in [
        (
            format!(
                "{} rewritten",
                human::plural(report.sites.len(), "matrix").replace("matrixs", "matrices")
            ),
            &report.rewritten_totals,
        ),
        (ends, &report.embeddings_and_head),
        ("model".to_owned(), &report.model_totals),
    ] {
        table.row(row(name, totals));
    }
    table.render()
}

fn row(name: String, totals: &Totals) -> Vec<String> {
    let flops = |value: u64| {
        if value == 0 {
            "-".to_owned()
        } else {
            human::count(value)
        }
    };
    vec![
        name,
        human::count(totals.params_before),
        human::count(totals.params_after),
        human::size(totals.bytes_before),
        human::size(totals.bytes_after),
        format!("{:.2}x", totals.ratio),
        format!("{:.1}%", totals.reduction_percent),
        format!("{:.2}", totals.bits_per_weight),
        flops(totals.flops_before),
        flops(totals.flops_after),
    ]
}

/// Warns of what the exporter noted. What it says of many matrices alike is said once, unless verbose.
pub fn notes(notes: &[String], progress: &Progress) {
    let mut groups: Vec<(&str, &str, usize)> = Vec::new();
    for note in notes {
        let (place, what) = note.split_once(": ").unwrap_or(("", note));
        match groups.iter_mut().find(|(_, known, _)| *known == what) {
            Some((.., count)) => *count += 1,
            None => groups.push((place, what, 1)),
        }
    }
    for (place, what, count) in groups {
        let place = if place.is_empty() {
            String::new()
        } else {
            format!("{place}: ")
        };
        match count {
            1 => progress.warn(&format!("{place}{what}")),
            _ => progress.warn(&format!("{place}{what} ({count} times; -v lists them)")),
        }
    }
    notes
        .iter()
        .for_each(|note| progress.detail(&format!("note: {note}")));
}

/// Prints the remarks that were asked for, and writes the file of all of them.
///
/// # Errors
/// A [`Failure`] where the file can't be written.
pub fn remarks(args: &DebugArgs, all: &[Remark], progress: &Progress) -> Result<(), Failure> {
    // `prepare` has compiled it before; what it could not compile never comes here.
    let filter = args
        .remarks_filter
        .as_ref()
        .and_then(|text| regex::Regex::new(text).ok());
    let passes = |remark: &Remark| {
        filter
            .as_ref()
            .is_none_or(|filter| filter.is_match(&remark.to_string()))
    };
    for remark in all.iter().filter(|remark| passes(remark)) {
        let wanted = match remark.kind {
            RemarkKind::Passed => args.remarks.contains(&Wanted::Passed),
            RemarkKind::Missed => args.remarks.contains(&Wanted::Missed),
            RemarkKind::Analysis => args.remarks.contains(&Wanted::Analysis),
            RemarkKind::Failed => true,
        };
        if wanted {
            progress.always(&remark.to_string());
        }
    }
    let Some(path) = &args.remarks_output else {
        return Ok(());
    };
    let text: String = all
        .iter()
        .filter(|remark| passes(remark))
        .map(yaml)
        .collect();
    write_text(path, &text)
}

/// A remark as a YAML document, tagged by its kind as LLVM's are.
fn yaml(remark: &Remark) -> String {
    let mut kind = remark.kind.name().to_owned();
    if let Some(first) = kind.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    // JSON's strings are YAML's double-quoted ones.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        "--- !{kind}\nPass: {}\nSite: {}\nMessage: {}\n...\n",
        quoted(&remark.pass),
        quoted(&remark.site),
        quoted(&remark.message)
    )
}

/// Prints times and counts as asked for.
pub fn measurements(args: &DebugArgs, totals: &[StepTotals], wall: Duration, progress: &Progress) {
    match args.timing {
        None => {}
        Some(TimingForm::Json) => {
            let steps: Vec<_> = totals
                .iter()
                .map(|step| serde_json::json!({"pass": step.pass, "seconds": step.nanos as f64 / 1e9}))
                .collect();
            progress.always(
                &serde_json::json!({"seconds": wall.as_secs_f64(), "passes": steps}).to_string(),
            );
        }
        Some(form) => progress.always(&timing(form, totals, wall)),
    }
    match args.stats {
        None => {}
        Some(StatsForm::Json) => {
            progress.always(&serde_json::to_string(totals).unwrap_or_default());
        }
        Some(StatsForm::Text) => progress.always(&statistics(totals)),
    }
}

fn timing(form: TimingForm, totals: &[StepTotals], wall: Duration) -> String {
    let all: u64 = totals.iter().map(|step| step.nanos).sum();
    let mut order: Vec<&StepTotals> = totals.iter().collect();
    if form == TimingForm::List {
        order.sort_by_key(|step| std::cmp::Reverse(step.nanos));
    }
    let mut table = Table::new(&["time, all threads>", "share>", "pass"]);
    for step in order {
        table.row([
            human::duration(Duration::from_nanos(step.nanos)),
            format!("{:.1}%", 100.0 * step.nanos as f64 / (all.max(1)) as f64),
            if form == TimingForm::Tree {
                format!("  {}", step.pass)
            } else {
                step.pass.clone()
            },
        ]);
    }
    let mut out = table.render();
    // Writing to a string can't fail.
    let _ = write!(
        out,
        "{} in passes, {} in all",
        human::duration(Duration::from_nanos(all)),
        human::duration(wall)
    );
    out
}

fn statistics(totals: &[StepTotals]) -> String {
    let mut table = Table::new(&[
        "pass",
        "sites>",
        "terms made>",
        "bytes of terms>",
        "ops replaced>",
    ]);
    for step in totals {
        table.row([
            step.pass.clone(),
            step.sites.to_string(),
            step.terms.to_string(),
            human::size(step.term_bytes),
            step.edits.to_string(),
        ]);
    }
    table.render().trim_end().to_owned()
}

/// Checks that the file of remarks will have a folder to stand in, before the work begins.
///
/// # Errors
/// A [`Failure`] that names the folder.
pub fn check_remarks_file(args: &DebugArgs) -> Result<(), Failure> {
    let Some(path) = &args.remarks_output else {
        return Ok(());
    };
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if parent.is_none_or(|parent| parent.is_dir()) && !path.is_dir() {
        return Ok(());
    }
    Err(Failure::new(
        Exit::Failure,
        format!(
            "--remarks-output {}: there is no such place",
            path.display()
        ),
    )
    .help("name a file in a folder that exists"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remarks_are_yaml_documents() {
        let mut remark = Remark::missed("blk.3", "says \"no\"");
        remark.pass = "lowrank".into();
        assert_eq!(
            yaml(&remark),
            "--- !Missed\nPass: \"lowrank\"\nSite: \"blk.3\"\nMessage: \"says \\\"no\\\"\"\n...\n"
        );
    }

    #[test]
    fn times_are_sorted_in_a_list() {
        let step = |pass: &str, nanos| StepTotals {
            pass: pass.into(),
            nanos,
            ..StepTotals::default()
        };
        let totals = [step("a", 1_000_000_000), step("b", 3_000_000_000)];
        let list = timing(TimingForm::List, &totals, Duration::from_secs(2));
        assert!(list.find('b') < list.rfind("25.0%"), "{list}");
        assert!(list.ends_with("4.00 s in passes, 2.00 s in all"), "{list}");
    }
}
