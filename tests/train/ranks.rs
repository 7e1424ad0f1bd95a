//! Ranks that share the batches come to what one process comes to.

use std::sync::{Arc, Barrier, Mutex};

use hlrc::train::end_to_end::Trained;
use hlrc::train::ranks::{Alone, Ranks};

use crate::coded;
use crate::judging::norms;
#[cfg(not(feature = "mpi"))]
use crate::{STORIES, run};

/// Threads of this test in the place of processes.
struct Threads {
    rank: usize,
    slots: Arc<Mutex<Vec<Vec<f64>>>>,
    here: Arc<Barrier>,
}

impl Threads {
    fn add(&self, own: Vec<f64>) -> Vec<f64> {
        self.slots.lock().expect("whole")[self.rank] = own;
        self.here.wait();
        let slots = self.slots.lock().expect("whole").clone();
        // Nobody writes before all have read.
        self.here.wait();
        let add =
            |sum: Vec<f64>, next: &Vec<f64>| sum.iter().zip(next).map(|(a, b)| a + b).collect();
        let mut slots = slots.iter();
        let first = slots.next().expect("ranks").clone();
        slots.fold(first, add)
    }
}

impl Ranks for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.slots.lock().expect("whole").len()
    }

    fn sum(&self, values: &mut [f32]) {
        let sums = self.add(values.iter().map(|&x| f64::from(x)).collect());
        values
            .iter_mut()
            .zip(sums)
            .for_each(|(x, sum)| *x = sum as f32);
    }

    fn total(&self, value: f64) -> f64 {
        self.add(vec![value])[0]
    }

    fn wait(&self) {
        self.here.wait();
    }

    fn abort(&self, code: i32) {
        panic!("ended with {code}");
    }
}

/// All trained values in the order of their names.
fn values(trained: &Trained) -> Vec<f32> {
    let mut names: Vec<&String> = trained.bytes.keys().collect();
    names.sort();
    let bytes = names
        .into_iter()
        .flat_map(|name| trained.bytes[name].chunks_exact(4));
    bytes
        .map(|b| f32::from_le_bytes(b.try_into().expect("four")))
        .collect()
}

#[test]
fn ranks_come_to_what_one_process_comes_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = coded(folder.path(), "int2");
    // Four examples a step: two batches, or one of each rank.
    for (batch, accumulate, runs_alone) in [(2, 2, 3 + 12), (4, 1, 2 + 6)] {
        let (alone, runs) = norms(&path, (batch, accumulate), &Alone);
        assert_eq!(runs, runs_alone);
        let slots = Arc::new(Mutex::new(vec![Vec::new(); 2]));
        let here = Arc::new(Barrier::new(2));
        let ranks = |rank| Threads {
            rank,
            slots: Arc::clone(&slots),
            here: Arc::clone(&here),
        };
        let both = std::thread::scope(|scope| {
            let one = |rank| {
                let (ranks, path) = (ranks(rank), &path);
                scope.spawn(move || norms(path, (batch, accumulate), &ranks))
            };
            [one(0), one(1)].map(|thread| thread.join().expect("trained"))
        });
        let [(first, runs), (second, others)] = &both;
        assert_eq!(first.bytes, second.bytes);
        assert_eq!(first.records, second.records);
        // Half of the steps' batches each, and about half of those to judge by.
        let judged = if batch == 2 { (2, 1) } else { (1, 1) };
        assert_eq!((*runs, *others), (judged.0 + 6, judged.1 + 6));
        let (alone, shared) = (values(&alone), values(first));
        assert!(alone.len() > 100 && alone.len() == shared.len());
        for (a, b) in alone.iter().zip(&shared) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(0.1), "{a} {b}");
        }
    }
}

#[test]
#[cfg(not(feature = "mpi"))]
fn a_tool_without_mpi_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("out.hlrc").display().to_string();
    let args = ["train", STORIES, "--data", crate::TEXT, "-o", &out, "--mpi"];
    let output = run(&args);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--features mpi"), "{errors}");
}
