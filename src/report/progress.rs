//! Progress on stderr: one line per tensor, a bar on terminals, a closing line.
//!
//! Lines are in the manner of `llama-quantize`:
//! ```text
//! [  7/ 723] blk.0.attn_q [8192,8192] bf16 128.0 MiB -> 36.9 MiB low_rank r64 + int4  rel_err 0.0310 -> 0.0190  12.3 GiB/min ETA 36:10
//! ```
//! Quiet prints nothing here. A terminal also gets a bar with rate and ETA; elsewhere (a log) the lines
//! carry them.

use super::{human, resources};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much to say, and how.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Nothing but errors.
    pub quiet: bool,
    /// Number of `-v`.
    pub verbose: u8,
    /// ANSI colours.
    pub color: bool,
    /// A moving bar; only on a terminal.
    pub bar: bool,
}

impl Style {
    /// The style for this process's stderr; `color` overrides what NO_COLOR and the terminal say.
    pub fn stderr(quiet: bool, verbose: u8, color: Option<bool>) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            quiet,
            verbose,
            color: color.unwrap_or(terminal && !plain),
            bar: terminal && !quiet,
        }
    }
}

/// What is said of one finished tensor.
#[derive(Debug, Clone)]
pub struct TensorLine<'a> {
    /// Its name.
    pub name: &'a str,
    /// `[out, in]`, or what it has.
    pub shape: &'a [u64],
    /// Stored type of the source.
    pub dtype: &'a str,
    /// Bytes of the source.
    pub before: u64,
    /// Bytes of all terms.
    pub after: u64,
    /// The terms in short: `low_rank r64 + sparse 0.5% + int4`.
    pub terms: &'a str,
    /// Relative error after each step that has one; first and last are shown.
    pub errors: &'a [f64],
}

/// What the closing line says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Summary<'a> {
    /// Tensors that were worked on, in one stage or several.
    pub tensors: usize,
    /// Linears that did not get what was asked for.
    pub fallbacks: usize,
    /// Warnings given.
    pub warnings: usize,
    /// Where the details are.
    pub report: Option<&'a str>,
}

/// Progress of a run; shared by its threads.
#[derive(Debug)]
pub struct Progress {
    style: Style,
    bar: ProgressBar,
    total: AtomicU64,
    done: AtomicU64,
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    warnings: AtomicU64,
    begun: Instant,
    /// When the stage began that rates are of.
    stage_begun: Mutex<Instant>,
}

impl Progress {
    /// Progress that prints in this style.
    pub fn new(style: Style) -> Self {
        Self {
            style,
            // Shown from `start` on, when there is a length.
            bar: ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden()),
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
            warnings: AtomicU64::new(0),
            begun: Instant::now(),
            stage_begun: Mutex::new(Instant::now()),
        }
    }

    /// Progress that prints nothing.
    pub fn silent() -> Self {
        Self::new(Style {
            quiet: true,
            ..Style::default()
        })
    }

    /// The style in use.
    pub fn style(&self) -> Style {
        self.style
    }

    /// How much there is to do, in this stage; starts the bar.
    pub fn start(&self, tensors: u64, bytes: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.bytes_done.store(0, Ordering::Relaxed);
        *self.lock_begun() = Instant::now();
        self.total.store(tensors, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
        // One template, fixed and known to be valid.
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix:>12} [{bar:28}] {bytes}/{total_bytes} {bytes_per_sec} ETA {eta} {wide_msg}",
        ) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        self.bar.set_length(bytes);
        self.bar.set_position(0);
        if self.style.bar {
            self.bar.set_prefix("Rewriting");
            self.bar
                .set_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        }
        self.bar.reset_eta();
    }

    /// A stage in the manner of cargo: `   Importing model.onnx`.
    pub fn stage(&self, verb: &str, text: &str) {
        if self.style.quiet {
            return;
        }
        let padded = format!("{verb:>12}");
        let verb = if self.style.color {
            format!("\x1b[1;32m{padded}\x1b[0m")
        } else {
            padded
        };
        self.line(&format!("{verb} {text}"));
    }

    /// Text that was asked for by a flag of its own; shown even when quiet.
    pub fn always(&self, text: &str) {
        self.line(text.trim_end_matches('\n'));
    }

    /// Detail that is shown with `-v`.
    pub fn detail(&self, text: &str) {
        if self.style.verbose > 0 && !self.style.quiet {
            self.line(text);
        }
    }

    /// A warning; shown unless quiet, counted always.
    pub fn warn(&self, text: &str) {
        self.warnings.fetch_add(1, Ordering::Relaxed);
        if self.style.quiet {
            return;
        }
        let word = if self.style.color {
            "\x1b[1;33mwarning\x1b[0m"
        } else {
            "warning"
        };
        self.line(&format!("{word}: {text}"));
    }

    /// Warnings given so far.
    pub fn warnings(&self) -> usize {
        usize::try_from(self.warnings.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// A tensor that is done.
    pub fn tensor(&self, line: &TensorLine<'_>) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self
            .bytes_done
            .fetch_add(line.before, Ordering::Relaxed)
            .saturating_add(line.before);
        self.bar.set_position(bytes);
        self.bar.set_message(line.name.to_owned());
        if self.style.quiet {
            return;
        }
        let total = self.total.load(Ordering::Relaxed).max(done);
        let mut text = tensor_text(done, total, line);
        if !self.style.bar {
            text.push_str(&rate(
                bytes,
                self.bytes_total.load(Ordering::Relaxed),
                self.lock_begun().elapsed(),
            ));
        }
        self.line(&text);
    }

    /// The closing line: time, peak memory, fallbacks, warnings.
    pub fn finish(&self, summary: &Summary<'_>) {
        self.bar.finish_and_clear();
        self.stage(
            "Finished",
            &closing(self.begun.elapsed(), resources::peak_rss(), summary),
        );
    }

    /// Ends the bar without a closing line, before an error is printed.
    pub fn abandon(&self) {
        self.bar.finish_and_clear();
    }

    fn lock_begun(&self) -> MutexGuard<'_, Instant> {
        self.stage_begun
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            // A closed stderr is no reason to stop the work.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}

fn closing(time: Duration, rss: u64, summary: &Summary<'_>) -> String {
    let mut text = format!(
        "{} in {}",
        human::plural(summary.tensors, "tensor"),
        human::duration(time)
    );
    if rss > 0 {
        text.push_str(&format!(", peak RSS {}", human::size(rss)));
    }
    text.push_str(&format!(
        ", {}, {}",
        human::plural(summary.fallbacks, "fallback"),
        human::plural(summary.warnings, "warning")
    ));
    if let Some(report) = summary.report {
        text.push_str(&format!(" (see {report})"));
    }
    text
}

fn tensor_text(done: u64, total: u64, line: &TensorLine<'_>) -> String {
    let width = total.to_string().len().max(3);
    let shape: Vec<String> = line.shape.iter().map(u64::to_string).collect();
    let mut text = format!(
        "[{done:width$}/{total:width$}] {} [{}] {} {} -> {} {}",
        line.name,
        shape.join(","),
        line.dtype,
        human::size(line.before),
        human::size(line.after),
        line.terms
    );
    match line.errors {
        [] => {}
        [only] => text.push_str(&format!("  rel_err {}", human::error(*only))),
        [first, .., last] => {
            text.push_str(&format!(
                "  rel_err {} -> {}",
                human::error(*first),
                human::error(*last)
            ));
        }
    }
    text
}

/// Rate and time left; nothing while there is too little to judge by.
fn rate(done: u64, total: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    if done == 0 || seconds < 0.5 {
        return String::new();
    }
    let per_second = done as f64 / seconds;
    let left = total.saturating_sub(done) as f64 / per_second;
    let eta = human::duration(Duration::from_secs_f64(left.min(1e9)));
    format!(
        "  {}/min ETA {eta}",
        human::size((per_second * 60.0) as u64)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let line = TensorLine {
            name: "blk.0.attn_q",
            shape: &[8192, 8192],
            dtype: "bf16",
            before: 128 << 20,
            after: 38_692_454,
            terms: "low_rank r64 + sparse 0.5% + int4",
            errors: &[0.031, 0.025, 0.019],
        };
        assert_eq!(
            tensor_text(7, 723, &line),
            "[  7/723] blk.0.attn_q [8192,8192] bf16 128.0 MiB -> 36.9 MiB low_rank r64 + sparse 0.5% + int4  \
             rel_err 0.0310 -> 0.0190"
        );
        assert_eq!(
            rate(1 << 30, 11 << 30, Duration::from_secs(60)),
            "  1.0 GiB/min ETA 10:00"
        );
        assert_eq!(rate(0, 11, Duration::from_secs(60)), "");
        let summary = Summary {
            tensors: 723,
            fallbacks: 0,
            warnings: 2,
            report: Some("x.hlrc/report.json"),
        };
        assert_eq!(
            closing(Duration::from_secs(2271), 6_012_954_214, &summary),
            "723 tensors in 37:51, peak RSS 5.6 GiB, 0 fallbacks, 2 warnings (see x.hlrc/report.json)"
        );
    }

    #[test]
    fn silent_progress_counts_warnings() {
        let progress = Progress::silent();
        progress.start(1, 1);
        progress.warn("w");
        progress.tensor(&TensorLine {
            name: "",
            shape: &[],
            dtype: "",
            before: 0,
            after: 0,
            terms: "",
            errors: &[],
        });
        progress.finish(&Summary::default());
        assert_eq!(progress.warnings(), 1);
    }
}
