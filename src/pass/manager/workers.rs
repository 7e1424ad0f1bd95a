//! Threads: units are taken in order, results are handed over in order.
//!
//! What is computed does not depend on who computes it, and results are consumed in the order of
//! the jobs, so the output is the same for any number of threads.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::memory::{PENDING_BYTES, Shape};
use super::unit::{self, Job, UnitError, UnitResult};

/// How a unit ended.
pub(super) enum Ended {
    Done(UnitResult),
    Failed(UnitError),
    Panicked(String),
    Interrupted,
}

/// Opens a job when its turn comes, so that no more files are looked at than are worked on.
pub(super) type Open<'a> = dyn Fn(usize) -> Result<Job<'a>, UnitError> + Sync + 'a;

struct State {
    /// Next unit: job and its number within the job.
    next: (usize, usize),
    /// Results per job still waiting, from `first` on.
    waiting: VecDeque<Vec<Option<Ended>>>,
    first: usize,
    /// Bytes of terms of jobs begun and not handed over.
    pending: u64,
    stop: bool,
}

struct Shared<'a> {
    shapes: &'a [Shape],
    state: Mutex<State>,
    changed: Condvar,
    interrupt: &'a AtomicBool,
}

/// Runs all jobs; `consume` gets the units of each, in order. It returns whether to go on.
pub(super) fn run<'a>(
    shapes: &[Shape],
    open: &Open<'a>,
    workers: usize,
    interrupt: &AtomicBool,
    mut consume: impl FnMut(usize, Vec<Ended>) -> bool,
) {
    let shared = Shared {
        shapes,
        state: Mutex::new(State {
            next: (0, 0),
            waiting: VecDeque::new(),
            first: 0,
            pending: 0,
            stop: false,
        }),
        changed: Condvar::new(),
        interrupt,
    };
    std::thread::scope(|scope| {
        for _ in 0..workers.max(1) {
            scope.spawn(|| shared.work(open));
        }
        for job in 0..shapes.len() {
            let units = shared.take(job);
            if !consume(job, units) {
                break;
            }
        }
        shared.lock().stop = true;
        shared.changed.notify_all();
    });
}

/// Number of units of a job.
pub(super) fn units_of(shape: &Shape) -> usize {
    shape.rows.div_ceil(shape.unit_rows.max(1)).max(1) as usize
}

fn rows_of(shape: &Shape, unit: usize) -> Range<usize> {
    let start = (unit as u64 * shape.unit_rows).min(shape.rows);
    let end = (start + shape.unit_rows).min(shape.rows);
    start as usize..end as usize
}

impl Shared<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every unit of the job, the next in order, has ended.
    fn take(&self, job: usize) -> Vec<Ended> {
        let mut state = self.lock();
        loop {
            let complete = |units: &Vec<Option<Ended>>| units.iter().all(Option::is_some);
            if state.first == job && state.waiting.front().is_some_and(complete) {
                let units = state.waiting.pop_front().unwrap_or_default();
                state.first += 1;
                state.pending -= self.shapes[job].term_bytes.min(state.pending);
                self.changed.notify_all();
                return units.into_iter().flatten().collect();
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The next unit, when memory for its job's terms is there; `None` at the end.
    fn next(&self) -> Option<(usize, usize)> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            let (job, unit) = state.next;
            let shape = self.shapes.get(job)?;
            let fits = job == state.first || state.pending + shape.term_bytes <= PENDING_BYTES;
            if unit > 0 || fits {
                if unit == 0 {
                    state.pending += shape.term_bytes;
                    let units = (0..units_of(shape)).map(|_| None).collect();
                    state.waiting.push_back(units);
                }
                state.next = if unit + 1 < units_of(shape) {
                    (job, unit + 1)
                } else {
                    (job + 1, 0)
                };
                return Some((job, unit));
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, open: &Open<'_>) {
        let mut current: Option<(usize, Result<Job<'_>, UnitError>)> = None;
        while let Some((job, unit)) = self.next() {
            let ended = if self.interrupt.load(Ordering::Relaxed) {
                Ended::Interrupted
            } else {
                if current.as_ref().is_none_or(|(number, _)| *number != job) {
                    current = Some((job, open(job)));
                }
                match &current {
                    Some((_, Ok(opened))) => {
                        match guarded(opened, rows_of(&self.shapes[job], unit)) {
                            // A pass that saw the interrupt and gave up is not at fault.
                            Ended::Failed(_) if self.interrupt.load(Ordering::Relaxed) => {
                                Ended::Interrupted
                            }
                            ended => ended,
                        }
                    }
                    Some((_, Err(error))) => Ended::Failed(error.clone()),
                    None => Ended::Interrupted,
                }
            };
            let mut state = self.lock();
            let place = job - state.first;
            if let Some(slot) = state.waiting.get_mut(place).and_then(|u| u.get_mut(unit)) {
                *slot = Some(ended);
            }
            drop(state);
            self.changed.notify_all();
        }
    }
}

fn guarded(job: &Job<'_>, rows: Range<usize>) -> Ended {
    match catch_unwind(AssertUnwindSafe(|| unit::run(job, rows))) {
        Ok(Ok(result)) => Ended::Done(result),
        Ok(Err(error)) => Ended::Failed(error),
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
            Ended::Panicked(text.unwrap_or_else(|| "panicked".to_string()))
        }
    }
}
