//! The windows of a calibration once more, and those behind them.

use super::text::{self, Settings, Text, is_own};
use super::{check_alone, failure};
use crate::calib::{self, Protocol, Source, Statistics};
use crate::cli::args::TalkArgs;
use crate::cli::{Exit, Failure};
use crate::exec::Engine;
use crate::report::human;
use crate::report::progress::Progress;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A model, ready to run.
type Model<'a> = (&'a Path, &'a Engine);

/// Token ids, window by window.
type Windows = Vec<Vec<u32>>;

/// Texts of one run of `calibrate`, and how they are cut.
struct Run {
    data: Vec<PathBuf>,
    tokenizer: Option<PathBuf>,
    protocol: Protocol,
    /// What a file of statistics says of the token ids; empty where it says nothing.
    token_hash: String,
}

/// Windows behind those of a calibration.
pub struct Behind {
    /// Token ids.
    pub windows: Vec<Vec<u32>>,
    /// What the user should know of them.
    pub warning: Option<String>,
}

/// The runs behind `--calib`: those of a file of statistics, or that of the texts by default.
fn runs(
    (model, engine): Model<'_>,
    calib: &[PathBuf],
    progress: &Progress,
) -> Result<Vec<Run>, Failure> {
    check_alone(calib)?;
    let default = |settings: &Settings| text::protocol_of(model, engine, settings, progress);
    let [path] = calib else {
        return Ok(vec![Run::of(calib, default(&Settings::new(calib))?)]);
    };
    if !calib::is_statistics(path) {
        return Ok(vec![Run::of(calib, default(&Settings::new(calib))?)]);
    }
    let found = Statistics::open(path).map_err(failure)?;
    let mut runs = Vec::new();
    for source in &found.metadata().runs {
        let data = texts(path, source)?;
        if !source.token_hash.is_empty() {
            runs.push(Run {
                tokenizer: source.tokenizer.as_ref().map(PathBuf::from),
                token_hash: source.token_hash.clone(),
                ..Run::of(&data, source.protocol)
            });
            continue;
        }
        // An importance matrix has counted chunks from the start of its text.
        let some = |n: usize| (n > 0).then_some(n);
        let mut settings = Settings::new(&data);
        settings.context = some(source.protocol.context);
        settings.windows = some(source.protocol.windows).unwrap_or(settings.windows);
        runs.push(Run::of(&data, default(&settings)?));
    }
    Ok(runs)
}

/// The texts of a run, which must be there and as they were.
fn texts(statistics: &Path, source: &Source) -> Result<Vec<PathBuf>, Failure> {
    let names: Vec<PathBuf> = source.data.iter().map(|d| PathBuf::from(&d.name)).collect();
    let help = "give text with --calib, on which the cost of errors is measured";
    let refused = |what: String| Failure::new(Exit::Usage, what).help(help);
    let shown = statistics.display();
    if names.is_empty() {
        return Err(refused(format!(
            "{shown}: names no text that it was made from"
        )));
    }
    if is_own(&names) {
        return Ok(names);
    }
    for (name, data) in names.iter().zip(&source.data) {
        if !name.is_file() {
            let what = format!(
                "{shown}: the text that it was made from is not there: {}",
                name.display()
            );
            return Err(refused(what));
        }
        let as_it_was = data.sha256.is_empty() || super::text_digest(name)? == data.sha256;
        if !as_it_was {
            let what = format!(
                "{}: is not what {shown} was made from any more",
                name.display()
            );
            return Err(refused(what).help("calibrate again, or bring the text back"));
        }
    }
    Ok(names)
}

impl Run {
    fn of(data: &[PathBuf], protocol: Protocol) -> Self {
        Self {
            data: data.to_vec(),
            tokenizer: None,
            protocol,
            token_hash: String::new(),
        }
    }

    /// The windows that its texts give at so many windows.
    fn cut(
        &self,
        model: Model<'_>,
        windows: usize,
        talk: &TalkArgs,
        progress: &Progress,
    ) -> Result<Text, Failure> {
        let protocol = Protocol {
            windows,
            ..self.protocol
        };
        let source = (self.data.as_slice(), self.tokenizer.as_deref());
        text::cut(model, source, protocol, talk, progress)
    }

    /// Its windows that no run has used, `wanted` at most; and those that it has used itself.
    fn split(
        &self,
        model: Model<'_>,
        wanted: usize,
        talk: &TalkArgs,
        progress: &Progress,
    ) -> Result<(Windows, Windows), Failure> {
        let count = self.protocol.windows;
        let more = self.cut(model, count.saturating_add(wanted), talk, progress)?;
        let mut more = more.windows.list;
        if is_own(&self.data) {
            // Each window of a model's own text has a number, and does not depend on how many there are.
            let fresh = more.split_off(count.min(more.len()));
            return Ok((more, fresh));
        }
        Ok((self.cut(model, count, talk, progress)?.windows.list, more))
    }
}

/// The windows of the calibration again, all runs of a merged file one after the other.
///
/// # Errors
/// A text is not there or has changed; its tokens are not those of the statistics.
pub fn again(
    model: Model<'_>,
    calib: &[PathBuf],
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<Text, Failure> {
    let mut all: Option<Text> = None;
    for run in runs(model, calib, progress)? {
        let found = run.cut(model, run.protocol.windows, talk, progress)?;
        let known =
            run.token_hash.is_empty() || calib::token_hash(&found.windows.list) == run.token_hash;
        if !known {
            let what = "the texts of --calib give other tokens than those that the statistics were made from";
            return Err(Failure::new(Exit::Input, what)
                .help("the tokenizer is another, or the model is: calibrate again"));
        }
        match &mut all {
            None => all = Some(found),
            Some(all) => {
                all.data.extend(found.data);
                all.windows.list.extend(found.windows.list);
                all.windows.of_text.extend(found.windows.of_text);
            }
        }
    }
    all.ok_or_else(|| Failure::new(Exit::Usage, "the statistics of --calib name no text"))
}

/// Windows of the same texts that the calibration has not seen: so many windows, or lines.
///
/// # Errors
/// As [`again`].
pub fn behind(
    model: Model<'_>,
    calib: &[PathBuf],
    (windows, lines): (usize, usize),
    talk: &TalkArgs,
    progress: &Progress,
) -> Result<Behind, Failure> {
    let runs = runs(model, calib, progress)?;
    let is_lines = runs.iter().any(|run| run.protocol.lines);
    let wanted = if is_lines { lines } else { windows };
    let (mut used, mut fresh) = (Vec::new(), Vec::new());
    for run in &runs {
        let (seen, more) = run.split(model, wanted, talk, progress)?;
        used.extend(seen);
        fresh.push(more);
    }
    let seen: HashSet<&Vec<u32>> = used.iter().collect();
    for of_run in &mut fresh {
        of_run.retain(|window| !seen.contains(window));
        *of_run = spread(of_run, wanted);
    }
    let mut found = in_turn(&fresh, wanted);
    let what = if is_lines { "line" } else { "window" };
    let warning = (found.len() < wanted).then(|| match found.len() {
        0 => "no text is left behind the windows of the calibration: costs are measured on text that it has seen, and come out too low".to_string(),
        count => format!(
            "costs are measured on {} alone: the text ends behind the calibration's; {wanted} are better",
            human::plural(count, what)
        ),
    });
    if found.is_empty() {
        found = spread(&used, wanted);
    }
    Ok(Behind {
        windows: found,
        warning,
    })
}

/// So many of a list at even distances: lines are sorted by length.
fn spread(list: &[Vec<u32>], count: usize) -> Vec<Vec<u32>> {
    let at = |i: usize| {
        list.get(i * list.len() / count.min(list.len()).max(1))
            .cloned()
    };
    (0..count.min(list.len())).filter_map(at).collect()
}

/// So many of several lists, from each in turn.
fn in_turn(lists: &[Vec<Vec<u32>>], count: usize) -> Vec<Vec<u32>> {
    let longest = lists.iter().map(Vec::len).max().unwrap_or(0);
    let rows = (0..longest).flat_map(|at| lists.iter().filter_map(move |list| list.get(at)));
    rows.take(count).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spread_and_take_turns() {
        let list =
            |range: std::ops::Range<u32>| -> Vec<Vec<u32>> { range.map(|i| vec![i]).collect() };
        assert_eq!(spread(&list(0..6), 6), list(0..6));
        assert_eq!(spread(&list(0..9), 3), [[0], [3], [6]]);
        assert_eq!(spread(&list(0..2), 3), list(0..2));
        assert!(spread(&[], 3).is_empty());
        let lists = [list(0..1), list(10..14)];
        assert_eq!(in_turn(&lists, 3), [[0], [10], [11]]);
        assert!(in_turn(&[], 3).is_empty());
    }
}
