//! Outputs of two models on the same inputs: direction and size of what differs.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::inputs::Inputs;
use super::{EvalError, Result};
use crate::exec::{Data, Engine, Tensor};

/// How one output of a candidate compares with the reference's, over all runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputReport {
    /// The output.
    pub name: String,
    /// Runs compared.
    pub runs: usize,
    /// Vectors compared: everything along the last axis.
    pub vectors: usize,
    /// Mean cosine of the vectors' angles.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub cosine_mean: f64,
    /// The smallest cosine.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub cosine_worst: f64,
    /// Mean over runs of ‖candidate - reference‖ / ‖reference‖.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub relative_error_mean: f64,
    /// The largest of them.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub relative_error_worst: f64,
    /// Those of each run; not written.
    #[serde(skip)]
    pub relative_errors: Vec<f64>,
    /// The largest difference of two entries.
    #[serde(deserialize_with = "crate::report::number::or_nan")]
    pub largest_difference: f64,
    /// Entries that are integers or conditions and differ.
    pub unequal: usize,
}

/// Sums over the runs of one output.
#[derive(Clone, Debug, Default)]
struct Sums {
    runs: usize,
    vectors: usize,
    cosines: f64,
    worst_cosine: f64,
    errors: Vec<f64>,
    worst_error: f64,
    largest: f64,
    unequal: usize,
}

/// Runs both models on each set of inputs and compares every output of the reference.
///
/// Outputs are matched by name; two models with one output each are matched whatever it is called.
/// Inputs are given to both: `inputs(engine, i)` makes the i-th set for an engine. With `means`, which is
/// for runs of one line of text each, the mean over tokens of an output `[1, tokens, width]` is compared
/// as well: the embedding of a sentence as sentence-transformers pool it.
///
/// # Errors
/// A model fails; an output is missing or has another shape.
pub fn compare<'i>(
    (reference, reference_name): (&Engine, &str),
    (candidate, candidate_name): (&Engine, &str),
    runs: usize,
    inputs: &dyn Fn(&Engine, usize) -> Result<Cow<'i, Inputs>>,
    means: bool,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<OutputReport>> {
    let mut sums: Vec<(String, Sums)> = Vec::new();
    let unlike = |problem: String| EvalError::Unlike {
        a: reference_name.to_string(),
        b: candidate_name.to_string(),
        problem,
    };
    for index in 0..runs {
        let run = |engine: &Engine, name: &str| {
            let inputs = inputs(engine, index)?;
            let inputs: Vec<(&str, &Tensor)> =
                inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
            engine.run_on(&inputs).map_err(EvalError::exec(name))
        };
        let expected = run(reference, reference_name)?;
        let actual = run(candidate, candidate_name)?;
        let mut at = 0;
        let mut next = |name: &str, a: &Tensor, b: &Tensor| {
            if sums.len() <= at {
                sums.push((name.to_string(), Sums::default()));
            }
            let added = sums.get_mut(at).map_or(Ok(()), |(_, sums)| sums.add(a, b));
            at += 1;
            added.map_err(|problem| unlike(format!("output `{name}` {problem}")))
        };
        for (name, tensor) in &expected {
            let found = match (expected.as_slice(), actual.as_slice()) {
                ([_], [(_, only)]) => Some(only),
                _ => actual.iter().find(|(n, _)| n == name).map(|(_, t)| t),
            };
            let found =
                found.ok_or_else(|| unlike(format!("the second has no output `{name}`")))?;
            next(name, tensor, found)?;
            if means && let Some((a, b)) = mean(tensor).zip(mean(found)) {
                next(&format!("mean of {name}"), &a, &b)?;
            }
        }
        progress(index + 1);
    }
    Ok(sums
        .into_iter()
        .map(|(name, sums)| sums.report(name))
        .collect())
}

/// The mean over tokens of `[1, tokens, width]`.
fn mean(tensor: &Tensor) -> Option<Tensor> {
    let (&[1, tokens, width], Data::F32(values)) = (&*tensor.shape, &tensor.data) else {
        return None;
    };
    let mut sums = vec![0.0f64; width];
    for row in values.chunks(width.max(1)) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
    let mean = |sum: &f64| (sum / tokens as f64) as f32;
    (tokens > 0).then(|| Tensor::f32(&[1, width], sums.iter().map(mean).collect()))
}

impl Sums {
    fn add(&mut self, expected: &Tensor, actual: &Tensor) -> Result<(), String> {
        if expected.shape != actual.shape {
            return Err(format!(
                "has the shapes {:?} and {:?}",
                expected.shape, actual.shape
            ));
        }
        self.runs += 1;
        match (&expected.data, &actual.data) {
            (Data::F32(a), Data::F32(b)) => self.floats(a, b, expected.width()),
            (Data::I64(a), Data::I64(b)) => {
                self.unequal += a.iter().zip(b).filter(|(a, b)| a != b).count()
            }
            (Data::Bool(a), Data::Bool(b)) => {
                self.unequal += a.iter().zip(b).filter(|(a, b)| a != b).count()
            }
            _ => {
                return Err(format!(
                    "is {} and {}",
                    expected.type_name(),
                    actual.type_name()
                ));
            }
        }
        Ok(())
    }

    fn floats(&mut self, a: &[f32], b: &[f32], width: usize) {
        let (mut difference, mut norm) = (0.0, 0.0);
        for (a, b) in a.chunks(width.max(1)).zip(b.chunks(width.max(1))) {
            let (mut aa, mut bb, mut ab, mut dd) = (0.0, 0.0, 0.0, 0.0);
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (f64::from(a), f64::from(b));
                aa += a * a;
                bb += b * b;
                ab += a * b;
                dd += (a - b) * (a - b);
                let apart = (a - b).abs();
                // NaN must not hide.
                if apart > self.largest || apart.is_nan() {
                    self.largest = apart;
                }
            }
            let cosine = match dd == 0.0 {
                true => 1.0,
                false => ab / (aa * bb).sqrt().max(f64::MIN_POSITIVE),
            };
            self.cosines += cosine;
            if self.vectors == 0 || cosine < self.worst_cosine || cosine.is_nan() {
                self.worst_cosine = cosine;
            }
            self.vectors += 1;
            difference += dd;
            norm += aa;
        }
        let error = if difference == 0.0 {
            0.0
        } else {
            (difference / norm).sqrt()
        };
        self.errors.push(error);
        if error > self.worst_error || error.is_nan() {
            self.worst_error = error;
        }
    }

    fn report(self, name: String) -> OutputReport {
        OutputReport {
            name,
            runs: self.runs,
            vectors: self.vectors,
            cosine_mean: self.cosines / self.vectors as f64,
            cosine_worst: self.worst_cosine,
            relative_error_mean: self.errors.iter().sum::<f64>() / self.runs as f64,
            relative_error_worst: self.worst_error,
            relative_errors: self.errors,
            largest_difference: self.largest,
            unequal: self.unequal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_a_mean() {
        let x = Tensor::f32(&[1, 2, 2], vec![1.0, 2.0, 3.0, 6.0]);
        assert_eq!(mean(&x), Some(Tensor::f32(&[1, 2], vec![2.0, 4.0])));
        assert_eq!(mean(&Tensor::f32(&[2, 2], vec![0.0; 4])), None);
        assert_eq!(mean(&Tensor::f32(&[1, 0, 2], vec![])), None);
    }

    #[test]
    fn by_hand() {
        let mut sums = Sums::default();
        let a = Tensor::f32(&[2, 2], vec![3.0, 4.0, 1.0, 0.0]);
        let b = Tensor::f32(&[2, 2], vec![3.0, 4.0, 0.0, 1.0]);
        sums.add(&a, &a).expect("same shapes");
        sums.add(&a, &b).expect("same shapes");
        let report = sums.report("y".into());
        assert_eq!((report.runs, report.vectors), (2, 4));
        assert_eq!((report.cosine_mean, report.cosine_worst), (0.75, 0.0));
        let error = (2.0f64 / 26.0).sqrt();
        assert!((report.relative_error_worst - error).abs() < 1e-12);
        assert!((report.relative_error_mean - error / 2.0).abs() < 1e-12);
        assert_eq!(report.largest_difference, 1.0);
    }

    #[test]
    fn other_types_and_shapes() {
        let mut sums = Sums::default();
        let ids = Tensor::i64(&[3], vec![1, 2, 3]);
        sums.add(&ids, &Tensor::i64(&[3], vec![1, 5, 3]))
            .expect("same shapes");
        assert_eq!(sums.unequal, 1);
        let error = sums
            .add(&ids, &Tensor::f32(&[3], vec![0.0; 3]))
            .expect_err("types");
        assert!(error.contains("i64 and f32"), "{error}");
        let error = sums
            .add(&ids, &Tensor::i64(&[1], vec![0]))
            .expect_err("shapes");
        assert!(error.contains("[3] and [1]"), "{error}");
        let mut broken = Sums::default();
        let nan = Tensor::f32(&[1], vec![f32::NAN]);
        broken
            .add(&nan, &Tensor::f32(&[1], vec![1.0]))
            .expect("same shapes");
        assert!(broken.report(String::new()).relative_error_worst.is_nan());
    }
}
