//! Threads for the executor: one job at a time, cut into parts that any thread may take.
//!
//! A token of a small model is hundreds of matrix–vector products of a few microseconds each, so
//! workers spin for a moment before they sleep. Parts do not depend on the number of threads, and
//! no part writes what another reads: results are the same for any number of threads.

#![allow(unsafe_code)]

use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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

/// Set in [`Shared::state`] while workers may join the job.
const OPEN: u64 = 1 << 31;
/// Workers on the job; above is the number of jobs so far.
const ACTIVE: u64 = OPEN - 1;
/// One job more.
const NEXT: u64 = 1 << 32;

/// A counter in a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
struct Next(AtomicUsize);

struct Shared {
    /// Jobs so far, whether the last one is open, and how many workers are on it.
    ///
    /// Only workers that joined are waited for: one that wakes up late finds the job closed.
    state: AtomicU64,
    /// Written while no job is open and no worker on one, read by workers that joined.
    job: UnsafeCell<Option<Job>>,
    /// For each thread's share of the parts, the next one that nobody has taken.
    next: Vec<Next>,
    /// What a worker's panic said.
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    stop: AtomicBool,
    /// One flag per worker: whether it sleeps.
    asleep: Vec<AtomicBool>,
    /// The caller, where it sleeps.
    caller: Mutex<Option<Thread>>,
}

// SAFETY: `job` is written by the one caller whose turn it is while nobody reads it, as `state`
// tells. The closure it points to is `Sync`, and `Pool::run` does not return before every worker
// that joined is done with it.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer in `job` is not used by who drops it.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` threads, the caller's included; at least one.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: (0..=helpers).map(|_| Next::default()).collect(),
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
        // SAFETY: it is this caller's turn, and `part` outlives the wait below.
        unsafe { self.shared.start(job, &self.workers) };
        let own = catch_unwind(AssertUnwindSafe(|| self.shared.take_parts(job, 0)));
        self.shared.finish();
        if let Err(panic) = own {
            resume_unwind(panic);
        }
        if let Some(panic) = lock(&self.shared.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Calls `work`; where `alone`, this thread does all parts of the jobs in it.
    ///
    /// For jobs of some microseconds, which is what waking other threads takes.
    pub fn alone<R>(&self, alone: bool, work: impl FnOnce() -> R) -> R {
        let _restore = Restore(INSIDE.replace(alone || INSIDE.get()));
        work()
    }

    /// Cuts `out`, `[rows, width]` row-major, into tiles and calls `part` once for each.
    ///
    /// Tiles are `tile_rows × tile_cols`, the last ones smaller. Tiles of one row range follow one
    /// another.
    pub fn split<T: Send, F>(&self, out: &mut [T], width: usize, tile: (usize, usize), part: F)
    where
        F: Fn(Tile<'_, T>) + Sync,
    {
        let grid = Grid::new(&mut Split { out, width, tile }, 0);
        self.run(grid.parts, |i| part(grid.tile(i)));
    }

    /// [`Self::split`] of several matrices as one job; `part` also gets the matrix's number.
    pub fn split_all<T: Send, F>(&self, splits: &mut [Split<'_, T>], part: F)
    where
        F: Fn(usize, Tile<'_, T>) + Sync,
    {
        let mut parts = 0;
        let grids: Vec<Grid<T>> = splits
            .iter_mut()
            .map(|split| {
                let grid = Grid::new(split, parts);
                parts += grid.parts;
                grid
            })
            .collect();
        self.run(parts, |i| {
            let which = grids.iter().rposition(|grid| grid.first <= i);
            // Empty grids have no part; the last that starts at or before `i` has it.
            if let Some((which, grid)) = which.and_then(|w| Some((w, grids.get(w)?))) {
                part(which, grid.tile(i - grid.first));
            }
        });
    }
}

/// A matrix that is cut into tiles.
pub struct Split<'a, T> {
    /// `[rows, width]`, row-major.
    pub out: &'a mut [T],
    /// Its width.
    pub width: usize,
    /// Rows and columns of a tile.
    pub tile: (usize, usize),
}

/// Where the tiles of a matrix lie.
struct Grid<T> {
    base: SendPtr<T>,
    rows: usize,
    width: usize,
    tile: (usize, usize),
    /// Tiles, and how many of other matrices come before.
    parts: usize,
    first: usize,
}

impl<T> Grid<T> {
    fn new(split: &mut Split<'_, T>, first: usize) -> Self {
        let width = split.width;
        let tile = (split.tile.0.max(1), split.tile.1.max(1));
        let rows = split.out.len().checked_div(width).unwrap_or(0);
        Self {
            base: SendPtr(split.out.as_mut_ptr()),
            rows,
            width,
            tile,
            parts: rows.div_ceil(tile.0) * width.div_ceil(tile.1),
            first,
        }
    }

    fn tile(&self, i: usize) -> Tile<'_, T> {
        let across = self.width.div_ceil(self.tile.1);
        let (r, c) = (i / across * self.tile.0, i % across * self.tile.1);
        Tile {
            base: self.base.0,
            width: self.width,
            rows: r..(r + self.tile.0).min(self.rows),
            cols: c..(c + self.tile.1).min(self.width),
            lifetime: PhantomData,
        }
    }
}

/// A pointer that threads may share; the tiles made from it do not overlap.
struct SendPtr<T>(*mut T);

// SAFETY: only `Grid` holds one, and hands out disjoint tiles of a `&mut [T]` with `T: Send`.
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
    /// Opens a job.
    ///
    /// # Safety
    /// The last job is finished, no other caller starts one, and what the job points to lives
    /// until [`Self::finish`] returns.
    unsafe fn start(&self, job: Job, workers: &[JoinHandle<()>]) {
        // SAFETY: no worker is on a job and none is open: nobody else looks.
        unsafe { *self.job.get() = Some(job) };
        for (share, next) in self.next.iter().enumerate() {
            let first = self.share(job, share).start;
            next.0.store(first, Ordering::Relaxed);
        }
        let jobs = self.state.load(Ordering::Relaxed) & !(NEXT - 1);
        self.state
            .store(jobs.wrapping_add(NEXT) | OPEN, Ordering::SeqCst);
        for (worker, asleep) in workers.iter().zip(&self.asleep) {
            if asleep.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }

    /// The parts that are a thread's before they are anybody's.
    fn share(&self, job: Job, thread: usize) -> Range<usize> {
        let threads = self.next.len();
        let (each, rest) = (job.parts / threads, job.parts % threads);
        let at = |thread: usize| each * thread + rest * thread / threads;
        at(thread)..at(thread + 1)
    }

    /// Does the thread's own parts in order, so that it reads memory in one long stretch, then
    /// what others have left.
    fn take_parts(&self, job: Job, thread: usize) {
        let _restore = Restore(INSIDE.replace(true));
        let threads = self.next.len();
        for of in (thread..threads).chain(0..thread) {
            let (end, next) = (self.share(job, of).end, &self.next[of].0);
            while next.load(Ordering::Relaxed) < end {
                let part = next.fetch_add(1, Ordering::Relaxed);
                if part < end {
                    // SAFETY: `Pool::run` keeps the closure alive until every worker is done.
                    unsafe { (job.call)(job.data, part) };
                }
            }
        }
    }

    /// Closes the job and waits for the workers that are on it.
    fn finish(&self) {
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let done = || self.state.load(Ordering::SeqCst) & ACTIVE == 0;
        for _ in 0..SPINS {
            if done() {
                return;
            }
            std::hint::spin_loop();
        }
        *lock(&self.caller) = Some(std::thread::current());
        while !done() {
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        *lock(&self.caller) = None;
    }

    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(jobs) = self.next_job(index, seen) {
            seen = jobs;
            let Some(job) = self.join(jobs) else {
                continue;
            };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take_parts(job, index + 1))) {
                *lock(&self.panic) = Some(panic);
            }
            let before = self.state.fetch_sub(1, Ordering::SeqCst);
            if before & (OPEN | ACTIVE) == 1
                && let Some(caller) = &*lock(&self.caller)
            {
                caller.unpark();
            }
        }
    }

    /// Joins job number `jobs` if it is still open.
    fn join(&self, jobs: u64) -> Option<Job> {
        let open = |state: u64| state & !(NEXT - 1) == jobs && state & OPEN != 0;
        let order = (Ordering::SeqCst, Ordering::SeqCst);
        let join = |state| open(state).then_some(state + 1);
        self.state.fetch_update(order.0, order.1, join).ok()?;
        // SAFETY: while this worker counts as active, nobody writes the job.
        unsafe { *self.job.get() }
    }

    /// Waits for a job after number `seen`; none when the pool is dropped.
    fn next_job(&self, index: usize, seen: u64) -> Option<u64> {
        let asleep = &self.asleep[index];
        let jobs = |order| self.state.load(order) & !(NEXT - 1);
        let mut spins = 0;
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            let now = jobs(Ordering::Acquire);
            if now != seen {
                return Some(now);
            }
            spins += 1;
            if spins < SPINS {
                std::hint::spin_loop();
                continue;
            }
            asleep.store(true, Ordering::SeqCst);
            if jobs(Ordering::SeqCst) == seen && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
        }
    }
}

/// Puts back whether this thread is inside a part, also when the part panics.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        INSIDE.set(self.0);
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
mod tests;
