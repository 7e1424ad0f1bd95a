//! Threads for the executor: one job at a time, cut into parts that any thread may take.
//!
//! A token of a small model is hundreds of matrix–vector products of a few microseconds each, so
//! workers spin for a moment before they sleep. Parts do not depend on the number of threads, and
//! no part writes what another reads: results are the same for any number of threads.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// How often a waiting thread looks before it sleeps: some ten microseconds.
const SPINS: u32 = 4_000;

thread_local! {
    /// Whether this thread is inside a part; a job started there runs on this thread alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A fixed set of threads, the caller's among them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: callers on several threads take turns.
    turn: Mutex<()>,
}

/// The job that all threads work on.
#[derive(Clone, Copy)]
struct Job {
    /// `call(data, i)` does part `i`.
    call: unsafe fn(*const (), usize),
    data: *const (),
    parts: usize,
}

// SAFETY: `data` points to a closure that is `Sync`, and `Pool::run` does not return before every
// worker is done with it.
unsafe impl Send for Job {}

struct Shared {
    /// Grows by one with each job.
    epoch: AtomicUsize,
    job: Mutex<Option<Job>>,
    /// The next part that nobody has taken.
    next: AtomicUsize,
    /// Workers that are not yet done with the current job.
    busy: AtomicUsize,
    /// What a worker's panic said.
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    stop: AtomicBool,
    /// One flag per worker: whether it sleeps.
    asleep: Vec<AtomicBool>,
    caller: Mutex<Option<Thread>>,
}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            job: Mutex::new(None),
            next: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: (0..helpers).map(|_| AtomicBool::new(false)).collect(),
            caller: Mutex::new(None),
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("exec-{i}"))
                .spawn(move || shared.work(i))
                .ok()
        };
        let workers: Vec<_> = (0..helpers).map_while(spawn).collect();
        Self {
            shared,
            workers,
            turn: Mutex::new(()),
        }
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `part(i)` once for each `i` in `0..parts`, on any thread in any order.
    ///
    /// Returns when all are done. A panic of a part comes out here. Inside a part, the parts of a
    /// nested job run one after the other.
    pub fn run<F: Fn(usize) + Sync>(&self, parts: usize, part: F) {
        if parts <= 1 || self.workers.is_empty() || INSIDE.get() {
            (0..parts).for_each(part);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let job = Job {
            call: call::<F>,
            data: std::ptr::from_ref(&part).cast(),
            parts,
        };
        self.shared.start(job, &self.workers);
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_parts(job)));
        self.shared.wait();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Cuts `out`, `[rows, width]` row-major, into tiles and calls `part` once for each.
    ///
    /// Tiles are `tile_rows × tile_cols`, the last ones smaller. Tiles of one row range follow one
    /// another.
    pub fn split<T: Send, F>(
        &self,
        out: &mut [T],
        width: usize,
        (tile_rows, tile_cols): (usize, usize),
        part: F,
    ) where
        F: Fn(Tile<'_, T>) + Sync,
    {
        if width == 0 || out.is_empty() {
            return;
        }
        let rows = out.len() / width;
        let (tile_rows, tile_cols) = (tile_rows.max(1), tile_cols.max(1));
        let across = width.div_ceil(tile_cols);
        let base = SendPtr(out.as_mut_ptr());
        let parts = rows.div_ceil(tile_rows) * across;
        self.run(parts, |i| {
            let (r, c) = (i / across * tile_rows, i % across * tile_cols);
            part(Tile {
                base: base.get(),
                width,
                rows: r..(r + tile_rows).min(rows),
                cols: c..(c + tile_cols).min(width),
                lifetime: PhantomData,
            });
        });
    }
}

/// A pointer that threads may share; the tiles made from it do not overlap.
struct SendPtr<T>(*mut T);

impl<T> SendPtr<T> {
    fn get(&self) -> *mut T {
        self.0
    }
}

// SAFETY: only `Pool::split` makes one, and hands out disjoint tiles of a `&mut [T]` with `T: Send`.
unsafe impl<T: Send> Sync for SendPtr<T> {}

/// A rectangle of a row-major matrix that only its holder writes.
pub struct Tile<'a, T> {
    base: *mut T,
    width: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    lifetime: PhantomData<&'a mut T>,
}

impl<T> Tile<'_, T> {
    /// The rows of the matrix that the tile covers.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// The columns of the matrix that the tile covers.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// The tile's part of row `row` of the matrix (not of the tile).
    ///
    /// # Panics
    /// The row is not the tile's.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(self.rows.contains(&row), "a row of another tile");
        // SAFETY: `row` and `cols` are inside the matrix that `Pool::split` borrowed for as long as
        // the tile lives, and no other tile has them.
        unsafe {
            let start = self.base.add(row * self.width + self.cols.start);
            std::slice::from_raw_parts_mut(start, self.cols.len())
        }
    }

    /// First entry and distance between rows, for kernels that write tiles by pointer.
    ///
    /// Writing anything but the tile's own entries through it is undefined behaviour.
    pub fn as_mut_ptr(&mut self) -> (*mut T, usize) {
        // SAFETY: the first entry of the tile is inside the matrix.
        let start = unsafe {
            self.base
                .add(self.rows.start * self.width + self.cols.start)
        };
        (start, self.width)
    }
}

/// Does one part of a job whose closure is an `F`.
///
/// # Safety
/// `data` points to a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(data: *const (), part: usize) {
    // SAFETY: the caller's promise.
    let f = unsafe { &*data.cast::<F>() };
    f(part);
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn start(&self, job: Job, workers: &[JoinHandle<()>]) {
        *lock(&self.job) = Some(job);
        *lock(&self.caller) = Some(std::thread::current());
        self.next.store(0, Ordering::Relaxed);
        self.busy.store(workers.len(), Ordering::Relaxed);
        self.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, asleep) in workers.iter().zip(&self.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    fn take_parts(&self, job: Job) {
        INSIDE.set(true);
        let _reset = Reset;
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= job.parts {
                return;
            }
            // SAFETY: `Pool::run` keeps the closure alive until every worker is done.
            unsafe { (job.call)(job.data, part) };
        }
    }

    fn wait(&self) {
        let mut spins = 0;
        while self.busy.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        }
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(epoch) = self.next_epoch(index, seen) {
            seen = epoch;
            let Some(job) = *lock(&self.job) else {
                continue;
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_parts(job))) {
                *lock(&self.panic) = Some(panic);
            }
            if self.busy.fetch_sub(1, Ordering::AcqRel) == 1
                && let Some(caller) = &*lock(&self.caller)
            {
                caller.unpark();
            }
        }
    }

    /// Waits for a job after `seen`; none when the pool is dropped.
    fn next_epoch(&self, index: usize, seen: usize) -> Option<usize> {
        let asleep = &self.asleep[index];
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return Some(epoch);
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            if self.epoch.load(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// Clears the mark of being inside a part, also when the part panics.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker's panic was handed on by `run`.
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Pool;

    #[test]
    fn every_part_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for parts in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
                pool.run(parts, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn tiles_cover_the_matrix() {
        let pool = Pool::new(3);
        for (rows, width) in [(1, 1), (5, 7), (33, 65), (2, 0)] {
            let mut out = vec![0_u32; rows * width];
            pool.split(&mut out, width, (2, 16), |mut tile| {
                let cols = tile.cols();
                for r in tile.rows() {
                    for (c, entry) in cols.clone().zip(tile.row_mut(r)) {
                        *entry += u32::try_from(r * 1000 + c).unwrap() + 1;
                    }
                }
            });
            for (i, &entry) in out.iter().enumerate() {
                let expected = (i / width) * 1000 + i % width + 1;
                assert_eq!(entry as usize, expected);
            }
        }
    }

    #[test]
    fn nested_jobs_run_inline() {
        let pool = Pool::new(2);
        let sum = AtomicU32::new(0);
        pool.run(4, |_| {
            pool.run(5, |_| {
                sum.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.load(Ordering::Relaxed), 20);
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.run(100, |i| assert!(i != 63, "part 63"));
        }));
        assert!(failed.is_err());
        let sum = AtomicU32::new(0);
        pool.run(10, |_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 10);
    }
}
