//! What training shows while it goes on: a line now and then, one for each judgement.

use crate::cli::signal;
use crate::report::human;
use crate::report::progress::Progress;
use crate::train::{Judged, Place, Record, Watch};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Between two lines of steps.
const PAUSE: Duration = Duration::from_secs(10);

/// Shows records.
pub struct Lines<'a> {
    progress: &'a Progress,
    begun: Instant,
    told: Instant,
    /// Steps and tokens since this place's start.
    steps: u64,
    tokens: u64,
    block: Option<usize>,
}

impl<'a> Lines<'a> {
    /// Begins.
    pub fn new(progress: &'a Progress) -> Self {
        Self {
            progress,
            begun: Instant::now(),
            told: Instant::now(),
            steps: 0,
            tokens: 0,
            block: None,
        }
    }
}

impl Watch for Lines<'_> {
    fn record(&mut self, place: Place, record: &Record) {
        let block = place.block.map(|(number, _)| number);
        if record.step <= 1 || block != self.block {
            self.begun = Instant::now();
            (self.steps, self.tokens, self.block) = (0, 0, block);
        } else {
            self.steps += 1;
            self.tokens += record.tokens;
        }
        if record.judged.is_none() && self.told.elapsed() < PAUSE {
            return;
        }
        self.told = Instant::now();
        let mut text = match place.block {
            Some((number, count)) => format!("block {}/{count} ", number + 1),
            None => String::new(),
        };
        text += &format!("step {}/{}", record.step, place.steps);
        if let Some(loss) = record.loss {
            text += &format!("  loss {loss:.4}");
        }
        if let Some(judged) = &record.judged {
            text += &said(judged);
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        if self.steps > 0 && seconds > 0.0 {
            let left = place.steps.saturating_sub(record.step) as f64;
            let eta = Duration::from_secs_f64(left * seconds / self.steps as f64);
            let rate = self.tokens as f64 / seconds;
            text += &format!("  {rate:.0} tokens/s  ETA {}", human::duration(eta));
        }
        self.progress.stage("Training", &text);
    }

    fn interrupt(&self) -> &'static AtomicBool {
        signal::flag()
    }
}

/// What the held-out examples say.
pub fn said(judged: &Judged) -> String {
    let part = |name: &str, value: Option<f64>| {
        value.map_or(String::new(), |value| format!("  {name} {value:.4}"))
    };
    let parts = [
        part("held-out error", judged.error),
        part("held-out KL", judged.kl),
        part("held-out loss", judged.cross_entropy),
    ];
    parts.concat()
}
