//! Error feedback, low-rank terms in the metric of the inputs and `refine`, against numpy.
//!
//! It needs a Python with numpy: `HLRC_PYTHON`, or `target/venv` as `.ci/run` makes it.

use std::path::Path;
use std::process::Command;

use hlrc::numeric::hessian::{
    GptqOptions, HessianError, Metric, Order, RefineOptions, damped_objective, gptq, refine,
    whitened_svd,
};
use hlrc::numeric::lowrank::{FactorFormat, Method, Options};
use hlrc::numeric::{Group, Scheme};

fn python() -> Option<String> {
    let named = std::env::var("HLRC_PYTHON").ok();
    let found = named.unwrap_or_else(|| "target/venv/bin/python".to_string());
    let probe = Command::new(&found).args(["-c", "import numpy"]).output();
    if probe.is_ok_and(|p| p.status.success()) {
        return Some(found);
    }
    eprintln!("skipped: {found} has no numpy (set HLRC_PYTHON, or run .ci/run)");
    None
}

/// Repeatable, nearly normal numbers.
struct Random(u64);

impl Random {
    fn normal(&mut self) -> f32 {
        let mut sum = -6.0;
        for _ in 0..12 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            sum += (self.0 >> 40) as f32 / 16_777_216.0;
        }
        sum
    }

    fn matrix(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// `Σ x xᵀ` of inputs that share directions and differ in size; channel 7 is dead.
fn second_moment(n: usize, tokens: usize, random: &mut Random) -> Vec<f32> {
    let mix = random.matrix(6 * n);
    let sizes: Vec<f32> = (0..n).map(|_| random.normal().exp()).collect();
    let mut h = vec![0f64; n * n];
    for _ in 0..tokens {
        let z = random.matrix(6);
        let mut x = random.matrix(n);
        for (j, x) in x.iter_mut().enumerate() {
            *x += z
                .iter()
                .enumerate()
                .map(|(k, z)| 3.0 * z * mix[k * n + j])
                .sum::<f32>();
            *x *= if j == 7 { 0.0 } else { sizes[j] };
        }
        for (row, a) in h.chunks_mut(n).zip(&x) {
            row.iter_mut()
                .zip(&x)
                .for_each(|(h, b)| *h += f64::from(*a) * f64::from(*b));
        }
    }
    h.into_iter().map(|x| x as f32).collect()
}

fn write(folder: &Path, name: &str, values: &[f32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    std::fs::write(folder.join(name), bytes).expect("written");
}

fn read(folder: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder.join(name)).expect("read");
    let values = bytes.as_chunks::<4>().0;
    values.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// Turns of the quantizer and the low-rank term.
const TURNS: usize = 5;

/// Numbers of a list.
fn theirs_of(json: &serde_json::Value, name: &str) -> Vec<f64> {
    let list = json[name].as_array().expect("a list");
    list.iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn gptq_the_whitened_decomposition_and_turns_equal_numpy() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let (rows, n, rank) = (48, 200, 16);
    let mut random = Random(7);
    let h = second_moment(n, 900, &mut random);
    let w = random.matrix(rows * n);
    write(folder, "w.f32", &w);
    write(folder, "h.f32", &h);
    let schemes = [
        (Scheme::asymmetric(4), Group::Size(64), Order::Activation),
        (Scheme::asymmetric(2), Group::Size(32), Order::Activation),
        (Scheme::symmetric(3), Group::Size(128), Order::Natural),
        (Scheme::symmetric(8), Group::Row, Order::Activation),
    ];
    for (scheme, group, order) in schemes {
        let (metric, feedback, _) = Metric::with_feedback(&h, n, 0.01, order).expect("a metric");
        let mut left = w.clone();
        let plain = GptqOptions::plain();
        let done = gptq(&mut left, rows, &metric, &feedback, scheme, group, &plain);
        let q = done.expect("quantized").matrix;
        let each = || (0..rows * n).map(|at| (at / n, at % n));
        let scale = each().map(|(r, c)| q.scales[q.scale_index(r, c)].to_f32());
        write(folder, "scale.f32", &scale.collect::<Vec<f32>>());
        let zero = each().map(|(r, c)| f32::from(q.zero(r, c)));
        write(folder, "zero.f32", &zero.collect::<Vec<f32>>());
        let task = serde_json::json!({
            "rows": rows, "n": n, "damp": 0.01, "bits": scheme.bits, "rank": rank, "turns": TURNS,
            "low": u8::from(scheme == Scheme::symmetric(8)), "order": order == Order::Activation,
        });
        std::fs::write(folder.join("task.json"), task.to_string()).expect("written");
        let output = Command::new(&python)
            .arg("tests/peers/metric.py")
            .arg(folder)
            .output();
        let output = output.expect("started");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let theirs_json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let theirs = |name: &str| theirs_json[name].as_f64().expect("a number");
        let ours = damped_objective(&metric, &left, rows).expect("an objective");
        let want = theirs("gptq");
        assert!(
            (ours - want).abs() < 1e-3 * want,
            "{scheme:?} {group}: {ours}, numpy {want}"
        );
        // Nearly all codes are the same ones.
        let same = read(folder, "gptq.f32").into_iter().zip(q.decode());
        let same = same
            .filter(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
            .count();
        assert!(
            same as f64 > 0.99 * (rows * n) as f64,
            "{scheme:?} {group}: {same} equal"
        );

        let options = Options {
            method: Method::Exact,
            ..Options::default()
        };
        let by_turns = RefineOptions {
            rank,
            format: FactorFormat::F32,
            svd: options,
            iterations: TURNS,
        };
        let half = |target: &[f32]| {
            let coded = target
                .iter()
                .map(|x| (x * 2.0 + 0.5).floor() / 2.0)
                .collect();
            Ok::<_, HessianError>(((), coded))
        };
        let refined = refine(&w, rows, &metric, &feedback, &by_turns, None, half).expect("refined");
        let wants = theirs_of(&theirs_json, "turns");
        // The first turn that does not fall is the last, and is told as the best so far.
        let mut best = f64::INFINITY;
        assert!(refined.objectives.len() > 2, "{:?}", refined.objectives);
        for (ours, want) in refined.objectives.iter().zip(wants) {
            best = best.min(want);
            assert!((ours - best).abs() < 1e-4 * best, "{ours}, numpy {best}");
        }

        let found = whitened_svd(&w, rows, &feedback, rank, &options).expect("decomposed");
        let term: Vec<f32> = each()
            .map(|(r, c)| {
                (0..rank)
                    .map(|k| found.u[r * rank + k] * found.v[k * n + c])
                    .sum()
            })
            .collect();
        let left: Vec<f32> = w.iter().zip(&term).map(|(w, l)| w - l).collect();
        let (ours, want) = (
            damped_objective(&metric, &left, rows).expect("one"),
            theirs("low_rank"),
        );
        assert!((ours - want).abs() < 1e-4 * want, "{ours}, numpy {want}");
        let square = |x: f32| f64::from(x) * f64::from(x);
        let numpy = read(folder, "low_rank.f32");
        let size: f64 = numpy.iter().map(|x| square(*x)).sum();
        let difference: f64 = numpy.iter().zip(&term).map(|(a, b)| square(a - b)).sum();
        assert!(
            (difference / size).sqrt() < 1e-4,
            "{}",
            (difference / size).sqrt()
        );
    }
}
