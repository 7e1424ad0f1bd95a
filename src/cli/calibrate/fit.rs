//! Whether statistics fit a model, and what of them had to be helped.

use super::failure;
use crate::calib::Statistics;
use crate::cli::{Exit, Failure};
use crate::ir::Module;
use crate::ir::site::{Site, sites};
use crate::pass::manager::Schedule;
use crate::pass::{Calibration, Pass, Remark};
use crate::passes::shared::gptq::RAISED;
use crate::report::human;
use std::collections::HashSet;
use std::path::Path;

/// Names that a message lists.
const LISTED: usize = 3;

/// The matrices on which passes of a schedule use statistics; only those that need them, where asked for.
pub fn users(schedule: &Schedule, module: &Module, needed: bool) -> HashSet<String> {
    let uses = |step: &usize| match &schedule.steps[*step].pass {
        Pass::Matrix(pass) => match pass.calibration() {
            Calibration::Needed => true,
            Calibration::Used => !needed,
            Calibration::Unused => false,
        },
        Pass::Module(_) => false,
    };
    let with = |site: &Site| schedule.steps_for(site).iter().any(uses);
    let all = sites(module).into_iter();
    all.filter(with).map(|site| site.name).collect()
}

/// Checks statistics against the matrices of a model that use them; gives those of which nothing is known.
///
/// # Errors
/// They know none of the matrices, or one with another width: exit code 3.
pub fn check_fit(
    statistics: &Statistics,
    model: &Path,
    module: &Module,
    names: &HashSet<&str>,
) -> Result<Vec<String>, Failure> {
    let mut wanted = sites(module);
    wanted.retain(|site| names.contains(site.name.as_str()));
    let checked = statistics.check(&model.display().to_string(), &wanted);
    checked.map_err(failure)
}

/// Checks statistics against a pipeline, before anything is coded; gives what the user should know.
///
/// # Errors
/// As [`check_fit`]; a pass needs statistics of a matrix that they don't know.
pub fn check_pipeline(
    statistics: &Statistics,
    model: &Path,
    module: &Module,
    schedule: &Schedule,
) -> Result<Option<String>, Failure> {
    let users = users(schedule, module, false);
    let names = users.iter().map(String::as_str).collect();
    let without = check_fit(statistics, model, module, &names)?;
    // Matrices of module passes may have names of their own.
    let changes =
        |step: &crate::pass::manager::schedule::Scheduled| matches!(step.pass, Pass::Module(_));
    if without.is_empty() || schedule.steps.iter().any(changes) {
        return Ok(None);
    }
    let path = statistics.path().display();
    let needing = self::users(schedule, module, true);
    let lacking: Vec<&String> = without.iter().filter(|n| needing.contains(*n)).collect();
    if !lacking.is_empty() {
        let names: Vec<String> = lacking.into_iter().cloned().collect();
        let what = format!(
            "{path}: nothing is known of the inputs of {}",
            listed(&names)
        );
        return Err(Failure::new(Exit::Input, what)
            .help("calibrate this model, or give these another pipeline with -t"));
    }
    Ok(Some(format!(
        "{path}: nothing is known of the inputs of {}; they are coded by their weights alone",
        listed(&without)
    )))
}

fn listed(names: &[String]) -> String {
    let first = names.iter().take(LISTED).cloned().collect::<Vec<_>>();
    match names.len().checked_sub(LISTED).filter(|&more| more > 0) {
        Some(more) => format!("{} and {more} more", first.join(", ")),
        None => first.join(", "),
    }
}

/// What of the statistics had to be helped on these matrices, in a line; none where nothing had to be.
///
/// # Errors
/// As reading the diagonals.
pub fn helped(
    statistics: &Statistics,
    names: &HashSet<String>,
    remarks: &[Remark],
) -> Result<Option<String>, Failure> {
    let (mut dead, mut with_dead, mut short, mut borrowing, mut unused) = (0usize, 0, 0, 0, 0);
    let known = statistics.sites().filter(|site| names.contains(*site));
    for site in known {
        let Some(found) = statistics.diagonal(site).map_err(failure)? else {
            continue;
        };
        dead += found.dead();
        with_dead += usize::from(found.dead() > 0);
        unused += usize::from(found.routed == Some(0));
        borrowing += usize::from(found.borrowed > 0);
        let few = found.tokens < found.diag.len() as u64;
        short += usize::from(few && found.borrowed == 0);
    }
    let mut raised: Vec<&str> = remarks
        .iter()
        .filter(|remark| remark.message.contains(RAISED))
        .map(|remark| remark.site.as_str())
        .collect();
    raised.sort_unstable();
    raised.dedup();
    let matrices = |count: usize| human::plural(count, "matrix").replace("matrixs", "matrices");
    let mut parts = Vec::new();
    let mut tell = |count: usize, text: String| {
        if count > 0 {
            parts.push(text);
        }
    };
    tell(
        dead,
        format!(
            "{dead} inputs of {} are zero on every token",
            matrices(with_dead)
        ),
    );
    tell(
        short,
        format!("{} saw fewer tokens than they have inputs", matrices(short)),
    );
    tell(
        borrowing,
        format!(
            "{} of experts borrow from the average over all",
            matrices(borrowing)
        ),
    );
    tell(
        unused,
        format!("{} of experts got no token", matrices(unused)),
    );
    let count = raised.len();
    tell(count, format!("{RAISED} for {}", matrices(count)));
    Ok((!parts.is_empty()).then(|| format!("statistics: {}", parts.join("; "))))
}
