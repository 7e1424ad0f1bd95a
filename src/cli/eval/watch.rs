//! Progress of an evaluation on stderr: a bar on a terminal, now and then a line elsewhere.

use crate::cli::args::TalkArgs;
use crate::report::human;
use crate::report::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(30);

/// Something that advances in steps.
pub struct Watch<'a> {
    bar: ProgressBar,
    progress: &'a Progress,
    lines: bool,
    verb: &'static str,
    unit: &'static str,
    total: usize,
    begun: Instant,
    told: Instant,
}

impl<'a> Watch<'a> {
    /// Begins; `unit` is what is counted.
    pub fn new(progress: &'a Progress, talk: &TalkArgs, total: usize, unit: &'static str) -> Self {
        let on_bar = progress.style().bar;
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden());
        // One template, fixed and known to be valid.
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:>12} [{bar:28}] {human_pos}/{human_len} {msg} {per_sec} ETA {eta}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix("Evaluating");
        bar.set_message(unit);
        if on_bar {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(4));
        }
        Self {
            bar,
            progress,
            lines: !on_bar && !talk.quiet,
            verb: "Evaluating",
            unit,
            total,
            begun: Instant::now(),
            told: Instant::now(),
        }
    }

    /// The same, called something else than evaluating.
    #[must_use]
    pub fn called(mut self, verb: &'static str) -> Self {
        self.verb = verb;
        self.bar.set_prefix(verb);
        self
    }

    /// So many are done.
    pub fn at(&mut self, done: usize) {
        self.bar.set_position(done as u64);
        if !self.lines || self.told.elapsed() < PAUSE || done == 0 {
            return;
        }
        self.told = Instant::now();
        let left = self.total.saturating_sub(done) as f64 / done as f64;
        let eta = human::duration(self.begun.elapsed().mul_f64(left.min(1e6)));
        let text = format!("{done}/{} {}, ETA {eta}", self.total, self.unit);
        self.progress.stage(self.verb, &text);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
